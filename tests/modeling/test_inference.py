"""Inference by windows and strips: equal to its slow twin, in bounded memory, in float32."""

import pytest
import torch
from tiny_models import set_inference

from anoseg_d2.modeling import EoMT, InferenceOptions, inference
from anoseg_d2.modeling.inference import choose_queries, score_map_settings
from anoseg_d2.modeling.patch_heads import PatchMemory, RatioHead, RatioOptions
from anoseg_d2.modeling.scores import (
    known_distribution,
    linear_coefficients,
)
from anoseg_d2.utils.options import keys_of


def batches_of(model):
    """Return a list that will hold the number of windows of each forward pass."""
    tried, run = [], model.run_network

    def run_network(images, *args, **options):
        tried.append(len(images))
        return run(images, *args, **options)

    model.run_network = run_network
    return tried


def with_patch_maps(model):
    """Add a memory and a head with two rows and blocks at random."""
    torch.nn.init.normal_(model.query.weight)
    model.patch_maps["memory"] = PatchMemory(torch.randn(6, 32), 0)
    model.patch_maps["ratio"] = RatioHead(32, (0, 2), RatioOptions(cells=2))
    return model.eval()


def test_with_flip_a_symmetric_image_has_symmetric_maps_of_every_score(tiny_eomt):
    model = with_patch_maps(tiny_eomt(has_anomaly=True, flip=True))
    half = torch.randint(256, (3, 32, 16), dtype=torch.uint8)
    sample = {"image": torch.cat([half, half.flip(-1)], dim=-1)}
    found = model([sample])[0]
    assert {"memory", "ratio", "rba", "anomaly"} <= found["scores"].keys()
    for name, score in found["scores"].items():
        torch.testing.assert_close(score, score.flip(-1), rtol=0, atol=1e-6, msg=name)
    assert torch.equal(found["sem_seg"], found["sem_seg"].flip(-1))
    set_inference(model, flip=False)
    score = model([sample])[0]["scores"]["rba"]
    assert (score - score.flip(-1)).abs().max() > 1e-4, "without it, the maps are not symmetric"


def test_with_flip_a_mirrored_image_has_mirrored_maps_and_each_window_runs_twice(tiny_eomt):
    model = with_patch_maps(tiny_eomt(has_anomaly=True, flip=True))
    image = torch.randint(256, (3, 40, 80), dtype=torch.uint8)
    tried = batches_of(model)
    found, mirrored = model([{"image": image}])[0], model([{"image": image.flip(-1)}])[0]
    assert tried == [4, 4]
    for name, score in found["scores"].items():
        torch.testing.assert_close(score, mirrored["scores"][name].flip(-1), msg=name)


def test_several_scales_are_the_mean_of_each_alone(tiny_eomt):
    model = with_patch_maps(tiny_eomt(has_anomaly=True, flip=True, window_overlap=0.2))
    sample = {"image": torch.randint(256, (3, 40, 80), dtype=torch.uint8)}
    alone = []
    for scale in (1.0, 2.0):
        set_inference(model, scales=(scale,))
        alone.append(model([sample])[0]["scores"])
    set_inference(model, scales=(1.0, 2.0))
    together = model([sample])[0]["scores"]
    assert {"odds", "max_logit", "memory", "anomaly"} <= together.keys()
    for name, score in together.items():
        mean = (alone[0][name] + alone[1][name]) / 2
        torch.testing.assert_close(score, mean, msg=name)
        assert (alone[0][name] - alone[1][name]).abs().max() > 1e-4, "the scales differ"


LOOK = {"second_look": 2.0, "suspicion": "rba"}


@pytest.mark.parametrize("taper", [False, True])
def test_a_second_look_everywhere_is_one_more_scale_and_one_nowhere_is_none(tiny_eomt, taper):
    model = with_patch_maps(tiny_eomt(has_anomaly=True, window_overlap=0.3, window_taper=taper))
    sample = {"image": torch.randint(256, (3, 70, 130), dtype=torch.uint8), "height": 90}
    found = {}
    for name, options in {
        "first": {"scales": (1.0, 1.5)},
        "three": {"scales": (1.0, 1.5, 2.0)},
        "everywhere": {"scales": (1.0, 1.5), "suspicious": -1e9, **LOOK},
        "nowhere": {"scales": (1.0, 1.5), "suspicious": 1e9, **LOOK},
    }.items():
        set_inference(model, **{"second_look": 0.0, **options})
        found[name] = model([sample])[0]
    for name in model.score_names:
        first, three, everywhere, nowhere = (result["scores"][name] for result in found.values())
        torch.testing.assert_close(everywhere, three, msg=name)
        assert torch.equal(nowhere, first)
        assert not torch.equal(first, three)
    assert torch.equal(found["everywhere"]["sem_seg"], found["first"]["sem_seg"])


def test_a_second_look_runs_the_windows_that_hold_a_suspicion_and_changes_nothing_else(tiny_eomt):
    model = with_patch_maps(tiny_eomt(has_anomaly=True))
    sample = {"image": torch.randint(256, (3, 32, 64), dtype=torch.uint8)}
    tried = batches_of(model)
    first = model([sample], score_names=["msp"])[0]["scores"]["msp"]
    rba = model([sample], score_names=["rba"])[0]["scores"]["rba"]
    # One pixel decides, and only one window of scale 2 has it: 16 by 16 pixels of the image.
    y, x = divmod(int(rba.argmax()), 64)
    set_inference(model, **LOOK, suspicious=float(rba.max()))
    tried.clear()
    found = model([sample], score_names=["msp"])[0]["scores"]
    assert tried == [2, 1] and list(found) == ["msp"], "the suspicion is not asked for"
    changed = (found["msp"] != first).nonzero()
    top, left = y // 16 * 16, x // 16 * 16
    assert len(changed) > 100
    assert (changed[:, 0] >= top).all() and (changed[:, 0] < top + 16).all()
    assert (changed[:, 1] >= left).all() and (changed[:, 1] < left + 16).all()


def test_a_second_look_is_refused_where_nothing_can_raise_the_suspicion(tiny_eomt):
    with pytest.raises(ValueError, match="second_look is 0.5"):
        InferenceOptions(second_look=0.5)
    model = tiny_eomt(second_look=2.0, suspicion="ratio").eval()
    with pytest.raises(ValueError, match="needs a model with 'ratio'"):
        model([{"image": torch.zeros(3, 32, 32, dtype=torch.uint8)}], score_names=["msp"])


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 2.0)])
def test_windows_of_several_images_share_a_forward_and_change_nothing(tiny_eomt, scales):
    model = tiny_eomt(has_anomaly=True, scales=scales).eval()
    shapes = [(32, 32), (40, 100), (32, 32), (90, 32), (32, 70)]
    samples = [{"image": torch.randint(256, (3, *s), dtype=torch.uint8)} for s in shapes]
    alone = [model([sample])[0] for sample in samples]
    tried = batches_of(model)
    together = model(samples)
    # 1, 3, 1, 3 and 3 windows; at twice the scale 4, 10, 4, 12 and 10 more
    assert tried == ([8, 3] if scales == (1.0,) else [8] * 6 + [3])
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found["scores"], expected["scores"])
        assert torch.equal(found["sem_seg"], expected["sem_seg"])


def test_an_outer_autocast_does_not_round_the_scores(tiny_eomt):
    model = tiny_eomt(head="arcface").eval()
    sample = {"image": torch.randint(256, (3, 64, 64), dtype=torch.uint8)}
    expected = model([sample])[0]["scores"]["rba"]
    with torch.autocast("cpu", torch.bfloat16):
        found = model([sample])[0]["scores"]["rba"]
    assert found.dtype == torch.float32
    # In bfloat16, 4,096 pixels share some forty values.
    assert len(found.unique()) > 0.5 * len(expected.unique())
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("head", ["linear", "logit_norm", "arcface"])
def test_an_outer_autocast_is_amp_of_the_network_alone_for_every_score(tiny_eomt, head):
    model = with_patch_maps(tiny_eomt(head=head, has_anomaly=True)).eval()
    sample = {"image": torch.randint(256, (3, 64, 64), dtype=torch.uint8)}
    with torch.autocast("cpu", torch.bfloat16):
        found = model([sample])[0]["scores"]
    set_inference(model, dtype=torch.bfloat16)
    expected = model([sample])[0]["scores"]
    assert {"memory", "ratio", "rba", "uno"} <= found.keys()
    for name, score in expected.items():
        assert torch.equal(found[name], score), name


def test_amp_rounds_the_network_and_nothing_after_it(tiny_cfg, monkeypatch):
    model = EoMT(tiny_cfg("TEST.AMP", True, "SOLVER.AMP.PRECISION", "bf16")).eval()
    assert EoMT(tiny_cfg()).inference.dtype is None
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    sample = {"image": torch.randint(256, (3, 40, 64), dtype=torch.uint8)}
    found = model([sample])[0]
    read, seen = inference.scores.scores_from_maps, []

    def scores_from_maps(maps, *args):
        seen.extend(value.dtype for value in maps.values())
        return read(maps, *args)

    monkeypatch.setattr(inference.scores, "scores_from_maps", scores_from_maps)
    model.backbone.blocks[0].mlp.fc1.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    model([sample])
    assert seen[0] == torch.bfloat16 and set(seen[1:]) == {torch.float32}
    set_inference(model, dtype=None)
    expected = model([sample])[0]
    for name, value in found["scores"].items():
        assert value.dtype == torch.float32
        error = (value - expected["scores"][name]).abs().max()
        assert 0 < error < 0.05 * expected["scores"][name].abs().max().clamp(min=1), name


def trained_like(queries=60, seed=0):
    """Class logits of a trained model: a few queries are sure of an object, the rest of none."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(queries, 21, generator=generator)
    logits[:, -1] += 14
    logits[torch.randperm(queries, generator=generator)[:12], :20] += 12
    return logits


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("seed", range(5))
def test_queries_left_out_change_every_map_by_less_than_the_tolerance(tolerance, seed):
    names = ["msp", "rba", "anomaly", "uno"]
    coefficients = linear_coefficients(trained_like(seed=seed)[None], 19, names)
    coefficients = {name: value[0] for name, value in coefficients.items()}
    chosen = choose_queries(coefficients, tolerance)
    # The worst masks there can be: every query claims every pixel with certainty.
    worst = 0.0
    for value in coefficients.values():
        error = (value.double().sum(0) - value[chosen].double().sum(0)).abs().max()
        assert error < tolerance
        left_out = value.abs().double().sum(0) - value[chosen[:-1]].abs().double().sum(0)
        worst = max(worst, left_out.max().item())
    # One query fewer would break the bound.
    assert 1 <= len(chosen) < 60 and (len(chosen) == 1 or worst >= tolerance)


def test_tolerance_zero_and_maps_of_raw_logits_keep_every_query():
    coefficients = {"probs": trained_like().softmax(-1)[:, :-1]}
    assert sorted(choose_queries(coefficients, 0.0).tolist()) == list(range(60))
    coefficients["raw_logits"] = trained_like()[:, :19]
    assert len(choose_queries(coefficients, 1e-2)) == 60


def test_leaving_queries_out_stays_within_the_tolerance_of_the_whole_model(tiny_eomt):
    model = tiny_eomt(num_queries=40, has_anomaly=True).eval()
    with torch.no_grad():
        model.class_head.bias[-1] = 7.5
    sample = {"image": torch.randint(256, (3, 50, 90), dtype=torch.uint8)}
    set_inference(model, query_tolerance=0.0)
    whole = model([sample], score_names=["rba_sum", "anomaly"])[0]["scores"]
    set_inference(model, query_tolerance=1e-2)
    fewer = model([sample], score_names=["rba_sum", "anomaly"])[0]["scores"]
    assert 0 < (fewer["anomaly"] - whole["anomaly"]).abs().max() < 1e-2
    # The sum over three known classes, each within the tolerance.
    assert (fewer["rba_sum"] - whole["rba_sum"]).abs().max() < 3e-2


@pytest.mark.parametrize("classes", [2, 19, 256, 300])
def test_segmentation_and_confidence_are_the_first_maximum_to_the_bit(tiny_eomt, classes):
    model = tiny_eomt()
    model.num_known = classes
    # Few distinct values, so that most pixels have several best classes, and sums on both sides
    # of 1; the last column has a single best class, which is the last one.
    probs = torch.randint(5, (1, classes + 1, 6, 40)) / 4 * torch.linspace(0, 2 / classes, 40)
    probs[:, classes - 1, :, -1] = 0.7
    known = probs[:, :classes]
    sem_seg, confidence = inference.read_classes(model, probs)
    assert torch.equal(sem_seg, known.argmax(dim=1))
    assert torch.equal(confidence, known_distribution(known).amax(dim=1))


# ---- what a figure is valid for ---------------------------------------------------------------


def test_every_option_either_changes_no_map_or_is_a_setting_of_a_figure(tiny_cfg):
    """A new option is a setting until somebody adds it to the neutral ones, and here."""
    neutral = {"TEST.ANOMALY.SCORES", "INPUT.WINDOW_BATCH"}
    assert set(inference.NEUTRAL_KEYS) == neutral
    settings = set(score_map_settings(tiny_cfg()))
    assert settings == set(keys_of("", InferenceOptions)) - neutral | {
        "TEST.AMP",
        "INPUT.CROP_SIZE",
    }
    unfiltered = set(score_map_settings(tiny_cfg(), filters=False))
    assert settings - unfiltered == {"TEST.ANOMALY.GUIDED_FILTER"}


def test_neutral_options_change_a_map_by_no_more_than_the_query_tolerance(tiny_eomt):
    model = tiny_eomt().eval()
    sample = {"image": torch.randint(256, (3, 40, 70), dtype=torch.uint8)}
    before = model([sample])[0]["scores"]
    set_inference(model, window_batch=50, scores=("rba",))
    found = model([sample])[0]["scores"]["rba"]
    torch.testing.assert_close(found, before["rba"], atol=model.inference.query_tolerance, rtol=0)
