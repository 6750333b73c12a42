"""The ratio head: what it learns, what its gradient leaves alone, and that it gets everywhere."""

import math

import pytest
import torch
from tiny_models import merge_windows, tiny_cfg
from torch.nn import functional as F

from anoseg_d2.checkpoint import AnosegCheckpointer, read_checkpoint
from anoseg_d2.checkpoint.from_config import load_checkpoint, load_weights
from anoseg_d2.export import ExportSpec
from anoseg_d2.export.graph import ExportModel
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.inference import predict_windows
from anoseg_d2.modeling.patch_heads import RatioHead, RatioOptions
from anoseg_d2.modeling.patch_heads.ratio import cell_labels
from anoseg_d2.modeling.scores import is_implicit, scores_from_maps
from anoseg_d2.modeling.windows import cut_windows, plan_windows
from anoseg_d2.prediction.predictor import AnomalyPredictor


def outlier_batch(tiny_batch):
    """Two images of 2 x 2 patches, classes 0..2 known and 3 unknown; both kinds occur."""
    samples = tiny_batch(2, num_classes=4)
    for sample in samples:
        sample["sem_seg"][:16, :16] = 3
    return samples


def test_cells_are_labelled_by_their_pixels():
    sem_seg = torch.zeros(1, 8, 8, dtype=torch.uint8)
    sem_seg[0, :4, :2] = 3  # half of the first patch
    sem_seg[0, :3, 4:] = 255  # three quarters void
    sem_seg[0, 4:, :2] = 255  # half void, and of the rest three quarters unknown
    sem_seg[0, 4:7, 2:4] = 3
    assert cell_labels(sem_seg, 3, 4, 0.5).tolist() == [[[0, 255], [1, 0]]]
    assert cell_labels(sem_seg, 3, 4, 0.4).tolist() == [[[1, 255], [1, 0]]]
    assert cell_labels(sem_seg, 3, 4, 0.8).tolist() == [[[0, 255], [0, 0]]]


def test_it_reads_the_middle_the_last_block_before_the_queries_and_the_last():
    assert RatioHead.choose_blocks(12, 3) == (5, 8, 11) and RatioHead.choose_blocks(24, 4) == (
        11,
        19,
        23,
    )
    assert RatioHead.choose_blocks(3, 2) == (0, 2)


@pytest.mark.parametrize("cells", [1, 2])
def test_no_gradient_reaches_the_tokens(cells):
    head = RatioHead(8, (0, 2), RatioOptions(cells=cells))
    tokens = {block: torch.randn(2, 4, 8, requires_grad=True) for block in (0, 2)}
    sem_seg = torch.tensor([0, 3]).repeat_interleave(8).expand(2, 16, 16)
    head.loss(tokens, sem_seg, 3).sum().backward()
    assert all(value.grad is None for value in tokens.values())
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())


def train(head, tokens, sem_seg, steps):
    """Train a head of block 0 on one batch with three known classes; returns it."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        head.loss({0: tokens}, sem_seg, 3).sum().backward()
        optimizer.step()
    return head


def test_separable_tokens_are_learned():
    torch.manual_seed(0)
    head = RatioHead(8, (0,), RatioOptions(cells=1))
    tokens = 0.5 * torch.randn(4, 16, 8)
    unknown = torch.rand(4, 16) < 0.3
    tokens[unknown] += torch.tensor([4.0, 0, 0, 0, 0, 0, 0, -4.0])
    grid = torch.where(unknown, 3, 0).unflatten(1, (4, 4))
    sem_seg = grid.repeat_interleave(4, 1).repeat_interleave(4, 2)
    found = train(head, tokens, sem_seg, 50)({0: tokens}, (4, 4))
    assert found.shape == (4, 1, 4, 4)
    assert torch.equal(found.flatten(1) > 0, unknown)
    log_p = head.layers(F.layer_norm(tokens, (8,))).log_softmax(dim=-1)
    torch.testing.assert_close(found.flatten(1), log_p[..., 1] - log_p[..., 0])


def test_cells_lie_where_their_pixels_do():
    """Each token says which of the four cells of its patch are unknown."""
    torch.manual_seed(0)
    head = RatioHead(8, (0,), RatioOptions(cells=2))
    unknown = torch.rand(16, 6, 4) < 0.4  # patches in a grid of 2 x 3, their cells row by row
    tokens = torch.where(unknown, 1.0, -1.0)
    tokens = torch.cat([tokens, -tokens], dim=-1) + 0.05 * torch.randn(16, 6, 8)
    cells = unknown.view(16, 2, 3, 2, 2).transpose(2, 3).reshape(16, 4, 6)
    sem_seg = torch.where(cells, 3, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    found = train(head, tokens, sem_seg, 80)({0: tokens}, (2, 3))
    assert found.shape == (16, 1, 4, 6)
    assert torch.equal(found[:, 0] > 0, cells)


def test_cells_that_do_not_divide_a_patch_are_refused(tiny_eomt):
    with pytest.raises(ValueError, match="MODEL.RATIO.CELLS.*3.*patches.*16"):
        tiny_eomt(patch_heads={"ratio": RatioOptions(cells=3)})


def test_an_image_without_labels_has_no_loss_but_a_graph():
    head = RatioHead(8, (0,), RatioOptions(cells=1))
    loss = head.loss({0: torch.randn(1, 4, 8)}, torch.full((1, 16, 16), 255), 3)
    loss.sum().backward()
    assert loss.tolist() == [0] and all(p.grad is not None for p in head.parameters())


def test_the_rest_of_the_model_has_the_gradients_that_it_has_without(tiny_eomt, tiny_batch):
    gradients = []
    for ratio in (False, True):
        torch.manual_seed(0)
        heads = {"ratio": None} if ratio else None
        model = tiny_eomt(has_anomaly=True, masked_attention=False, patch_heads=heads).train()
        losses = model(outlier_batch(tiny_batch))
        assert ("loss_ratio" in losses) == ratio
        sum(losses.values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    own = [name for name in gradients[1] if name not in gradients[0]]
    assert own and all(name.startswith("patch_maps.ratio.") for name in own)
    assert all(gradients[1][name].abs().sum() > 0 for name in own)
    for name, expected in gradients[0].items():
        assert torch.equal(gradients[1][name], expected), name


def test_micro_batches_add_up_to_the_loss_of_the_step(tiny_eomt, tiny_batch):
    model = tiny_eomt(has_anomaly=True, masked_attention=False, patch_heads={"ratio": None}).train()
    samples = outlier_batch(tiny_batch)
    samples[1]["sem_seg"][:, 16:] = 255  # unequal numbers of labelled patches
    normalizers = model.criterion.normalizers([3, 3], model.num_queries)
    parts = [model([sample], normalizers)["loss_ratio"] for sample in samples]
    torch.testing.assert_close(sum(parts), model(samples, normalizers)["loss_ratio"])


def test_alone_only_the_head_trains_and_known_classes_suffice(tiny_eomt, tiny_batch):
    lora = {"dropout": 0.5}
    model = tiny_eomt(
        lora=lora, vit={"drop_path": 0.5}, patch_heads={"ratio": None}, train_only="ratio"
    ).train()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(name.startswith("patch_maps.ratio.") for name in trained)
    first, second = (model(outlier_batch(tiny_batch)) for _ in range(2))
    assert list(first) == ["loss_ratio"]
    assert torch.equal(first["loss_ratio"], second["loss_ratio"]), "the frozen ViT drops nothing"
    first["loss_ratio"].backward()


def test_windows_merge_the_ratio_like_every_map(tiny_eomt):
    model = tiny_eomt(window_overlap=0.3, patch_heads={"ratio": None}).eval()
    image = torch.randint(256, (3, 40, 90), dtype=torch.uint8)
    plan = plan_windows((40, 90), (32, 32), 0.3)
    with torch.no_grad():
        maps = predict_windows(model, cut_windows(image, plan), ["ratio"])[2]["ratio"]
    maps = F.interpolate(maps, size=(32, 32), mode="bilinear")
    expected = F.interpolate(merge_windows(maps, plan)[None], size=(40, 90), mode="bilinear")
    found = model([{"image": image}], score_names=["ratio"])[0]["scores"]["ratio"]
    assert found.std() > 0
    torch.testing.assert_close(found, expected[0, 0], rtol=0, atol=1e-5)


def test_odds_add_the_log_odds_of_the_class_and_the_ratio():
    probs = torch.tensor([0.0, 5e-4, 0.5, 0.9, 1.2]).view(1, 1, 1, 5)
    ratio = torch.tensor([-3.0, 2.0, 0.5, -1.0, 4.0]).view(1, 1, 1, 5)
    maps = {"probs": torch.cat([torch.zeros(1, 2, 1, 5), probs], dim=1), "ratio": ratio}
    found = scores_from_maps(maps, 2, ["odds"])["odds"].flatten().tolist()
    learned = [math.log(p / (1 - p)) for p in (1e-3, 1e-3, 0.5, 0.9, 0.999)]
    assert found == pytest.approx(
        [a + b for a, b in zip(learned, ratio.flatten().tolist(), strict=True)], abs=1e-4
    )


def test_odds_need_the_class_and_the_head(tiny_eomt):
    assert "odds" in tiny_eomt(has_anomaly=True, patch_heads={"ratio": None}).score_names
    assert "odds" not in tiny_eomt(patch_heads={"ratio": None}).score_names
    assert not is_implicit("odds")
    with pytest.raises(ValueError, match="'odds'.*anomaly"):
        tiny_eomt(patch_heads={"ratio": None}).check_scores(["odds"])
    with pytest.raises(ValueError, match=r"'odds' needs a model with 'ratio'"):
        tiny_eomt(has_anomaly=True).check_scores(["odds"])


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
def test_the_traced_graph_equals_the_model(tiny_eomt, half):
    model = tiny_eomt(has_anomaly=True, patch_heads={"ratio": None}).eval()
    image = torch.randint(256, (1, 3, 50, 90), dtype=torch.uint8)
    spec = ExportSpec(("rba", "ratio", "odds"), image_size=(50, 90), half=half)
    graph = torch.export.export(ExportModel(model, spec), (image,)).module()
    found = dict(zip(spec.outputs, graph(image), strict=True))
    expected = model([{"image": image[0]}])[0]["scores"]
    for name in ("ratio", "odds"):
        atol = 5e-2 if half else 1e-5
        torch.testing.assert_close(found[name][0], expected[name], rtol=0, atol=atol)


def test_a_model_without_one_says_how_to_get_it(tiny_eomt):
    assert "ratio" not in tiny_eomt(has_anomaly=True).score_names
    with pytest.raises(ValueError, match=r"'ratio'.*MODEL.RATIO.ENABLED.*configs/ratio.yaml"):
        tiny_eomt().check_scores(["rba+ratio"])


@pytest.fixture(params=[1, 4])
def trained(request, tmp_path, tiny_eomt):
    """A model with a ratio head of one cell per patch or several, and its checkpoint."""
    model = tiny_eomt(patch_heads={"ratio": RatioOptions(cells=request.param)}).eval()
    AnosegCheckpointer(model, str(tmp_path)).save("trained")
    return model, tmp_path / "trained.pth"


def test_the_head_comes_with_its_checkpoint(trained):
    model, path = trained
    predictor = AnomalyPredictor.from_pretrained(str(path))
    image = torch.randint(256, (3, 40, 64), dtype=torch.uint8)
    found, expected = (m([{"image": image}])[0]["scores"] for m in (predictor.model, model))
    torch.testing.assert_close(found["ratio"], expected["ratio"])


def test_training_without_the_switch_drops_it_and_says_so(trained, caplog):
    cfg = tiny_cfg("MODEL.WEIGHTS", str(trained[1]))
    model = EoMT(cfg)
    load_weights(cfg, model, training=True)
    assert "ratio" not in model.patch_maps
    assert "its ratio head is dropped in training; MODEL.RATIO.ENABLED True" in caplog.text


def test_a_checkpoint_without_one_starts_it_in_training_and_is_refused_in_evaluation(
    tmp_path, tiny_eomt
):
    AnosegCheckpointer(tiny_eomt(), str(tmp_path)).save("plain")
    cfg = tiny_cfg("MODEL.RATIO.ENABLED", True)
    checkpoint = read_checkpoint(tmp_path / "plain.pth")
    report = load_checkpoint(cfg, EoMT(cfg), checkpoint, training=True)
    started = report.names("initialised")
    assert started and all(name.startswith("patch_maps.ratio.") for name in started)
    with pytest.raises(ValueError, match=r"untrained(.|\n)*patch_maps.ratio(.|\n)*RATIO"):
        load_checkpoint(cfg, EoMT(cfg), checkpoint)
