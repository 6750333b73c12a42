"""Masked attention and its annealing."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from anoseg_d2.engine.hooks import ProgressHook
from anoseg_d2.modeling.annealing import annealing_windows, draw_query_mask, keep_probability

QUERIES, PREFIX, GRID = 5, 2, (2, 2)


def dense(mask):
    """The mask of all tokens, (B, 1, N, N) bool, for a call without `QueryMask`."""
    rows = mask.query_rows()
    queries, tokens = rows.shape[-2:]
    return torch.cat([rows, rows.new_ones(len(rows), 1, tokens - queries, tokens)], dim=2)


def masked(model, logits, progress, block=0):
    model.train()
    model.set_progress(progress)
    mask = model.attention_mask(logits, block)
    return None if mask is None else dense(mask)


def query_rows(mask):
    """(B, Q, patches) part of an attention mask."""
    return mask[:, 0, :QUERIES, QUERIES + PREFIX :]


def middle(window, share):
    return window[0] + share * (window[1] - window[0])


@pytest.mark.parametrize(
    "num_blocks,starts,ends",
    [
        (4, [1 / 6, 1 / 3, 1 / 2, 2 / 3], [1 / 3, 1 / 2, 2 / 3, 5 / 6]),
        (3, [1 / 6, 5 / 12, 2 / 3], [1 / 3, 7 / 12, 5 / 6]),
    ],
)
def test_annealing_windows_are_those_of_the_paper(num_blocks, starts, ends):
    found = annealing_windows(num_blocks)
    assert [start for start, _ in found] == pytest.approx(starts)
    assert [end for _, end in found] == pytest.approx(ends)


@pytest.mark.parametrize("num_blocks", [1, 2, 5, 12])
def test_other_numbers_of_blocks_anneal_within_the_run_too(num_blocks):
    windows = annealing_windows(num_blocks)
    assert len(windows) == num_blocks
    assert all(0 < start < end < 1 for start, end in windows)


def test_keep_probability_is_one_before_zero_after_and_polynomial_between():
    assert keep_probability(0.0, 0.2, 0.6) == 1
    assert keep_probability(0.2, 0.2, 0.6) == 1
    assert keep_probability(0.3, 0.2, 0.6) == pytest.approx(0.75**0.9)
    assert keep_probability(0.6, 0.2, 0.6) == 0
    assert keep_probability(1.0, 0.2, 0.6) == 0
    assert keep_probability(0.3, 0.2, 0.6, power=2) == pytest.approx(0.75**2)


def loop_mask(mask_logits):
    """Allowed (B, N, N) by explicit loops, at stride 4 of a 16-pixel patch."""
    images, tokens = len(mask_logits), QUERIES + PREFIX + GRID[0] * GRID[1]
    allowed = torch.ones(images, tokens, tokens, dtype=torch.bool)
    for image in range(images):
        for query in range(QUERIES):
            for row in range(GRID[0]):
                for column in range(GRID[1]):
                    # the centre of a 4 x 4 cell lies between its four middle pixels
                    cell = mask_logits[image, query, 4 * row : 4 * row + 4]
                    value = cell[1:3, 4 * column + 1 : 4 * column + 3].mean()
                    patch = QUERIES + PREFIX + row * GRID[1] + column
                    allowed[image, query, patch] = value > 0
    return allowed


def loop_attention(block, x, allowed):
    """timm's block with attention as a loop over images, heads and tokens."""
    attention, heads = block.attn, block.attn.num_heads
    q, k, v = attention.qkv(block.norm1(x)).chunk(3, dim=-1)
    size = q.shape[-1] // heads
    out = torch.zeros_like(q)
    for image in range(len(x)):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for token in range(x.shape[1]):
                keys = allowed[image, token].nonzero()[:, 0]
                dots = k[image, keys, part] @ q[image, token, part] / math.sqrt(size)
                out[image, token, part] = dots.softmax(dim=0) @ v[image, keys, part]
    x = x + block.ls1(attention.proj(out))
    return x + block.ls2(block.mlp(block.norm2(x)))


def test_masked_attention_equals_a_loop_over_queries(tiny_eomt):
    model = tiny_eomt()
    mask_logits = torch.randn(2, QUERIES, 8, 8)
    allowed = loop_mask(mask_logits)
    assert 0.2 < allowed[:, :QUERIES, -4:].float().mean() < 0.8
    mask = masked(model, mask_logits, progress=0.0)
    assert torch.equal(mask[:, 0], allowed)
    x = torch.randn(2, allowed.shape[-1], model.backbone.embed_dim)
    block = model.backbone.blocks[-1]
    found = block(x, attn_mask=model.attention_mask(mask_logits, 0))
    torch.testing.assert_close(found, loop_attention(block, x, allowed), rtol=1e-5, atol=1e-5)
    assert (found - block(x)).abs().max() > 1e-3


@pytest.mark.parametrize("backbone", ["dinov2", "dinov3"])
def test_attention_in_two_calls_equals_one_call_with_the_whole_mask(tiny_eomt, backbone):
    model = tiny_eomt(vit={"backbone": backbone}).train()
    block = model.backbone.blocks[-1]
    mask = model.attention_mask(torch.randn(2, QUERIES, 8, 8), 0)
    x = torch.randn(2, dense(mask).shape[-1], model.backbone.embed_dim, requires_grad=True)
    weights = torch.randn_like(x)
    # In training every call of `get_embed` rescales the coordinates at random.
    options = {} if backbone == "dinov2" else {"rope": model.backbone.rope.get_embed()}
    results = []
    for attention_mask in (mask, dense(mask)):
        out = block(x, attn_mask=attention_mask, **options)
        parameters = [p for p in block.parameters() if p.requires_grad]
        results.append((out, *torch.autograd.grad((out * weights).sum(), [x, *parameters])))
    for two_calls, one_call in zip(*results, strict=True):
        torch.testing.assert_close(two_calls, one_call, rtol=1e-5, atol=1e-5)


def test_a_query_mask_reaches_no_other_function_of_torch():
    mask = draw_query_mask(torch.randn(1, QUERIES, 8, 8), GRID, PREFIX, keep=1.0)
    with pytest.raises(TypeError, match="QueryMask"):
        torch.add(torch.ones(1), mask)


def test_masks_come_from_the_prediction_before_their_block(tiny_eomt, monkeypatch):
    model = tiny_eomt().train()
    seen = []
    original = model.attention_mask
    monkeypatch.setattr(
        model,
        "attention_mask",
        lambda logits, block: seen.append(logits) or original(logits, block),
    )
    predictions = model.predict_masks(torch.rand(1, 3, 32, 32) * 255)
    assert [id(logits) for logits in seen] == [id(logits) for logits, _ in predictions[:-1]]


def test_keep_probability_zero_is_no_mask_at_all(tiny_eomt):
    model = tiny_eomt()
    logits = torch.full((1, QUERIES, 8, 8), -1.0)
    assert masked(model, logits, progress=1.0) is None
    images = torch.rand(2, 3, 32, 32) * 255
    with torch.no_grad():
        trained = model.predict_masks(images)
        evaluated = model.eval().predict_masks(images)
    for ours, theirs in zip(trained, evaluated, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_keep_probability_one_is_always_masked(tiny_eomt):
    model = tiny_eomt()
    logits = torch.full((50, QUERIES, 8, 8), -1.0)
    assert not query_rows(masked(model, logits, progress=0.0)).any()


def test_keep_probability_between_is_drawn_per_image_and_query(tiny_eomt):
    model = tiny_eomt()
    progress = middle(annealing_windows(2)[0], 0.5)
    keep = 0.5**0.9
    logits = torch.full((400, QUERIES, 8, 8), -1.0)
    rows = query_rows(masked(model, logits, progress))
    freed = rows.all(dim=-1)
    assert torch.equal(freed, rows.any(dim=-1))  # a row is freed whole or not at all
    count = freed.numel()
    sigma = math.sqrt(keep * (1 - keep) / count)
    assert abs(freed.float().mean().item() - (1 - keep)) < 4 * sigma
    for dim in (0, 1):  # neither shared by the queries of an image nor by the images of a batch
        share = freed.float().mean(dim=1 - dim)
        assert share.std() > 0
    pairs = torch.corrcoef(freed.float().T)
    assert (pairs - torch.eye(QUERIES)).abs().max() < 4 / math.sqrt(len(freed))


def test_every_block_follows_its_own_window(tiny_eomt):
    model = tiny_eomt()
    logits = torch.full((1, QUERIES, 8, 8), -1.0)
    first, second = annealing_windows(2)
    between = (first[1] + second[0]) / 2
    assert masked(model, logits, between, block=0) is None
    assert not query_rows(masked(model, logits, between, block=1)).any()


def test_no_row_is_ever_empty_and_only_query_to_patch_is_masked(tiny_eomt):
    model = tiny_eomt()
    mask = masked(model, torch.full((3, QUERIES, 8, 8), -1.0), progress=0.0)[:, 0]
    assert mask.any(dim=-1).all()
    assert mask[:, QUERIES:].all()
    assert mask[:, :, : QUERIES + PREFIX].all()


def test_a_model_whose_masks_are_all_empty_stays_finite(tiny_eomt):
    model = tiny_eomt().train()
    with torch.no_grad():
        model.mask_head[-1].weight.zero_()
        model.mask_head[-1].bias.zero_()
    for mask_logits, class_logits in model.predict_masks(torch.rand(1, 3, 32, 32) * 255):
        assert mask_logits.isfinite().all() and class_logits.isfinite().all()


def keeps_of_run(model, steps, start=0):
    """Keep-probability of every block at every step from `start`, as the trainer's hook sets it."""
    hook = ProgressHook()
    keeps = []
    for step in range(start, steps):
        hook.trainer = SimpleNamespace(model=model, iter=step, max_iter=steps)
        hook.before_step()
        keeps.append(
            [keep_probability(model.progress, *w) for w in annealing_windows(model.num_blocks)]
        )
    return torch.tensor(keeps)


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 6, 7, 11, 100, 19902])
def test_annealing_begins_masked_and_ends_within_every_run_length(tiny_eomt, steps):
    keeps = keeps_of_run(tiny_eomt(), steps)
    assert (keeps[0] == 1).all()
    assert (keeps[-1] == 0).all()
    assert (keeps.diff(dim=0) <= 0).all()


@pytest.mark.parametrize("start", [1, 37, 99])
def test_a_resumed_run_anneals_as_an_uninterrupted_one(tiny_eomt, start):
    model = tiny_eomt()
    assert torch.equal(keeps_of_run(model, 100, start), keeps_of_run(model, 100)[start:])


def test_without_masked_attention_deep_supervision_stays(tiny_eomt):
    model = tiny_eomt(masked_attention=False).train()
    assert masked(model, torch.full((1, QUERIES, 8, 8), -1.0), progress=0.0) is None
    assert len(model.predict_masks(torch.rand(1, 3, 32, 32) * 255)) == model.num_blocks + 1


def test_masks_carry_no_gradient(tiny_eomt):
    model = tiny_eomt().train()
    logits = torch.randn(1, QUERIES, 8, 8, requires_grad=True)
    assert not model.attention_mask(logits, 0).visible.requires_grad


def test_bilinear_reading_of_the_grid_is_torchs_own():
    logits = torch.randn(2, QUERIES, 8, 8)
    by_torch = F.interpolate(logits, size=GRID, mode="bilinear", align_corners=False) > 0
    patches = loop_mask(logits)[:, :QUERIES, QUERIES + PREFIX :]
    assert torch.equal(patches, by_torch.flatten(2))
