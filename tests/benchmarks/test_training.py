"""The memory that the benchmark counts on fake tensors is the memory of a real step."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("training", ROOT / "benchmarks" / "training.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def real_bytes(tool, row, images, labels):
    """Bytes that autograd saves in network and losses together, on real tensors."""
    with (kept := tool.SavedBytes(row.model.parameters())), row.autocast():
        loss = row.model.loss(images, labels)
    assert loss.isfinite()
    return kept.total


LORA = ["MODEL.LORA.ENABLED", True, "MODEL.LORA.RANK", 2, "MODEL.LORA.DROPOUT", 0.1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision,recompute,overrides",
    [
        ("float32", "none", []),
        ("bf16", "none", []),
        ("bf16", "heads", ["MODEL.EOMT.MASKED_ATTENTION", False]),
        ("bf16", "heads", LORA),
        ("float32", "all", LORA),
    ],
)
def test_the_count_on_fake_tensors_equals_the_count_on_real_ones(
    tool, tiny_cfg, precision, recompute, overrides
):
    cfg = tiny_cfg("MODEL.EOMT.NUM_QUERIES", 9, "MODEL.EOMT.RECOMPUTE", recompute, *overrides)
    cfg.merge_from_list(["MODEL.EOMT.NUM_CLASSES", tool.CLASSES_PER_IMAGE])
    row = tool.Row(tool.Ours(cfg), precision)
    images, labels = tool.draw_batch(2, 32)
    counted = tool.count_memory(row, images, labels)
    assert counted["network"] > 0
    assert (counted["losses"] > 0) is (recompute == "none")
    assert counted["network"] + counted["losses"] == real_bytes(tool, row, images, labels)


def test_the_peak_counts_what_is_alive_together_and_not_what_was_freed(tool):
    with tool.PeakBytes() as peak:
        first = torch.zeros(100, dtype=torch.uint8)
        first.view(10, 10).add_(1)  # neither a view nor an operation in place takes memory
        second = torch.zeros(50, dtype=torch.uint8)
        del first, second
        third = torch.zeros(120, dtype=torch.uint8)
    assert (peak.peak, peak.alive) == (150, 120)
    del third
    assert peak.alive == 0


@pytest.mark.slow
def test_recomputed_pieces_count_for_the_peak(tool, tiny_cfg):
    images, labels = tool.draw_batch(2, 32)
    counts = {}
    for mode in ("none", "all"):
        cfg = tiny_cfg("MODEL.EOMT.RECOMPUTE", mode, "MODEL.EOMT.NUM_CLASSES", 8)
        cfg.merge_from_list(["MODEL.EOMT.NUM_QUERIES", 9])
        counts[mode] = tool.count_memory(tool.Row(tool.Ours(cfg), "float32"), images, labels)
    none, all_ = counts["none"], counts["all"]
    assert none["network"] < none["peak"]
    assert all_["network"] < all_["peak"] < none["peak"]


@pytest.mark.parametrize("name", ["full", "stage4", "stage4_last_half", "stage1", "stage1_none"])
def test_every_row_is_built_from_the_config_it_names(tool, monkeypatch, name):
    built = []
    monkeypatch.setattr(tool, "Ours", lambda cfg: built.append(cfg) or nn.Linear(1, 1))
    args = tool.build_parser().parse_args(["--crop", "32", "--queries", "9"])
    tool.build_row(name, args)
    cfg, stage4 = built[0], name.startswith("stage4")
    assert tuple(cfg.INPUT.CROP_SIZE) == (32, 32)
    assert cfg.MODEL.EOMT.NUM_QUERIES == 9
    assert cfg.MODEL.LORA.ENABLED is stage4
    blocks = [6, 11] if name == "stage4_last_half" else []
    assert blocks == cfg.MODEL.LORA.BLOCKS
    assert ("none" if name in ("full", "stage1_none") else "heads") == cfg.MODEL.EOMT.RECOMPUTE
    assert cfg.MODEL.EOMT.MASKED_ATTENTION is name.startswith("stage1")
