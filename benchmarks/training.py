"""Memory and time of a training step: LoRA and recomputation against full fine-tuning.

    python benchmarks/training.py --json training.json
    python benchmarks/training.py --size B --crop 640 --batch 8 --precision bf16 --repeat 3
    python benchmarks/training.py --size B --crop 640 --batch 8 --precision bf16 --memory-only
    python benchmarks/training.py --official path/to/eomt --rows stage1 official

Memory is what lives from the forward pass to the end of the step: bytes that autograd keeps (every
storage once, parameters left out), gradients, and AdamW's two moments. It is counted with one and
two images: what is kept grows by the same amount with every image, so the count of `--batch`
images follows exactly. The peak of a process is higher by temporaries, which are not counted.

A step is forward, losses, backward, clipping and AdamW. The rows take turns, so that other work on
the machine meets all of them; seconds are medians. `--official` adds the model and the loss of a
checkout of github.com/tue-mps/eomt, with its attention masks, as a row of its own.
"""

import argparse
import importlib.util
import json
import platform
import site
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from anoseg_d2.config import load_config
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.vit import vit_size

CLASSES_PER_IMAGE = 8

# Overrides over --size, --crop and --queries. Stage 3 is what the memory rows are compared with.
STAGE_3 = ["MODEL.HEAD.NAME", "arcface", "MODEL.EOMT.ANOMALY_CLASS", True]
STAGE_3 += ["MODEL.EOMT.MASKED_ATTENTION", False, "MODEL.CRITERION.VOID", "exclude"]
LORA = [*STAGE_3, "MODEL.LORA.ENABLED", True]
PLAIN_LORA = [*LORA, "MODEL.LORA.DROPOUT", 0.0]
HEADS = ["MODEL.EOMT.RECOMPUTE", "heads"]
ROWS = {
    "full": STAGE_3,
    "full_heads": [*STAGE_3, *HEADS],
    "full_all": [*STAGE_3, "MODEL.EOMT.RECOMPUTE", "all"],
    "lora_dropout": [*LORA, "MODEL.LORA.DROPOUT", 0.1],
    "lora": PLAIN_LORA,
    "lora_heads_dropout": [*LORA, *HEADS, "MODEL.LORA.DROPOUT", 0.1],
    "lora_heads": [*PLAIN_LORA, *HEADS],
    "lora_heads_last_half": [*PLAIN_LORA, *HEADS],  # and the blocks, which depend on the size
    "lora_all": [*PLAIN_LORA, "MODEL.EOMT.RECOMPUTE", "all"],
    "stage1": ["MODEL.EOMT.MASKED_ATTENTION", True],
}
BASELINE = {"stage1": "official"}  # of all other rows: full


class Row:
    """One side of the comparison: a model, its optimiser, and a step on a batch.

    Args:
        model: anything whose `compute_loss(images, labels)` gives a scalar.
        precision: "float32" or "bf16", of autocast.
    """

    def __init__(self, model: nn.Module, precision: str):
        self.model = model.train()
        self.half = precision == "bf16"
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-6, weight_decay=0.05)

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            return self.model.compute_loss(images, labels)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self.loss(images, labels).backward()
        nn.utils.clip_grad_norm_(self.trained, 0.01)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    def kept_bytes(self, images: torch.Tensor, labels: torch.Tensor) -> int:
        """Bytes that autograd keeps of a forward pass, parameters left out."""
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                # Holding the storage keeps its address from being used a second time.
                kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss(images, labels)
        return sum(storage.nbytes() for storage in kept.values())

    def state_bytes(self) -> int:
        """Bytes of gradients and of AdamW's two moments."""
        return sum(3 * p.numel() * p.element_size() for p in self.trained)


class Ours(EoMT):
    """The model of this project, as the trainer calls it."""

    def compute_loss(self, images, labels):
        batch = [{"image": i, "sem_seg": s} for i, s in zip(images, labels, strict=True)]
        return sum(self(batch).values())


class Official(nn.Module):
    """Model and loss of github.com/tue-mps/eomt, masks on, with Cityscapes' 19 classes."""

    def __init__(self, checkout: str, size: str, crop: int, queries: int):
        super().__init__()
        if not (Path(checkout) / "models" / "eomt.py").is_file():
            raise FileNotFoundError(f"--official {checkout} has no models/eomt.py: not a checkout")
        site.addsitedir(checkout)  # it is no package: its files import one another from its root
        from models.eomt import EoMT as OfficialEoMT
        from models.vit import ViT

        # By its file: the name of its package, `training`, is this script's own.
        path = Path(checkout) / "training" / "mask_classification_loss.py"
        spec = importlib.util.spec_from_file_location("official_loss", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        base = vit_size(size)
        name = f"vit_{base.timm_name}_patch14_reg4_dinov2"
        # A path of weights, which the class does not read itself, keeps timm from a download.
        encoder = ViT((crop, crop), backbone_name=name, ckpt_path="random")
        self.network = OfficialEoMT(encoder, 19, queries, base.num_blocks)
        self.criterion = module.MaskClassificationLoss(12544, 3.0, 0.75, 5.0, 5.0, 2.0, 19, 0.1)

    def compute_loss(self, images, labels):
        targets = []
        for label in labels:
            classes = label.unique()
            classes = classes[classes != 255]
            targets.append({"masks": label[None] == classes[:, None, None], "labels": classes})
        losses = {}
        for layer, (masks, classes) in enumerate(
            zip(*self.network(images.float() / 255.0), strict=True)
        ):
            with torch.autocast("cpu", enabled=False):
                found = self.criterion(masks.float(), targets, classes.float())
            losses |= {f"{name}_{layer}": value for name, value in found.items()}
        return self.criterion.loss_total(losses, lambda *args, **kwargs: None)


def build_row(name: str, args: argparse.Namespace) -> Row:
    torch.manual_seed(0)
    if name == "official":
        return Row(Official(args.official, args.size, args.crop, args.queries), args.precision)
    cfg = load_config("", ["MODEL.DEVICE", "cpu", "MODEL.EOMT.SIZE", args.size])
    cfg.merge_from_list(["INPUT.CROP_SIZE", (args.crop, args.crop)])
    cfg.merge_from_list(["MODEL.EOMT.NUM_QUERIES", args.queries, *ROWS[name]])
    if name == "lora_heads_last_half":
        depth = vit_size(args.size).depth
        cfg.MODEL.LORA.BLOCKS = [depth // 2, depth - 1]
    return Row(Ours(cfg), args.precision)


def draw_batch(count: int, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise images and label maps of cells; every image has the same number of classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, crop, crop), generator=generator, dtype=torch.uint8)
    cells = torch.randint(CLASSES_PER_IMAGE, (count, 8, 8), generator=generator)
    cells.view(count, -1)[:, :CLASSES_PER_IMAGE] = torch.arange(CLASSES_PER_IMAGE)
    side = -(-crop // 8)
    labels = cells.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :crop, :crop]
    labels[..., -crop // 16 :] = 255
    return images, labels


def measure(name: str, row: Row, args: argparse.Namespace) -> dict:
    """Memory of one row, in bytes, for `args.batch` images."""
    images, labels = draw_batch(2, args.crop)
    one, two = row.kept_bytes(images[:1], labels[:1]), row.kept_bytes(images, labels)
    kept = one + (two - one) * (args.batch - 1)
    return {
        "row": name,
        "kept_bytes": kept,
        "kept_bytes_per_image": two - one,
        "state_bytes": row.state_bytes(),
        "memory_bytes": kept + row.state_bytes(),
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
    print("| row | kept MiB | + gradients, AdamW MiB | ratio | step s | ratio | against |")
    print("|---|---|---|---|---|---|---|")
    for name, result in results.items():
        cells = [name, f"{result['kept_bytes'] / 2**20:,.0f}"]
        cells.append(f"{result['memory_bytes'] / 2**20:,.0f}")
        cells.append(_cell(result.get("memory_ratio")))
        cells += [_cell(result.get("seconds"), 3), _cell(result.get("time_ratio"))]
        print("| " + " | ".join([*cells, result.get("against", "")]) + " |")


def _cell(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def add_ratios(results: dict[str, dict]) -> None:
    for name, result in results.items():
        base = results.get(BASELINE.get(name, "full"))
        if base is None or base is result:
            continue
        result["against"] = base["row"]
        result["memory_ratio"] = result["memory_bytes"] / base["memory_bytes"]
        if "seconds" in result:
            result["time_ratio"] = result["seconds"] / base["seconds"]


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
    # Timed rows stay in memory together, because they take turns.
    results, rows = {}, {}
    for name in names:
        row = build_row(name, args)
        results[name] = measure(name, row, args)
        mebibytes = results[name]["memory_bytes"] / 2**20
        print(f"{name}: {mebibytes:,.0f} MiB", file=sys.stderr, flush=True)
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
