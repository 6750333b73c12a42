"""Tiny models of the checkpoint tests, and comparisons of what they compute."""

import torch
from format_names import TABLES, from_ours, split_fused

from anoseg_d2.checkpoint import AnosegCheckpointer, model_meta
from anoseg_d2.checkpoint.adapters import adapter_payload
from anoseg_d2.checkpoint.files import write_checkpoint
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.lora import inject_lora
from anoseg_d2.modeling.vit import build_vit


def tiny(head="linear", image_size=(64, 64), seed=0, **kwargs):
    torch.manual_seed(seed)
    vit = {"patch_size": 16, "num_registers": 4, "depth": 3}
    vit |= {key: kwargs.pop(key) for key in list(vit) if key in kwargs}
    backbone = build_vit("S", image_size=image_size, width=24, heads=3, **vit)
    kwargs = {"num_known": 5, "num_queries": 6, "num_blocks": 2, **kwargs}
    return EoMT(backbone=backbone, head=head, **kwargs).eval()


@torch.no_grad()
def outputs(model, image_size=None):
    generator = torch.Generator().manual_seed(1)
    size = image_size or model.image_size
    images = 255 * torch.rand(1, 3, *size, generator=generator)
    return model.eval().predict_masks(images)[-1]


def assert_same_outputs(a, b, atol=0.0):
    for left, right in zip(outputs(a), outputs(b), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=atol)


def adapted(seed=0, **kwargs):
    model = tiny("arcface", seed=seed, **kwargs)
    inject_lora(model.backbone, rank=2, alpha=6.0)
    model.backbone.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def saved(model, folder, name="model_final", **kwargs):
    AnosegCheckpointer(model, str(folder), **kwargs).save(name)
    return folder / f"{name}.pth"


def save_adapter(model, path):
    """Write what trains in a model, as the last save of a LoRA stage does."""
    write_checkpoint(adapter_payload(model.state_dict(), model_meta(model)), path)


def to_official(checkpoint):
    """Rename the tensors of a whole EoMT as its authors' code does."""
    state, spec = checkpoint.state_dict, checkpoint.spec
    if spec.backbone == "dinov3":  # of transformers, which does not fuse
        state = split_fused(state, swiglu=False)
    table = TABLES["eomt_official", spec.backbone]
    official = {f"network.{from_ours(name, table)}": tensor for name, tensor in state.items()}
    for key in ("pixel_mean", "pixel_std"):
        if getattr(spec, key):
            values = torch.tensor(getattr(spec, key)) / 255
            official[f"network.encoder.{key}"] = values.reshape(1, 3, 1, 1)
    official["network.attn_mask_probs"] = torch.zeros(spec.num_blocks)
    official["criterion.empty_weight"] = torch.ones(spec.num_rows)
    return official
