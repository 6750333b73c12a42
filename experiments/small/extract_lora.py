"""Write what a training changed in a ViT as LoRA adapters on the ViT as it was published.

The change of each layer's weight is cut to its largest singular values. A budget of numbers is
spent where a rank brings most: squared singular values per stored number, over all layers together.
With --rank every adapter has the same rank instead, which is what MODEL.LORA.RANK trains on with.

Biases and norms are stored as they are; class token, positions and patch kernel, which hardly move,
are those of the ViT again. `anoseg convert --to adapter --base dinov2-s` then stores the result
without the ViT.

    python experiments/small/extract_lora.py output/small/arcface_full/model_final.pth \\
        --base dinov2-s --numbers 1300000 --output output/small/low_rank.pth
"""

import argparse
from collections import Counter

import torch
from torch import Tensor

from anoseg_d2.checkpoint import read_checkpoint
from anoseg_d2.checkpoint.adapters import fit_vit
from anoseg_d2.checkpoint.files import write_checkpoint
from anoseg_d2.checkpoint.metadata import meta_of_checkpoint

LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def choose_ranks(changes: dict[str, list[tuple]], numbers: int) -> Counter:
    """Return the rank of each layer: of all parts of a fused layer the same."""
    gains = []
    for name, parts in changes.items():
        cost = sum(len(u) + v.shape[1] for u, _, v in parts)
        values = sum(s.square() for _, s, _ in parts)
        gains += [(float(value) / cost, name, cost) for value in values]
    ranks, spent = Counter(), 0
    for _, name, cost in sorted(gains, reverse=True):
        if spent + cost > numbers:
            break
        ranks[name] += 1
        spent += cost
    return ranks


def extract(
    state: dict[str, Tensor], base: dict[str, Tensor], numbers: int, rank: int = 0
) -> tuple[dict, dict]:
    """Return the tensors of the model with adapters, and how each adapted layer is described."""
    layers = [n for n in base if n.endswith(tuple(f"{layer}.weight" for layer in LAYERS))]
    changes = {}
    for name in layers:
        parts = (state[name].float() - base[name]).chunk(3 if "qkv" in name else 1)
        changes[name] = [torch.linalg.svd(part, full_matrices=False) for part in parts]
    ranks = dict.fromkeys(layers, rank) if rank else choose_ranks(changes, numbers)
    kept, modules = 0.0, {}
    tensors = {**state, **{name: base[name] for name in layers}}
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        tensors[f"backbone.{name}"] = base[f"backbone.{name}"]
    for name, rank in ranks.items():
        module, parts = name.removesuffix(".weight"), changes[name]
        factors = [(s[:rank].sqrt(), u[:, :rank], v[:rank]) for u, s, v in parts]
        tensors[f"{module}.lora_A"] = torch.cat([s[:, None] * v for s, _, v in factors])
        tensors[f"{module}.lora_B"] = torch.cat([u * s for s, u, _ in factors])
        enable = [True] * 3 if len(parts) == 3 else None
        modules[module] = {"rank": rank, "alpha": float(rank), "enable": enable}
        kept += sum(float(s[:rank].square().sum()) for _, s, _ in parts)
    whole = sum(float(s.square().sum()) for parts in changes.values() for _, s, _ in parts)
    print(
        f"{len(ranks)} of {len(layers)} layers, ranks {min(ranks.values())} to "
        f"{max(ranks.values())}; {kept / whole:.0%} of the squared change is kept"
    )
    return tensors, modules


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", help="of a network that was trained as a whole")
    parser.add_argument("--base", default="dinov2-s", help="the ViT that it started from")
    parser.add_argument("--numbers", type=int, default=1_300_000, help="in all adapters together")
    parser.add_argument("--rank", type=int, default=0, help="one rank for all, to train them on")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    checkpoint = read_checkpoint(args.weights)
    meta = meta_of_checkpoint(checkpoint)
    fitted = fit_vit(read_checkpoint(args.base), meta)
    base = {name: tensor for name, tensor in fitted.items() if name in checkpoint.state_dict}
    tensors, modules = extract(checkpoint.state_dict, base, args.numbers, args.rank)
    largest = max(module["rank"] for module in modules.values())
    meta["lora"] = {"rank": largest, "alpha": float(largest), "dropout": 0.0, "modules": modules}
    meta["frozen"] = [name for name in base if torch.equal(tensors[name].float(), base[name])]
    write_checkpoint({"model": tensors, "meta": meta}, args.output)


if __name__ == "__main__":
    main()
