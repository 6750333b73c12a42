r"""Measure memory and time of a training step: LoRA and recomputation against full fine-tuning.

    python benchmarks/training.py --size B --crop 640 --batch 8 --precision bf16 --memory-only
    python benchmarks/training.py --official path/to/eomt --json training.json \
        --rows full full_heads stage4 stage4_last_half lora_all stage1 official

Memory is counted without computing: the network runs on fake tensors, which have shapes, types and
storages but no values, so any size takes seconds and no device. The losses run on random
predictions of the same shapes, because matching needs values; where a prediction's gradient is
taken at once (all rows but `full`, `lora`, `stage1_none` and `official`), nothing of them is kept.
Three figures per row:

- kept: bytes that autograd saves in the forward pass of network and losses, every storage once,
  parameters left out. On real tensors the count is the same, byte for byte, which the tests check.
- + gradients, AdamW: kept, plus the gradients and two moments of all trained parameters.
- peak: the most that is alive at once in the network's forward and backward pass, temporaries and
  recomputed pieces included; weights, AdamW's moments and the losses left out. Scratch memory
  inside a kernel is not seen.

A timed step is forward, losses, backward, clipping and AdamW, on real tensors. The rows take turns,
so that other work on the machine slows all of them alike; seconds are medians, and a ratio is the
median of the ratios within a turn, which drifts less. `--official` adds the model and the loss of a
checkout of github.com/tue-mps/eomt, with its attention masks.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import platform
import site
import statistics
import sys
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anoseg_d2.config import load_config
from anoseg_d2.modeling import EoMT, layer_losses, lora
from anoseg_d2.modeling.criterion import LossNormalizers, targets_from_sem_seg
from anoseg_d2.modeling.layer_losses import LayerLosses
from anoseg_d2.utils.constants import VIT_SIZES

CONFIGS = Path(__file__).parents[1] / "configs"
CLASSES_PER_IMAGE = 8
MIB = 2**20
NO_DIVISORS = LossNormalizers(1.0, 1.0, 1)

# The shipped config of each row, and what differs from it; size, crop and queries are options.
RECOMPUTE = "MODEL.EOMT.RECOMPUTE"
ROWS = {
    "full": ("arcface_full.yaml", [RECOMPUTE, "none"]),
    "full_heads": ("arcface_full.yaml", [RECOMPUTE, "heads"]),
    "full_all": ("arcface_full.yaml", [RECOMPUTE, "all"]),
    "lora": ("arcface_lora.yaml", [RECOMPUTE, "none"]),
    "stage4": ("arcface_lora.yaml", []),
    "stage4_last_half": ("arcface_lora.yaml", []),  # and the blocks, which depend on the size
    "lora_all": ("arcface_lora.yaml", [RECOMPUTE, "all"]),
    "stage1": ("eomt_baseline.yaml", []),
    "stage1_none": ("eomt_baseline.yaml", [RECOMPUTE, "none"]),
}
BASELINE = {"stage1": "official", "stage1_none": "official"}  # of all other rows: full


class Ours(EoMT):
    """The model of this project: its training step, and the two halves of it that are counted."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        batch = [
            {"image": image, "sem_seg": label} for image, label in zip(images, labels, strict=True)
        ]
        return sum(self(batch).values())

    def predict(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        if self.recompute == "none":
            return self.predict_masks(images)
        layers = LayerLosses(
            *(_Sums(), [], self.class_head, NO_DIVISORS),
            num_layers=self.num_blocks + 1,
            at_once=True,
        )
        predict = functools.partial(layers.predict, self._apply_heads)
        self.run_network(images, predict=predict)
        return [(loss,) for loss in layers.losses().values()]

    def score(self, predictions: list[tuple[Tensor, ...]], labels: Tensor) -> Tensor:
        if self.recompute != "none":
            return sum(loss for (loss,) in predictions)
        targets = [targets_from_sem_seg(label, self.criterion.num_classes) for label in labels]
        with torch.autocast(labels.device.type, enabled=False):
            return sum(self.criterion(predictions, targets, self.class_head).values())


class _Sums(nn.Module):
    """Losses without matching, which needs values: the network keeps as much for a plain sum."""

    def match_layers(self, predictions, targets):
        return [None]

    def layer_losses(self, prediction, *_):
        return {"loss": sum(part.float().sum() for part in prediction)}


class Official(nn.Module):
    """Model and loss of github.com/tue-mps/eomt, masks on, with Cityscapes' 19 classes."""

    def __init__(self, checkout: str, size: str, crop: int, queries: int):
        super().__init__()
        if not (Path(checkout) / "models" / "eomt.py").is_file():
            raise FileNotFoundError(
                f"--official {checkout} has no models/eomt.py; give a checkout of "
                "https://github.com/tue-mps/eomt"
            )
        site.addsitedir(checkout)  # not a package: its files import each other from its root
        from models.eomt import EoMT as OfficialEoMT
        from models.vit import ViT

        # Loaded by its file: its package, `training`, has the same name as this script.
        path = Path(checkout) / "training" / "mask_classification_loss.py"
        spec = importlib.util.spec_from_file_location("official_loss", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        base = VIT_SIZES[size]
        name = f"vit_{base.timm_name}_patch14_reg4_dinov2"
        # With a path of weights, which the class itself does not read, timm downloads nothing.
        encoder = ViT((crop, crop), backbone_name=name, ckpt_path="random")
        self.network = OfficialEoMT(encoder, 19, queries, base.num_blocks)
        self.criterion = module.MaskClassificationLoss(12544, 3.0, 0.75, 5.0, 5.0, 2.0, 19, 0.1)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.score(self.predict(images), labels)

    def predict(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(zip(*self.network(images / 255.0), strict=True))

    def score(self, predictions: list[tuple[Tensor, Tensor]], labels: Tensor) -> Tensor:
        targets = []
        for label in labels:
            classes = label.unique()
            classes = classes[classes != 255]
            targets.append({"masks": label[None] == classes[:, None, None], "labels": classes})
        losses = {}
        for layer, (masks, classes) in enumerate(predictions):
            with torch.autocast(labels.device.type, enabled=False):
                found = self.criterion(masks.float(), targets, classes.float())
            losses |= {f"{name}_{layer}": value for name, value in found.items()}
        return self.criterion.loss_total(losses, lambda *args, **kwargs: None)


class Row:
    """One side of the comparison: a model, its optimiser, and a step on a batch.

    Args:
        model: `loss(images, labels)` gives the loss; `predict(images)` and `score(predictions,
            labels)` are its halves.
        precision: "float32" or "bf16", of autocast.
    """

    def __init__(self, model: nn.Module, precision: str):
        self.model = model.train()
        self.half = precision == "bf16"
        self.trained = [p for p in model.parameters() if p.requires_grad]
        # As each project builds it: ours is `solver.build_optimizer`.
        fused = None if isinstance(model, Official) else True
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-6, weight_decay=0.05, fused=fused)

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16, enabled=self.half)

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Run one step and return its seconds."""
        start = time.perf_counter()
        with self.autocast():
            loss = self.model.loss(images, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 0.01)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    def state_bytes(self) -> int:
        """Return the bytes of the gradients and of AdamW's two moments."""
        return sum(3 * p.nbytes for p in self.trained)


class PeakBytes(TorchDispatchMode):
    """The most bytes alive at once among storages that operations create inside this context."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self._seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if _is_tensor(t)}
        for tensor in filter(_is_tensor, tree_leaves(results)):
            storage = tensor.untyped_storage()
            if storage._cdata not in given | self._seen:
                self._seen.add(storage._cdata)
                self.alive += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return results

    def _free(self, address: int, size: int) -> None:
        self._seen.remove(address)
        self.alive -= size


class FakeTensors(FakeTensorMode):
    """torch's fake tensors, with the statistics of layer norms in the type that kernels keep."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten.native_layer_norm.default:
            # Kernels keep mean and spread in float32; the fake operation says bf16.
            return results[0], *(statistic.float() for statistic in results[1:])
        return results


def _is_tensor(value) -> bool:
    return isinstance(value, Tensor)


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Count the bytes that autograd saves in this context, every storage once.

    What is no longer saved when `total` is asked for, because its gradient was taken at once, does
    not count.

    Args:
        left_out: tensors whose storages do not count: the parameters.
    """

    def __init__(self, left_out: Iterable[torch.Tensor]):
        # The storage itself, because fake tensors have one, but no data.
        self._left_out = {tensor.untyped_storage()._cdata for tensor in left_out}
        self._saved: weakref.WeakSet[_Saved] = weakref.WeakSet()
        super().__init__(self._pack, lambda saved: saved.tensor)

    def _pack(self, tensor: torch.Tensor) -> "_Saved":
        saved = _Saved(tensor)
        self._saved.add(saved)
        return saved

    @property
    def total(self) -> int:
        """Bytes that are saved at this moment."""
        storages = [saved.tensor.untyped_storage() for saved in self._saved]
        sizes = {storage._cdata: storage.nbytes() for storage in storages}
        return sum(size for address, size in sizes.items() if address not in self._left_out)


class _Saved:
    """A saved tensor. Autograd holds this in its place, so that it can be seen to let go of it."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


def count_memory(row: Row, images: Tensor, labels: Tensor) -> dict[str, int]:
    """Count a step's memory on fake tensors, in bytes.

    Args:
        row: with its model on the CPU; it is not changed.
        images: (B, 3, H, W) uint8.
        labels: (B, H, W) int64.
    Returns:
        `network` and `losses`: bytes that autograd keeps of each; `peak`: see the module's
        docstring.
    """
    parameters = list(row.model.parameters())
    with _fake_tensors(row.model) as fake, PeakBytes() as peak, row.autocast():
        copies = [fake.from_tensor(p) for p in parameters]
        with (network := SavedBytes([*parameters, *copies])):
            predictions = row.model.predict(fake.from_tensor(images))
        shapes = [[(part.shape, part.dtype) for part in layer] for layer in predictions]
        kept = network.total
        outputs = [part for layer in predictions for part in layer]
        del predictions
        torch.autograd.grad(outputs, row.trained, [torch.ones_like(o) for o in outputs])
    predictions = [
        tuple(torch.randn(shape, dtype=dtype).requires_grad_() for shape, dtype in layer)
        for layer in shapes
    ]
    with (losses := SavedBytes(parameters)), row.autocast():
        loss = row.model.score(predictions, labels)
    kept_of_losses = losses.total  # while `loss` holds it
    del loss
    return {"network": kept, "losses": kept_of_losses, "peak": peak.peak}


@contextlib.contextmanager
def _fake_tensors(model: nn.Module):
    """Enter fake tensors, with fixed answers to the three questions that need a value."""
    with contextlib.ExitStack() as stack:
        # A dropout mask's seed decides nothing about sizes.
        stack.enter_context(mock.patch.object(lora, "draw_seed", lambda: 0))
        # The losses arrive in the backward pass as their sum.
        stack.enter_context(mock.patch.object(layer_losses, "common_factor", lambda factors: 1.0))
        if isinstance(model, Official):
            # Whether queries are freed from their masks: never, at the start of a run.
            stack.enter_context(
                mock.patch.object(model.network, "_disable_attn_mask", lambda mask, _: mask)
            )
        yield stack.enter_context(FakeTensors(allow_non_fake_inputs=True))


def build_row(name: str, args: argparse.Namespace) -> Row:
    torch.manual_seed(0)
    if name == "official":
        return Row(Official(args.official, args.size, args.crop, args.queries), args.precision)
    config, overrides = ROWS[name]
    cfg = load_config(str(CONFIGS / config), ["MODEL.DEVICE", "cpu", *overrides])
    cfg.merge_from_list(["MODEL.EOMT.SIZE", args.size, "INPUT.CROP_SIZE", (args.crop, args.crop)])
    cfg.merge_from_list(["MODEL.EOMT.NUM_QUERIES", args.queries])
    if name == "stage4_last_half":
        depth = VIT_SIZES[args.size].depth
        cfg.MODEL.LORA.BLOCKS = [depth // 2, depth - 1]
    return Row(Ours(cfg), args.precision)


def draw_batch(count: int, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make noise images and label maps of cells, with the same number of classes in each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, crop, crop), generator=generator, dtype=torch.uint8)
    cells = torch.randint(CLASSES_PER_IMAGE, (count, 8, 8), generator=generator)
    cells.view(count, -1)[:, :CLASSES_PER_IMAGE] = torch.arange(CLASSES_PER_IMAGE)
    side = -(-crop // 8)
    labels = cells.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :crop, :crop]
    labels[..., -crop // 16 :] = 255
    return images, labels


def measure(name: str, row: Row, args: argparse.Namespace) -> dict:
    """Memory of one row, in bytes."""
    counts = count_memory(row, *draw_batch(args.batch, args.crop))
    kept = counts["network"] + counts["losses"]
    return {
        "row": name,
        "kept_bytes": kept,
        "kept_bytes_of_losses": counts["losses"],
        "state_bytes": row.state_bytes(),
        "memory_bytes": kept + row.state_bytes(),
        "peak_bytes": counts["peak"],
        "trained_parameters": sum(p.numel() for p in row.trained),
    }


def time_in_turns(rows: dict[str, Row], args: argparse.Namespace) -> dict[str, list[float]]:
    images, labels = draw_batch(args.batch, args.crop)
    seconds = {name: [] for name in rows}
    for turn in range(args.repeat + 1):
        for name, row in rows.items():
            elapsed = row.step(images, labels)
            if turn:  # the first turn warms up
                seconds[name].append(elapsed)
    return seconds


def print_table(results: dict[str, dict]) -> None:
    columns = ["row", "kept MiB", "+ gradients, AdamW MiB", "ratio", "peak MiB", "ratio"]
    columns += ["step s", "ratio", "against"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for name, result in results.items():
        cells = [name, f"{result['kept_bytes'] / MIB:,.0f}"]
        for key, ratio in (("memory_bytes", "memory_ratio"), ("peak_bytes", "peak_ratio")):
            cells += [f"{result[key] / MIB:,.0f}", _cell(result.get(ratio))]
        cells += [_cell(result.get("seconds"), 3), _cell(result.get("time_ratio"))]
        print("| " + " | ".join([*cells, result.get("against", "")]) + " |")


def _cell(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def add_ratios(results: dict[str, dict]) -> None:
    for name, result in results.items():
        base = results.get(BASELINE.get(name, "full"))
        if base is None or base is result or name == "official":
            continue
        result["against"] = base["row"]
        result["memory_ratio"] = result["memory_bytes"] / base["memory_bytes"]
        result["peak_ratio"] = result["peak_bytes"] / base["peak_bytes"]
        if "seconds" in result:
            pairs = zip(result["all_seconds"], base["all_seconds"], strict=True)
            result["time_ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="S", choices=["S", "B", "L"])
    parser.add_argument("--crop", type=int, default=352, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "official"], help="default: all")
    parser.add_argument("--official", help="checkout of github.com/tue-mps/eomt")
    parser.add_argument("--memory-only", action="store_true", help="run no timed step")
    parser.add_argument("--repeat", type=int, default=3, help="timed steps of each row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="write the figures to this file")
    return parser


def main():
    parser = build_parser()
    args = parser.parse_args()
    names = args.rows or [*ROWS, *(["official"] if args.official else [])]
    if "official" in names and not args.official:
        parser.error("row official needs --official PATH")
    torch.set_num_threads(args.threads)
    # Timed rows take turns, so all of them stay in memory.
    results, rows = {}, {}
    for name in names:
        row = build_row(name, args)
        results[name] = measure(name, row, args)
        mebibytes = results[name]["memory_bytes"] / MIB
        print(f"{name}: {mebibytes:,.0f} MiB counted", file=sys.stderr, flush=True)
        if not args.memory_only:
            rows[name] = row
    for name, values in time_in_turns(rows, args).items() if rows else ():
        results[name] |= {"seconds": statistics.median(values), "all_seconds": values}
    add_ratios(results)
    print_table(results)
    if args.json:
        facts = {"machine": platform.machine(), "torch": torch.__version__, "options": vars(args)}
        text = json.dumps({**facts, "rows": list(results.values())}, indent=1)
        Path(args.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
