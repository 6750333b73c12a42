"""A checkpoint gets a memory, keeps it, and refuses that of another backbone."""

import numpy as np
import pytest
import small_sets
import torch
from checkpoint_models import to_official
from PIL import Image
from safetensors.torch import save_file
from tiny_models import set_info, tiny_vit
from torch.nn.functional import normalize

from anoseg_d2.checkpoint import model_meta, read_checkpoint
from anoseg_d2.commands import convert, export, memory, predict
from anoseg_d2.engine import fit_memory
from anoseg_d2.prediction.predictor import AnomalyPredictor


@pytest.fixture
def tool():
    return memory


@pytest.fixture
def weights(tmp_path, tiny_eomt):
    model = tiny_eomt(has_anomaly=True)
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        image = rng.integers(0, 256, (40, 64, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


# The last block before the queries enter the tiny model.
ONE = ("--blocks", "1")


def build(tool, weights, photos, output, *options):
    return tool.main([str(weights), "--images", str(photos), "--output", str(output), *options])


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_the_checkpoint_has_a_memory_that_recognises_its_images(
    tool, weights, photos, tmp_path, capsys, ending
):
    output = tmp_path / f"memory{ending}"
    assert build(tool, weights, photos, output, *ONE) == 0
    assert "rows of 3 images; on 1 others" in capsys.readouterr().out
    predictor = AnomalyPredictor.from_pretrained(str(output))
    assert "memory" in predictor.score_names
    statistics = predictor.model.info.score_statistics["memory"]
    held_out = predictor(photos / "0.png")["scores"]["memory"]
    assert statistics == pytest.approx((held_out.mean(), held_out.std()), abs=1e-4)
    assert predictor(photos / "1.png")["scores"]["memory"].max() < 1e-4 < held_out.max()
    before = AnomalyPredictor.from_pretrained(str(weights))(photos / "1.png")["scores"]["rba"]
    found = predictor(photos / "1.png")["scores"]["rba"]
    np.testing.assert_allclose(found, before, atol=1e-6)


def test_statistics_are_measured_before_filters_and_say_their_settings(
    tool, weights, photos, tmp_path
):
    infos = []
    for value in ("0", "0.5"):
        output = tmp_path / f"{value}.pth"
        options = ("--opts", "TEST.ANOMALY.GUIDED_FILTER", value)
        assert build(tool, weights, photos, output, *options) == 0
        infos.append(AnomalyPredictor.from_pretrained(str(output)).model.info)
    assert infos[0] == infos[1] and infos[0].statistics_settings["TEST.FLIP"] is False


def test_a_memory_of_another_backbone_is_refused(tool, weights, photos, tmp_path):
    assert build(tool, weights, photos, tmp_path / "m.pth", "--rows", "5", *ONE) == 0
    payload = torch.load(tmp_path / "m.pth", weights_only=True)
    assert payload["model"]["patch_maps.memory.rows"].dtype == torch.float16
    assert len(payload["model"]["patch_maps.memory.rows"]) == 5
    payload["model"]["backbone.blocks.0.mlp.fc1.weight"] += 0.1
    torch.save(payload, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="another backbone.*anoseg memory"):
        AnomalyPredictor.from_pretrained(str(tmp_path / "other.pth"))


def labels(*columns, unknown=None):
    """Label maps of 32 x 64 pixels: two windows of 2 x 2 patches each.

    Args:
        columns: train ids of the left and of the right window.
        unknown: (row, column, id) of one more pixel.
    """
    label = np.repeat(np.repeat(np.array([columns], np.uint8), 32, axis=0), 32, axis=1)
    if unknown:
        label[unknown[0], unknown[1]] = unknown[2]
    return label


CLOSED = {
    "void": (labels(0, 255), 4),
    "pasted object": (labels(2, 3), 4),
    "one pixel of void": (labels(0, 1, unknown=(20, 40, 255)), 7),
    "one pixel of an object": (labels(0, 1, unknown=(0, 0, 3)), 7),
    "all known": (labels(0, 2), 8),
}


@pytest.mark.parametrize("case", CLOSED)
def test_patches_with_void_or_unknown_pixels_are_left_out(tool, weights, tmp_path, capsys, case):
    label, rows = CLOSED[case]
    # Of two images the first is held out.
    images = small_sets.closed_set(tmp_path, [labels(0, 3), label], name="memory_closed")
    output = tmp_path / "m.pth"
    arguments = [str(weights), "--dataset", "memory_closed", "--output", str(output)]
    assert tool.main(arguments) == 0
    assert f"{rows} rows of 1 images" in capsys.readouterr().out
    predictor = AnomalyPredictor.from_pretrained(str(output))
    score = predictor(images[0]["file_name"])["scores"]["memory"]
    known = score[:, :32]  # the mean and spread are those of known pixels, too
    statistics = predictor.model.info.score_statistics["memory"]
    assert statistics == pytest.approx((known.mean(), known.std()), abs=1e-4)
    assert statistics[0] != pytest.approx(score.mean(), abs=1e-4)


def test_anomalies_and_void_of_a_benchmark_are_left_out(tool, weights, tmp_path, capsys):
    content = [labels(0, 0), labels(0, 1), labels(0, 255)]
    rule = small_sets.ANOMALY_RULE
    small_sets.write_set(
        tmp_path, "memory_anomaly", content, evaluator_type="anomaly", label_rule=rule
    )
    arguments = ["--dataset", "memory_anomaly", "--output", str(tmp_path / "m.pth")]
    assert tool.main([str(weights), *arguments]) == 0
    assert "8 rows of 2 images" in capsys.readouterr().out


def test_a_dataset_without_a_known_patch_or_a_name_is_refused(tool, weights, tmp_path, capsys):
    small_sets.closed_set(tmp_path, [labels(0, 0), labels(3, 255)], name="memory_none")
    for name in ("memory_none", "nowhere"):
        arguments = ["--dataset", name, "--output", str(tmp_path / "m.pth")]
        assert tool.main([str(weights), *arguments]) == 2
    error = capsys.readouterr().err
    assert "no patch without void or unknown pixels" in error and "Traceback" not in error
    assert "--dataset 'nowhere' is not registered; known: " in error
    assert not (tmp_path / "m.pth").exists()


def hugging_face_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.EomtConfig(
        hidden_size=384,  # the official format stores no heads; this width tells them
        num_hidden_layers=3,
        num_attention_heads=6,
        image_size=32,
        patch_size=16,
        num_blocks=2,
        num_queries=6,
        id2label=dict(enumerate(["road", "pavement", "car"])),
    )
    model = transformers.EomtForUniversalSegmentation(config)
    model.attn_mask_probs.zero_()  # a finished training: masks are annealed away
    for name, parameter in model.named_parameters():
        if not name.startswith("upscale"):
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def official_file(tmp_path):
    source = hugging_face_folder(tmp_path)
    output = tmp_path / "official.ckpt"
    torch.save({"state_dict": to_official(read_checkpoint(source))}, output)
    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, name", [(official_file, "eomt_official"), (hugging_face_folder, "huggingface")]
)
def test_public_checkpoints_get_a_memory(tool, photos, tmp_path, make, name):
    source, output = make(tmp_path), tmp_path / "m.safetensors"
    assert read_checkpoint(source).format == name
    assert build(tool, source, photos, output) == 0
    predictor = AnomalyPredictor.from_pretrained(str(output))
    assert predictor(photos / "1.png")["scores"]["memory"].max() < 1e-3
    before = AnomalyPredictor.from_pretrained(str(source))(photos / "1.png")["scores"]
    after = predictor(photos / "1.png")["scores"]
    assert set(after) == {*before, "memory"}
    np.testing.assert_allclose(after["rba"], before["rba"], atol=1e-5)


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["whole", "adapters merged"])
def test_memory_and_statistics_survive_conversion(tool, photos, tmp_path, tiny_eomt, lora):
    model = tiny_eomt(has_anomaly=True, lora=lora)
    set_info(model, score_statistics={"rba": (-0.6, 0.2)})
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, tmp_path / "w.pth")
    assert build(tool, tmp_path / "w.pth", photos, tmp_path / "m.pth", "--rows", "7") == 0
    output = tmp_path / "converted.safetensors"
    assert convert.main([str(tmp_path / "m.pth"), "--to", "anoseg", "--output", str(output)]) == 0
    before, after = (
        AnomalyPredictor.from_pretrained(
            str(path), ["TEST.ANOMALY.SCORES", ["memory", "rba", "rba+memory"]]
        )
        for path in (tmp_path / "m.pth", output)
    )
    assert set(after.model.info.score_statistics) == {"rba", "memory"}
    assert after.model.info.score_statistics == before.model.info.score_statistics
    maps = [p(photos / "2.png")["scores"] for p in (before, after)]
    for name, score in maps[0].items():
        np.testing.assert_array_equal(maps[1][name], score)
    assert maps[1]["rba+memory"].std() > 0


def test_mistakes_are_one_line_and_status_2(tool, weights, photos, tmp_path, capsys):
    assert build(tool, weights, tmp_path / "gone", tmp_path / "m.pth") == 2
    assert build(tool, weights, photos, tmp_path / "m.txt") == 2
    assert build(tool, weights, photos, tmp_path / "m.pth", "--rows", "0") == 2
    error = capsys.readouterr().err
    assert "gone is not a folder" in error and "must end in .pth" in error
    assert "--rows is 0; it must be an integer in 1.." in error and "Traceback" not in error


@pytest.fixture
def bare(tmp_path):
    """File of a ViT as timm writes it."""
    state = tiny_vit(depth=4, width=384, heads=6, patch_size=14, image_size=(56, 56)).state_dict()
    save_file(state, tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


@pytest.mark.slow
def test_from_a_bare_backbone_to_a_picture(tool, bare, photos, tmp_path, capsys):
    output = tmp_path / "mine.pth"
    assert build(tool, bare, photos, output, "--window", "56", "--rows", "50") == 0
    assert "50 rows of 3 images" in capsys.readouterr().out
    meta = torch.load(output, weights_only=True)["meta"]
    assert meta["memory"]["blocks"] == [1, 2, 3] and meta["image_size"] == [56, 56]
    predictor = AnomalyPredictor.from_pretrained(str(output))
    assert predictor.score_names == ["memory"] and predictor.class_names == []
    # The first photograph was held out.
    seen, unseen = (predictor(photos / f"{n}.png")["scores"]["memory"] for n in (1, 0))
    assert seen.mean() < unseen.mean()
    folder = tmp_path / "out"
    arguments = [str(photos / "0.png"), "--weights", str(output), "--output", str(folder)]
    kinds = ["--outputs", "overlay,heatmap,raw_npy,json", "--threshold", "0"]
    assert predict.main([*arguments, *kinds]) == 0
    np.testing.assert_allclose(np.load(folder / "memory/raw_npy/0.npy"), unseen, atol=1e-5)
    assert (folder / "memory/overlay/0.jpg").exists()
    assert predict.main([*arguments, "--outputs", "segmentation"]) == 2
    assert predict.main([*arguments, "--score", "rba"]) == 2
    assert export.main([str(output), "--output", str(tmp_path / "m.onnx")]) == 2
    error = capsys.readouterr().err
    assert "no classes" in error and "masks" in error and "bare backbone" in error
    # Its own file gets another memory, and keeps it through a conversion.
    again, copy = tmp_path / "again.pth", tmp_path / "copy.safetensors"
    assert build(tool, output, photos, again, "--rows", "20", "--blocks", "2") == 0
    assert convert.main([str(again), "--to", "anoseg", "--output", str(copy)]) == 0
    maps = [
        AnomalyPredictor.from_pretrained(str(path))(photos / "0.png")["scores"]["memory"]
        for path in (again, copy)
    ]
    np.testing.assert_array_equal(*maps)


def test_several_blocks_of_a_network_and_those_that_queries_enter(
    tool, photos, tmp_path, tiny_eomt, capsys
):
    model = tiny_eomt(vit={"depth": 4}).eval()
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, tmp_path / "w.pth")
    output = tmp_path / "m.pth"
    assert build(tool, tmp_path / "w.pth", photos, output, "--blocks", "5") == 2
    assert "--blocks 5" in capsys.readouterr().err and not output.exists()
    assert build(tool, tmp_path / "w.pth", photos, output, "--blocks", "2", "1") == 0
    memory = AnomalyPredictor.from_pretrained(str(output)).model.patch_maps["memory"]
    assert memory.blocks == (0, 1) and memory.mean.shape == memory.spread.shape == (2,)
    late = tmp_path / "late.pth"
    assert build(tool, tmp_path / "w.pth", photos, late, "--blocks", "2", "4") == 0
    again = AnomalyPredictor.from_pretrained(str(late)).model
    assert again.patch_maps["memory"].sources == (1, "plain 3")
    image = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    x, _ = model.embed(image)
    for block in model.backbone.blocks:
        x = block(x)
    tokens = again.run_network(image, True, again.patch_maps["memory"].sources)[1]
    torch.testing.assert_close(tokens["plain 3"], x[:, model.backbone.num_prefix_tokens :])


def test_a_single_block_is_fitted_and_stored_as_ever(tool, weights, photos, tmp_path):
    """Nothing in the file is new, and the score is the plain distance."""
    assert build(tool, weights, photos, tmp_path / "m.pth", "--rows", "5", *ONE) == 0
    payload = torch.load(tmp_path / "m.pth", weights_only=True)
    assert payload["model"]["patch_maps.memory.rows"].shape == (5, 32)
    assert "patch_maps.memory.mean" not in payload["model"]
    assert payload["meta"]["memory"].keys() == {"block", "backbone_sha256"}
    predictor = AnomalyPredictor.from_pretrained(str(tmp_path / "m.pth"))
    memory = predictor.model.patch_maps["memory"]
    rows, tokens = memory.rows.float(), torch.randn(1, 4, 32)
    found = memory({memory.blocks[0]: tokens}, (2, 2))[0, 0].flatten()
    expected = 1 - (normalize(tokens[0], dim=-1) @ normalize(rows, dim=-1).T).amax(dim=-1)
    assert torch.equal(found, expected.clamp(min=0))
    assert payload["meta"]["version"] == 1 and "architecture" not in payload["meta"]


def test_an_interrupted_fit_leaves_no_file(tool, bare, photos, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_memory, "leave_one_out", stop)
    assert build(tool, bare, photos, tmp_path / "m.pth", "--window", "56") == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.glob("m.pth*"))
