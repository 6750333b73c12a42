"""The ViT, DINOv2 or DINOv3: rotary positions only on patches, keys without bias, adapters."""

import pytest
import torch
from transformers import EomtDinov3Config, EomtDinov3ForUniversalSegmentation

from anoseg_d2.checkpoint import load_into, read_checkpoint
from anoseg_d2.checkpoint.from_config import resolve_weights
from anoseg_d2.engine.solver import build_optimizer
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.lora import inject_lora, merge_lora
from anoseg_d2.modeling.vit import backbone_kind, build_vit

DEPTH, WIDTH, HEADS, QUERIES = 4, 48, 3, 6


def eomt(image_size=(64, 64), seed=0, lora=None, **options):
    torch.manual_seed(seed)
    vit = build_vit(
        "S", image_size=image_size, backbone="dinov3", depth=DEPTH, width=WIDTH, heads=HEADS
    )
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if lora:
        inject_lora(vit, **lora)
    return EoMT(
        backbone=vit, **{"num_known": 5, "num_queries": QUERIES, "num_blocks": 2, **options}
    )


def images(size=(64, 64), seed=3):
    return 255 * torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def reference(grid, num_blocks):
    """transformers' EoMT on DINOv3 with every tensor random."""
    torch.manual_seed(1)
    config = EomtDinov3Config(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=64,
        num_blocks=num_blocks,
        num_queries=QUERIES,
        id2label=dict(enumerate("abcde")),
        layer_norm_eps=1e-5,
    )
    model = EomtDinov3ForUniversalSegmentation(config).eval()
    for name, parameter in model.named_parameters():
        if not name.startswith("upscale"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.attn_mask_probs.zero_()
    model.grid_size = grid
    return model


@pytest.mark.parametrize("grid", [(4, 4), (2, 5)], ids=["square", "wide"])
@pytest.mark.parametrize("num_blocks", [1, 3])
@torch.no_grad()
def test_logits_equal_those_of_transformers(grid, num_blocks, tmp_path):
    theirs = reference(grid, num_blocks)
    theirs.save_pretrained(tmp_path)
    size = (16 * grid[0], 16 * grid[1])
    model = eomt(size, num_blocks=num_blocks).eval()
    load_into(model, read_checkpoint(tmp_path))
    pixels = (images(size) - model.pixel_mean) / model.pixel_std
    result = theirs(pixel_values=pixels)
    masks, classes = model.predict_masks(images(size))[-1]
    assert masks.abs().max() > 1e-2
    torch.testing.assert_close(masks, result.masks_queries_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(classes, result.class_queries_logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_positions_reach_patches_and_neither_queries_nor_prefix():
    model = eomt().eval()
    seen = {}
    for index, block in enumerate(model.backbone.blocks):
        hook = lambda module, inputs, index=index: seen.update({index: inputs[0].shape[1]})  # noqa: E731
        block.register_forward_pre_hook(hook)
    model.predict_masks(images())
    patches = 16
    for index, block in enumerate(model.backbone.blocks):
        assert seen[index] - block.attn.num_prefix_tokens == patches


@torch.no_grad()
def test_coordinates_are_rescaled_in_training_alone():
    model = eomt(masked_attention=False)
    first, second = (model.train().predict_masks(images())[-1][0] for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (model.eval().predict_masks(images())[-1][0] for _ in range(2))
    assert torch.equal(first, second)


@torch.no_grad()
def test_keys_have_no_bias():
    block = eomt().backbone.blocks[0]
    names = [name for name, _ in block.attn.named_parameters()]
    assert sorted(n for n in names if "bias" in n) == ["proj.bias", "q_bias", "v_bias"]
    assert not block.attn.k_bias.any()


@torch.no_grad()
def test_b_zero_is_the_base_model_bit_for_bit_and_merging_changes_nothing():
    base, adapted = eomt().eval(), eomt(lora={"rank": 2, "alpha": 4.0}).eval()
    base.load_state_dict({k: v for k, v in adapted.state_dict().items() if "lora_" not in k})
    expected = base.predict_masks(images())[-1][0]
    assert torch.equal(adapted.predict_masks(images())[-1][0], expected)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    changed = adapted.predict_masks(images())[-1][0]
    assert (changed - expected).abs().max() > 1e-2
    merged = merge_lora(adapted).predict_masks(images())[-1][0]
    torch.testing.assert_close(merged, changed, rtol=1e-4, atol=1e-5)


def test_every_adapter_gets_a_gradient():
    model = eomt(lora={"rank": 2, "alpha": 4.0}).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    sum(mask.square().mean() for mask, _ in model.predict_masks(images())).backward()
    adapters = {n: p.grad for n, p in model.named_parameters() if "lora_" in n}
    assert len(adapters) == 2 * 4 * DEPTH
    assert all(gradient is not None and gradient.any() for gradient in adapters.values())


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        model = eomt(recompute="all" if recompute else "none").train()
        torch.manual_seed(0)
        sum(mask.square().mean() for mask, _ in model.predict_masks(images())).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_a_config_builds_and_trains_it(tiny_cfg, tiny_batch):
    cfg = tiny_cfg(
        "MODEL.EOMT.BACKBONE", "dinov3", "MODEL.EOMT.WIDTH", 48, "MODEL.LORA.ENABLED", True
    )
    model = EoMT(cfg).train()
    assert backbone_kind(model.backbone) == "dinov3"
    assert model.backbone.norm.eps == 1e-5
    optimizer = build_optimizer(cfg, model)
    sum(model(tiny_batch()).values()).backward()
    optimizer.step()
    assert set(model.eval()([{"image": torch.zeros(3, 40, 70, dtype=torch.uint8)}])[0]["scores"])


def test_norm_eps_and_weights_follow_the_config(tiny_cfg):
    cfg = tiny_cfg(
        "MODEL.EOMT.BACKBONE", "dinov3", "MODEL.EOMT.NORM_EPS", 1e-6, "MODEL.EOMT.WIDTH", 48
    )
    assert EoMT(cfg).backbone.norm.eps == EoMT(cfg).backbone.blocks[0].norm1.eps == 1e-6
    cfg.MODEL.WEIGHTS = "dinov3"
    assert resolve_weights(cfg) == "timm://vit_small_patch16_dinov3_qkvb.lvd1689m"
    cfg.MODEL.EOMT.SIZE = "XL"
    with pytest.raises(ValueError, match="MODEL.EOMT.SIZE is 'XL'.* S, B, L, G"):
        resolve_weights(cfg)
    cfg.MODEL.WEIGHTS, cfg.MODEL.EOMT.SIZE = "dinov2", "S"
    with pytest.raises(ValueError, match="MODEL.WEIGHTS.*dinov2.*MODEL.EOMT.BACKBONE.*dinov3"):
        resolve_weights(cfg)
    with pytest.raises(ValueError, match="MODEL.EOMT.BACKBONE.*'dinov9'.*must.*dinov2.*dinov3"):
        EoMT(tiny_cfg("MODEL.EOMT.BACKBONE", "dinov9"))
    with pytest.raises(ValueError, match="SIZE.*'G'.*with MODEL.EOMT.BACKBONE dinov3"):
        EoMT(tiny_cfg("MODEL.EOMT.BACKBONE", "dinov3", "MODEL.EOMT.SIZE", "G"))
