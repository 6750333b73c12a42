"""The memory of normal patches: its cosine, its windows, its rows."""

import copy

import pytest
import torch
from tiny_models import merge_windows
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anoseg_d2.config import load_config
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.inference import predict_windows
from anoseg_d2.modeling.patch_heads import PatchMemory, free_block
from anoseg_d2.modeling.patch_heads.memory import (
    backbone_hash,
    choose_rows,
    leave_one_out,
    plain_blocks,
)
from anoseg_d2.modeling.windows import cut_windows, plan_windows


def test_the_cosine_equals_a_loop():
    tokens, rows = torch.randn(2, 7, 16), torch.randn(30, 16)
    found = PatchMemory(rows, 4)({4: tokens}, (1, 7))
    assert found.shape == (2, 1, 1, 7)
    for b in range(2):
        for n in range(7):
            best = max(float(F.cosine_similarity(tokens[b, n], row, dim=0)) for row in rows)
            assert found[b, 0, 0, n].item() == pytest.approx(1 - best, abs=1e-3)


def test_rows_in_chunks_equal_all_rows_at_once(monkeypatch):
    tokens, memory = torch.randn(1, 5, 8), PatchMemory(torch.randn(50, 8), 0)
    whole = memory({0: tokens}, (1, 5))
    monkeypatch.setattr("anoseg_d2.modeling.patch_heads.memory._COSINES", 35)  # seven rows at once
    torch.testing.assert_close(memory({0: tokens}, (1, 5)), whole)


def test_rows_that_are_loaded_replace_those_that_were_compared():
    tokens, first = {0: torch.randn(1, 5, 8)}, PatchMemory(torch.randn(6, 8), 0)
    first(tokens, (1, 5))  # keeps its rows in float32
    second = PatchMemory(torch.randn(6, 8), 0)
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(tokens, (1, 5)), second(tokens, (1, 5)))
    assert list(first.state_dict()) == ["rows"], "what is kept is not stored"


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that operations make inside this context."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("batch", [1, 8])
def test_windows_of_1024_px_need_bounded_memory_whatever_the_batch(batch):
    memory = PatchMemory(torch.ones(20000, 64), 0).to("meta")
    tokens = torch.empty(batch, 4096, 64, device="meta")
    with LargestTensor() as largest:
        assert memory({0: tokens}, (64, 64)).shape == (batch, 1, 64, 64)
    # All cosines at once would be 82 million per window.
    assert largest.elements <= 2**23


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone,size,block,blocks",
    [
        ("dinov2", "S", 8, (5, 8, 11)),
        ("dinov2", "B", 8, (5, 8, 11)),
        ("dinov2", "L", 19, (11, 19, 23)),
        ("dinov2", "G", 34, (19, 34, 39)),
        ("dinov3", "L", 19, (11, 19, 23)),
    ],
)
def test_every_size_gives_the_tokens_that_memory_and_ratio_read(backbone, size, block, blocks):
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.EOMT.SIZE", size, "MODEL.EOMT.BACKBONE", backbone]
    overrides += ["INPUT.CROP_SIZE", (64, 96), "MODEL.RATIO.ENABLED", True]
    with torch.device("meta"):  # shapes only: no size takes memory or time
        model = EoMT(load_config("", overrides)).eval()
    assert free_block(len(model.backbone.blocks), model.num_blocks) == block
    assert model.patch_maps["ratio"].blocks == blocks
    images = torch.empty(1, 3, 64, 96, device="meta")
    # Without the heads: autocast knows no meta device.
    tokens = model.run_network(images, True, blocks, predict=lambda x: (None, None))[1]
    width = model.backbone.embed_dim
    assert {value.shape for value in tokens.values()} == {(1, 24, width)}
    memory = PatchMemory(torch.ones(3, width), block).to("meta")
    assert memory(tokens, (4, 6)).shape == (1, 1, 4, 6)
    assert model.patch_maps["ratio"](tokens, (4, 6)).shape == (1, 1, 16, 24)


def test_a_row_of_the_memory_scores_zero():
    rows = 40 * torch.randn(20, 384)
    found = PatchMemory(rows, 0)({0: rows[None]}, (4, 5))
    assert found.min() >= 0 and found.max() < 1e-6


def with_memory(model, images):
    block = free_block(len(model.backbone.blocks), model.num_blocks)
    with torch.no_grad():
        tokens = model.run_network(images, blocks=[block])[1][block]
    model.patch_maps["memory"] = PatchMemory(tokens.flatten(0, 1), block)
    return model


def test_an_image_of_the_memory_scores_zero_everywhere_and_others_do_not(tiny_eomt, tiny_batch):
    seen, other = (sample["image"] for sample in tiny_batch(2))
    model = with_memory(tiny_eomt().eval(), seen[None])
    scores = [model([{"image": image}])[0]["scores"]["memory"] for image in (seen, other)]
    assert scores[0].shape == (32, 32) and scores[0].max() < 1e-5
    assert scores[1].max() > 1e-3


def test_windows_merge_the_memory_like_every_map(tiny_eomt, tiny_batch):
    model = with_memory(tiny_eomt(window_overlap=0.3).eval(), tiny_batch(1)[0]["image"][None])
    image = torch.randint(256, (3, 40, 90), dtype=torch.uint8)
    plan = plan_windows((40, 90), (32, 32), 0.3)
    with torch.no_grad():
        maps = predict_windows(model, cut_windows(image, plan), ["memory"])[2]["memory"]
    maps = F.interpolate(maps, size=(32, 32), mode="bilinear")
    expected = F.interpolate(merge_windows(maps, plan)[None], size=(40, 90), mode="bilinear")
    found = model([{"image": image}], score_names=["memory"])[0]["scores"]["memory"]
    torch.testing.assert_close(found, expected[0, 0], rtol=0, atol=1e-5)


def test_tokens_are_those_before_the_queries_enter(tiny_eomt, tiny_batch):
    model, image = tiny_eomt().eval(), tiny_batch(1)[0]["image"][None]
    before = model.run_network(image, blocks=[0])[1][0]
    torch.nn.init.normal_(model.query.weight)
    assert torch.equal(model.run_network(image, blocks=[0])[1][0], before)
    assert free_block(12, 3) == 8 and free_block(24, 4) == 19
    with pytest.raises(ValueError, match="all 3 blocks"):
        free_block(3, 3)


@pytest.mark.parametrize("backbone", ["dinov2", "dinov3"])
def test_plain_blocks_are_the_vit_without_queries_and_adapters(tiny_eomt, tiny_batch, backbone):
    model, image = tiny_eomt(vit={"backbone": backbone}).eval(), tiny_batch(1)[0]["image"][None]
    vit, depth = model.backbone, len(model.backbone.blocks)
    state = {f"backbone.{name}": tensor.clone() for name, tensor in vit.state_dict().items()}
    x, rope = model.embed(image)
    for block in vit.blocks:
        if rope is not None:
            block = copy.deepcopy(block)
            block.attn.num_prefix_tokens = vit.num_prefix_tokens
        x = block(x) if rope is None else block(x, rope=rope)
    with torch.no_grad():  # as merged adapters change them
        vit.blocks[-1].mlp.fc1.weight += 1
    memory = PatchMemory(
        torch.randn(2, 5, vit.embed_dim),
        (0, depth - 1),
        plain=plain_blocks(vit, model.num_blocks, (0, depth - 1), state),
    )
    model.patch_maps["memory"] = memory
    assert memory.sources == (0, f"plain {depth - 1}")
    tokens = model.run_network(image, True, [*memory.sources, depth - 1])[1]
    expected = x[:, vit.num_prefix_tokens :]
    torch.testing.assert_close(tokens[f"plain {depth - 1}"], expected)
    assert not torch.allclose(tokens[depth - 1], expected)
    assert not any(parameter.requires_grad for parameter in memory.parameters())


def test_a_coreset_holds_the_rare_patch_that_chance_misses():
    common = torch.tensor([1.0, 0, 0]) + 0.01 * torch.randn(500, 3)
    tokens = torch.cat([common, torch.tensor([[0.0, 1, 0], [0, 0, 1]])])
    rows = tokens[choose_rows(tokens, 3, torch.Generator().manual_seed(0), coreset=True)]
    assert {row.argmax().item() for row in rows} == {0, 1, 2}
    assert len(choose_rows(tokens, 9999, torch.Generator(), coreset=True)) == 502


def angles(*degrees):
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=-1)


def test_rows_are_left_out_with_the_neighbours_of_their_photograph():
    # The second photograph holds one patch twice; the first block tells the photographs apart.
    rows = torch.stack([angles(0.0, 60, 60), angles(0.0, 0, 0)])
    mean, spread = leave_one_out(rows, torch.tensor([0, 1, 1]))
    torch.testing.assert_close(mean, torch.tensor([0.5, 0.0]), atol=1e-6, rtol=0)
    assert spread.tolist() == pytest.approx([1e-6, 1e-6])
    # Of a single photograph, only the row itself is left out: 1 - cos 30, 1 - cos 30, 1 - cos 60.
    mean, spread = leave_one_out(angles(0.0, 30, 90)[None], torch.zeros(3, dtype=torch.long))
    found = 1 - torch.tensor([30.0, 30, 60]).deg2rad().cos()
    torch.testing.assert_close(mean[0], found.mean())
    torch.testing.assert_close(spread[0], found.std(correction=0))
    with pytest.raises(ValueError, match="two rows"):
        leave_one_out(angles(0.0)[None], torch.tensor([0]))


def test_blocks_are_standardised_by_hand():
    rows = torch.stack([angles(0.0, 60), angles(0.0, 90)])
    memory = PatchMemory(rows, (3, 5), torch.tensor([0.5, 1.0]), torch.tensor([0.1, 0.2]))
    tokens = {3: angles(30.0)[None], 5: angles(0.0)[None]}
    near = 1 - torch.tensor(30.0).deg2rad().cos()
    expected = ((near - 0.5) / 0.1 + (0 - 1.0) / 0.2) / 2
    assert memory(tokens, (1, 1)).item() == pytest.approx(expected.item(), abs=5e-3)


def test_the_hash_follows_the_blocks_before_the_queries_only(tiny_eomt):
    state = {name: value.clone() for name, value in tiny_eomt().state_dict().items()}
    first = backbone_hash(state, 0)
    state["backbone.blocks.2.mlp.fc1.weight"] += 1
    state["backbone.pos_embed"] += 1
    assert backbone_hash(state, 0) == first
    state["backbone.blocks.0.mlp.fc1.weight"] += 1
    assert backbone_hash(state, 0) != first


def test_joint_adds_the_log_odds_of_the_class_and_the_memory(tiny_eomt):
    model = tiny_eomt(has_anomaly=True)
    sample = {"image": torch.randint(256, (3, 40, 50), dtype=torch.uint8)}
    with pytest.raises(ValueError, match=r"'joint' needs a model with 'memory'"):
        model.check_scores(["joint"])
    model.patch_maps["memory"] = PatchMemory(torch.randn(3, 32), 0)
    assert "joint" not in model.score_names  # of one block, in no standard units
    with pytest.raises(ValueError, match="'joint'.*standard units"):
        model.check_scores(["joint"])
    units = torch.tensor([0.5]), torch.tensor([0.1])
    model.patch_maps["memory"] = PatchMemory(torch.randn(1, 3, 32), (0,), *units)
    found = model.eval()([sample], score_names=["anomaly", "memory", "joint"])[0]["scores"]
    learned = found["anomaly"].clamp(1e-3, 1 - 1e-3)
    expected = (learned / (1 - learned)).log() + 2 * found["memory"]
    torch.testing.assert_close(found["joint"], expected, rtol=0, atol=1e-4)
