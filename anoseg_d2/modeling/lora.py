"""Low-rank adapters over the linear layers of a vision transformer, by loralib.

"LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685). Departures from loralib:
A is Gaussian with standard deviation 1 / r, weights are never merged behind the caller's back, and
the fused qkv layer multiplies its low-rank factors instead of building their full product.
"""

from collections.abc import Iterator

import loralib
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "LORA_TARGETS",
    "adapt_backbone",
    "LoRALinear",
    "LoRAMergedLinear",
    "inject_lora",
    "lora_modules",
    "lora_state_dict",
    "merge_lora",
]

LORA_TARGETS = ("q", "k", "v", "proj", "fc1", "fc2")
_QKV = ("q", "k", "v")


class _Adapted:
    """What both adapted layers share: explicit merging only, and wrapping an existing layer."""

    def train(self, mode: bool = True):
        # loralib's own train() returns None and may merge in place: a state dict that is saved
        # in eval mode would hold merged weights.
        return nn.Module.train(self, mode)

    def _take_over(self, linear: nn.Linear) -> None:
        self.to(device=linear.weight.device, dtype=linear.weight.dtype)
        with torch.no_grad():
            self.weight.copy_(linear.weight)
            if linear.bias is not None:
                self.bias.copy_(linear.bias)
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        nn.init.normal_(self.lora_A, std=1.0 / self.r)
        nn.init.zeros_(self.lora_B)
        self.train(linear.training)

    @torch.no_grad()
    def merged_linear(self) -> nn.Linear:
        """Return a plain layer with weight W + (alpha / r) B A."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.to(device=self.weight.device, dtype=self.weight.dtype)
        linear.weight.copy_(self.weight + self.scaling * self.delta_weight())
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear.train(self.training)


class LoRALinear(_Adapted, loralib.Linear):
    """W x + b + (alpha / r) B A dropout(x), with W and b frozen."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float):
        loralib.Linear.__init__(
            self,
            linear.in_features,
            linear.out_features,
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            merge_weights=False,
            bias=linear.bias is not None,
        )
        self._take_over(linear)

    def delta_weight(self) -> Tensor:
        """B A, (out, in)."""
        return self.lora_B @ self.lora_A

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.linear(self.lora_dropout(x), self.lora_A), self.lora_B)
        return F.linear(x, self.weight, self.bias) + self.scaling * low


class LoRAMergedLinear(_Adapted, loralib.MergedLinear):
    """The fused qkv layer with an adapter for each of q, k and v that is enabled."""

    def __init__(
        self, linear: nn.Linear, rank: int, alpha: float, dropout: float, enabled: list[bool]
    ):
        loralib.MergedLinear.__init__(
            self,
            linear.in_features,
            linear.out_features,
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            enable_lora=enabled,
            merge_weights=False,
            bias=linear.bias is not None,
        )
        self._take_over(linear)

    def delta_weight(self) -> Tensor:
        """Stacked B A, (3 C, C), zero rows for parts without an adapter."""
        return self.merge_AB()

    def forward(self, x: Tensor) -> Tensor:
        parts = sum(self.enable_lora)
        low = F.linear(self.lora_dropout(x), self.lora_A).unflatten(-1, (parts, self.r))
        factors = self.lora_B.view(parts, -1, self.r)
        deltas = iter(F.linear(low[..., i, :], factors[i]) for i in range(parts))
        result = F.linear(x, self.weight, self.bias).chunk(len(self.enable_lora), dim=-1)
        return torch.cat(
            [
                part + self.scaling * next(deltas) if enabled else part
                for part, enabled in zip(result, self.enable_lora, strict=True)
            ],
            dim=-1,
        )


def inject_lora(
    model: nn.Module,
    targets: tuple[str, ...] = LORA_TARGETS,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.1,
    blocks: tuple[int, int] | None = None,
) -> list[str]:
    """Replace linear layers of timm ViT blocks by adapted ones, in place.

    Their weights and biases are frozen; nothing else changes, so the caller decides what trains
    besides.

    Args:
        model: any module that holds timm ViT blocks (`attn.qkv`, `attn.proj`, `mlp.fc1`,
            `mlp.fc2`).
        targets: some of q, k, v, proj, fc1, fc2.
        rank: r.
        alpha: the adapter is scaled by alpha / r.
        dropout: on the adapter's input, 0..1.
        blocks: first and last block, inclusive; None for all.
    Returns:
        names of the replaced layers.
    Raises:
        ValueError: unknown target, rank below 1, no ViT block, a block that does not exist, or
            layers that are adapted already.
    """
    _check_options(targets, rank, dropout)
    found = list(_vit_blocks(model))
    if not found:
        raise ValueError("found no timm ViT block (attn.qkv, mlp.fc1, ...) to adapt in this model")
    first, last = blocks or (0, len(found) - 1)
    if not 0 <= first <= last < len(found):
        raise ValueError(f"LoRA blocks {first}..{last}: the model has blocks 0..{len(found) - 1}")
    replaced = []
    for prefix, block in found[first : last + 1]:
        replaced += [
            f"{prefix}.{name}" for name in _adapt_block(block, targets, rank, alpha, dropout)
        ]
    return replaced


def _check_options(targets, rank: int, dropout: float) -> None:
    unknown = sorted(set(targets) - set(LORA_TARGETS))
    if unknown or not targets:
        raise ValueError(f"LoRA targets {list(targets)}: allowed are {', '.join(LORA_TARGETS)}")
    if rank < 1:
        raise ValueError(f"LoRA rank must be at least 1, is {rank}")
    if not 0 <= dropout < 1:
        raise ValueError(f"LoRA dropout must be in 0..1, is {dropout}")


def _vit_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        attention = getattr(module, "attn", None)
        if attention is not None and hasattr(attention, "qkv") and hasattr(module, "mlp"):
            yield name, module


def _adapt_block(block: nn.Module, targets, rank: int, alpha: float, dropout: float) -> list[str]:
    enabled = [part in targets for part in _QKV]
    names = ["attn.qkv"] if any(enabled) else []
    names += [
        f"{parent}.{name}"
        for parent, name in (("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2"))
        if name in targets
    ]
    for name in names:
        parent, child = name.split(".")
        owner = getattr(block, parent)
        linear = getattr(owner, child, None)
        if isinstance(linear, _Adapted):
            raise ValueError(f"layer {name} is adapted already; merge_lora first")
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"layer {name} of a ViT block is {type(linear).__name__}, not Linear")
        if name == "attn.qkv":
            _call_qkv(owner)
            adapted = LoRAMergedLinear(linear, rank, alpha, dropout, enabled)
        else:
            adapted = LoRALinear(linear, rank, alpha, dropout)
        setattr(owner, child, adapted)
    return names


def _call_qkv(attention: nn.Module) -> None:
    """Have timm's attention with biases of its own call `qkv`, not read its weight past it."""
    if getattr(attention, "q_bias", None) is None:
        return
    if not hasattr(attention, "qkv_bias_separate"):
        raise ValueError(
            f"{type(attention).__name__} reads attn.qkv.weight itself: an adapter of q, k or v "
            "would do nothing; leave them out of the targets"
        )
    attention.qkv_bias_separate = True


def lora_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and layers of `model` that carry adapters."""
    for name, module in model.named_modules():
        if isinstance(module, _Adapted):
            yield name, module


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' A and B alone, by their names in `model.state_dict()`."""
    return loralib.lora_state_dict(model)


def merge_lora(model: nn.Module) -> nn.Module:
    """Fold every adapter into its layer's weight, in place; outputs stay within rounding.

    Returns:
        `model`, with plain linear layers.
    """
    for name, module in list(lora_modules(model)):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.merged_linear())
    return model


def adapt_backbone(backbone: nn.Module, node) -> None:
    """Inject adapters as `cfg.MODEL.LORA` says and freeze what lies under them."""
    if not node.ENABLED:
        return
    inject_lora(
        backbone,
        tuple(node.TARGETS),
        node.RANK,
        node.ALPHA,
        node.DROPOUT,
        tuple(node.BLOCKS) or None,
    )
    for name, parameter in backbone.named_parameters():
        is_norm = node.TRAIN_NORMS and ("norm" in name)
        parameter.requires_grad_("lora_" in name or is_norm)
