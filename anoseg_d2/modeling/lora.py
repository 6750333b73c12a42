"""Low-rank adapters on the linear layers of a vision transformer, built on loralib.

"LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685). Departures from loralib:
A is Gaussian with standard deviation 1 / r, weights are never merged behind the caller's back, the
fused qkv layer multiplies its low-rank factors instead of building their full product, and the
backward pass keeps one copy of a layer's input (`_LowRankLinear`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import loralib
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from anoseg_d2.utils.options import check_options, names_of, option
from anoseg_d2.utils.ranges import integer, number, one_of, sequence

LORA_TARGETS = ("q", "k", "v", "proj", "fc1", "fc2")
_QKV = ("q", "k", "v")


@dataclass(frozen=True)
class LoraOptions:
    """Which layers of the ViT get adapters, and of what kind."""

    enabled: bool = option(False, says="freeze the ViT and train low-rank adapters in it")
    targets: tuple[str, ...] = option(
        list(LORA_TARGETS), sequence(one_of(*LORA_TARGETS)), "the layers that get adapters"
    )
    rank: int = option(8, integer(1, 100_000), "rank of an adapter")
    alpha: float = option(
        16.0, number(0, above=True), "an adapter's output is multiplied by ALPHA / RANK"
    )
    dropout: float = option(0.1, number(0, 0.99), "dropout on the input of the adapters")
    blocks: tuple[int, ...] = option(
        [],
        sequence(integer(0), (0, 2), ascending=True),
        "[first, last] ViT block with adapters, inclusive; empty: all",
    )
    train_norms: bool = option(False, says="train the layer norms of the ViT too")
    lr_factor: float = option(3.0, number(0, 1000), "adapters' learning rate / BASE_LR")

    def __post_init__(self):
        check_options(self)
        if not self.targets:
            name = names_of(self, "targets")[0]
            raise ValueError(f"{name} is empty; give some of {', '.join(LORA_TARGETS)}")

    def check_fits(self, depth: int, width: int) -> None:
        """Raise ValueError if a ViT of `depth` blocks and `width` channels has no such adapters."""
        if self.rank > width:
            raise ValueError(f"MODEL.LORA.RANK is {self.rank}; the ViT's width allows 1..{width}")
        if self.blocks and self.blocks[1] >= depth:
            raise ValueError(
                f"MODEL.LORA.BLOCKS is {list(self.blocks)}; the ViT has blocks 0..{depth - 1}"
            )


class _LowRankLinear(torch.autograd.Function):
    """Compute W x + b + s B A dropout(x), keeping only x and A dropout(x) for the backward pass.

    Written with plain operations, autograd keeps x twice (with dropout: as it is and thinned out),
    a dropout mask, and a copy of W in the type of mixed precision. Here the mask is drawn again
    from its seed and W is converted again; both cost far less than one matrix product.
    The tests compare it with plain operations: same values and gradients.

    Without dropout, W + s B A is multiplied, as in the merged layer: a sum of the size of W costs
    less than two passes over the output, and only x is kept. In mixed precision the sum is taken
    in float32 and rounded once, as a weight that is trained itself is.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, lora_a, lora_b, scaling, parts, dropout, seed):
        ctx.options = scaling, parts, dropout, seed
        bias = None if bias is None else bias.to(x.dtype)
        if not dropout:
            ctx.save_for_backward(x, None, weight, lora_a, lora_b)
            return F.linear(
                x, merged_weight(weight, lora_a, lora_b, scaling, parts).to(x.dtype), bias
            )
        rows = x.flatten(0, -2)
        # Both scalings go into the small factors, so that nothing of the size of x is scaled.
        factor_a, factors_b = _scaled_factors(x, lora_a, lora_b, scaling, len(parts), dropout)
        low = (rows * draw_kept(rows, dropout, seed)) @ factor_a.T
        result = F.linear(x, weight.to(x.dtype), bias)
        outputs = result.flatten(0, -2)
        for columns, part, factor in zip(parts, low.chunk(len(parts), 1), factors_b, strict=True):
            outputs[:, columns].addmm_(part, factor.T)
        ctx.save_for_backward(x, low, weight, lora_a, lora_b)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, low, weight, lora_a, lora_b = ctx.saved_tensors
        scaling, parts, dropout, seed = ctx.options
        rows, grad = x.flatten(0, -2), grad.flatten(0, -2)
        factor_a, factors_b = _scaled_factors(x, lora_a, lora_b, scaling, len(parts), dropout)
        low = rows @ factor_a.T if low is None else low
        grad_low, grad_b = torch.empty_like(low), torch.empty_like(factors_b)
        pieces = zip(parts, low.chunk(len(parts), 1), grad_low.chunk(len(parts), 1), strict=True)
        for index, (columns, part, grad_part) in enumerate(pieces):
            torch.mm(grad[:, columns], factors_b[index], out=grad_part)
            torch.mm(grad[:, columns].T, part, out=grad_b[index])
        keep = draw_kept(rows, dropout, seed) if dropout else None
        grad_a = grad_low.T @ (rows if keep is None else rows * keep)
        grad_x = None
        if ctx.needs_input_grad[0] and keep is None:
            merged = merged_weight(weight, lora_a, lora_b, scaling, parts)
            grad_x = (grad @ merged.to(x.dtype)).view_as(x)
        elif ctx.needs_input_grad[0]:
            grad_x = (grad_low @ factor_a).mul_(keep)
            grad_x = grad_x.addmm_(grad, weight.to(x.dtype)).view_as(x)
        grad_a = grad_a.to(lora_a.dtype).div_(_kept_share(dropout))
        grad_b = grad_b.view_as(lora_b).to(lora_b.dtype).mul_(scaling)
        return grad_x, None, None, grad_a, grad_b, None, None, None, None


def merged_weight(
    weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, parts: Sequence[slice]
) -> Tensor:
    """Return W + s B A.

    Args:
        weight: W, (out, in), of the fused layer.
        lora_a: A of every adapted part, one after the other, (len(parts) r, in).
        lora_b: B of every adapted part, (rows of all parts, r).
        scaling: s, alpha / r.
        parts: rows of W that each adapter changes.
    Returns:
        (out, in) in the type of W.
    """
    merged = weight.clone()
    factors = zip(parts, lora_a.chunk(len(parts)), lora_b.chunk(len(parts)), strict=True)
    for columns, factor_a, factor_b in factors:
        merged[columns].addmm_(factor_b, factor_a, alpha=scaling)
    return merged


def _scaled_factors(x, lora_a, lora_b, scaling, parts, dropout) -> tuple[Tensor, Tensor]:
    """Return A / (1 - dropout), (parts * r, in), and s B, (parts, rows of a part, r), as x is."""
    rank = lora_a.shape[0] // parts
    factors_b = (lora_b * scaling).to(x.dtype).view(parts, -1, rank)
    return (lora_a / _kept_share(dropout)).to(x.dtype), factors_b


def draw_seed() -> int:
    """Seed of one layer's dropout mask. From the host: reading one from a GPU would wait for it."""
    return int(torch.randint(2**31, ()))


def _kept_share(dropout: float) -> float:
    """Return what dropout keeps, as exactly as 16 random bits can say it."""
    return 1 - round(dropout * 2**16) / 2**16


def draw_kept(x: Tensor, dropout: float, seed: int) -> Tensor:
    """Draw which values dropout keeps: bool of the shape of x, the same for the same seed.

    One random number of 64 bits decides on four values, which is several times faster on CPUs than
    a random float for each.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    words.random_(-(2**63), 2**63 - 1, generator=generator)
    quarters = words.view(torch.int16)[: x.numel()].view(x.shape)
    return quarters >= round(dropout * 2**16) - 2**15


class _Adapted:
    """Base of both adapted layers: their forward, explicit merging, wrapping a layer."""

    parts: list[slice]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        # loralib's dropout is a module, or a plain function where the rate is 0.
        dropout = getattr(self.lora_dropout, "p", 0.0) if self.training else 0.0
        seed = draw_seed() if dropout else 0
        with torch.autocast(x.device.type, enabled=False):
            return _LowRankLinear.apply(
                x,
                self.weight,
                self.bias,
                self.lora_A,
                self.lora_B,
                self.scaling,
                self.parts,
                dropout,
                seed,
            )

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
        factors = self.lora_A, self.lora_B, self.scaling, self.parts
        linear.weight.copy_(merged_weight(self.weight, *factors))
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear.train(self.training)


def _loralib_options(linear: nn.Linear, rank: int, alpha: float, dropout: float) -> dict:
    options = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "merge_weights": False}
    sizes = {"in_features": linear.in_features, "out_features": linear.out_features}
    return {**sizes, **options, "bias": linear.bias is not None}


class LoRALinear(_Adapted, loralib.Linear):
    """W x + b + (alpha / r) B A dropout(x), with W and b frozen."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float):
        loralib.Linear.__init__(self, **_loralib_options(linear, rank, alpha, dropout))
        self.parts = [slice(0, linear.out_features)]
        self._take_over(linear)


class LoRAMergedLinear(_Adapted, loralib.MergedLinear):
    """The fused qkv layer with an adapter for each of q, k and v that is enabled."""

    def __init__(
        self, linear: nn.Linear, rank: int, alpha: float, dropout: float, enabled: list[bool]
    ):
        options = _loralib_options(linear, rank, alpha, dropout)
        loralib.MergedLinear.__init__(self, enable_lora=enabled, **options)
        width = linear.out_features // len(enabled)
        self.parts = [slice(i * width, (i + 1) * width) for i, on in enumerate(enabled) if on]
        self._take_over(linear)


def inject_lora(
    model: nn.Module,
    targets: tuple[str, ...] = LORA_TARGETS,
    rank: int = LoraOptions.rank,
    alpha: float = LoraOptions.alpha,
    dropout: float = LoraOptions.dropout,
    blocks: tuple[int, int] | tuple[()] | None = None,
) -> list[str]:
    """Replace linear layers of timm ViT blocks with adapted ones, in place.

    The weights and biases of these layers are frozen; the caller decides what else trains.

    Args:
        model: any module that holds timm ViT blocks (`attn.qkv`, `attn.proj`, `mlp.fc1`,
            `mlp.fc2`).
        targets, rank, alpha, dropout, blocks: fields of `LoraOptions`; `blocks` None is all.
    Returns:
        names of the replaced layers.
    Raises:
        ValueError: an option out of its range, no ViT block, a block that does not exist, or
            layers that are already adapted.
    """
    options = LoraOptions(
        targets=targets, rank=rank, alpha=alpha, dropout=dropout, blocks=blocks or ()
    )
    found = list(_vit_blocks(model))
    if not found:
        raise ValueError("found no timm ViT block (attn.qkv, mlp.fc1, ...) to adapt in this model")
    options.check_fits(len(found), found[0][1].attn.qkv.in_features)
    first, last = options.blocks or (0, len(found) - 1)
    replaced = []
    for prefix, block in found[first : last + 1]:
        replaced += [f"{prefix}.{name}" for name in _adapt_block(block, options)]
    return replaced


def _vit_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        attention = getattr(module, "attn", None)
        if attention is not None and hasattr(attention, "qkv") and hasattr(module, "mlp"):
            yield name, module


def _adapt_block(block: nn.Module, options: LoraOptions) -> list[str]:
    how = options.rank, options.alpha, options.dropout
    enabled = [part in options.targets for part in _QKV]
    names = ["attn.qkv"] if any(enabled) else []
    names += [
        f"{parent}.{name}"
        for parent, name in (("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2"))
        if name in options.targets
    ]
    for name in names:
        parent, child = name.split(".")
        owner = getattr(block, parent)
        linear = getattr(owner, child, None)
        if isinstance(linear, _Adapted):
            raise ValueError(f"layer {name} already has an adapter; call merge_lora first")
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"layer {name} of a ViT block is {type(linear).__name__}, not Linear")
        if name == "attn.qkv":
            _call_qkv(owner)
            adapted = LoRAMergedLinear(linear, *how, enabled)
        else:
            adapted = LoRALinear(linear, *how)
        setattr(owner, child, adapted)
    return names


def _call_qkv(attention: nn.Module) -> None:
    """Make timm's attention call `qkv` instead of reading its weight directly."""
    if getattr(attention, "q_bias", None) is None:
        return
    if not hasattr(attention, "qkv_bias_separate"):
        raise ValueError(
            f"{type(attention).__name__} reads attn.qkv.weight itself: an adapter of q, k or v "
            "would do nothing; leave them out of the targets"
        )
    attention.qkv_bias_separate = True


def lora_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of each layer of `model` that carries an adapter."""
    for name, module in model.named_modules():
        if isinstance(module, _Adapted):
            yield name, module


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return only the adapters' A and B, under their names in `model.state_dict()`."""
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


def adapt_backbone(backbone: nn.Module, options: LoraOptions) -> None:
    """Insert the adapters that the options ask for and freeze the rest of the backbone."""
    if not options.enabled:
        return
    names = ("targets", "rank", "alpha", "dropout", "blocks")
    inject_lora(backbone, **{name: getattr(options, name) for name in names})
    for name, parameter in backbone.named_parameters():
        is_norm = options.train_norms and ("norm" in name)
        parameter.requires_grad_("lora_" in name or is_norm)
