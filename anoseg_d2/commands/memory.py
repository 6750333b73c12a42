"""Give a checkpoint a memory of normal patches, and with it the `memory` score. Nothing is trained.

    anoseg memory model_final.pth --images photos/ --output with_memory.pth
    anoseg memory hf://tue-mps/cityscapes_semantic_eomt_large_1024 \\
        --dataset cityscapes_19_train --output with_memory.pth

The checkpoint may be one of ours, of EoMT's authors or of transformers; the output is one of ours,
with adapters merged. --images takes photographs that show nothing unknown; --dataset takes a
registered dataset, and its labels leave out void and unknown patches. One image in ten stays out
of the memory: the mean and spread of the score on these put it on one scale with other scores in
ensembles such as `anomaly+memory`.
"""

import argparse
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch.nn import functional as F

from anoseg_d2.checkpoint import model_meta
from anoseg_d2.checkpoint.files import write_checkpoint
from anoseg_d2.checkpoint.identity import model_tensors
from anoseg_d2.data.builtin import DATASETS
from anoseg_d2.data.image_io import IMAGE_EXTENSIONS, read_image
from anoseg_d2.data.label_rules import load_label
from anoseg_d2.modeling.memory import PatchMemory, backbone_hash, choose_rows, memory_block
from anoseg_d2.modeling.windows import cut_windows, plan_windows
from anoseg_d2.prediction.predictor import AnomalyPredictor
from anoseg_d2.utils.cli import (
    Progress,
    add_import_option,
    add_verbosity_options,
    check_options,
    import_modules,
    run_command,
    say,
)
from anoseg_d2.utils.ranges import integer

# One image out of this many is left out of the memory, to measure the score on.
HELD_OUT = 10
OPTIONS = {"--rows": integer(1, 10**9), "--seed": integer(0, 2**63 - 1)}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("weights", help="checkpoint: file, folder or hf://owner/name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", nargs="+", metavar="DIR", help="folders of normal photographs")
    source.add_argument("--dataset", metavar="NAME", help="registered dataset")
    add("--output", required=True, help="checkpoint to write, .pth or .safetensors")
    add("--rows", type=int, default=8000, help="patches to keep (default: %(default)s)")
    add(
        "--coreset",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="spread the rows over all that the photographs show (greedy k-center, the default), "
        "or draw them at random",
    )
    add("--seed", type=int, default=0, help="of the choice of patches (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an existing output")
    add(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config keys and values, last",
    )
    add_import_option(parser)
    add_verbosity_options(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = build_parser().parse_args(arguments)
    return run_command(lambda: run(args), "stopped; nothing was written", args.verbosity)


def run(args: argparse.Namespace) -> None:
    check_options(args, OPTIONS)
    import_modules(args.imports)
    output = Path(args.output)
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output} exists; remove it or pass --overwrite")
    if output.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"--output {output} must end in .pth or .safetensors")
    records = find_records(args)
    model = AnomalyPredictor.from_pretrained(args.weights, args.opts).model
    block = memory_block(len(model.backbone.blocks), model.num_blocks)
    held_out = records[::HELD_OUT] if len(records) > 1 else records
    inside = [r for r in records if r not in held_out] or records
    generator = torch.Generator().manual_seed(args.seed)
    # A coreset chooses among three times as many candidates.
    wanted = args.rows * (3 if args.coreset else 1)
    tokens = collect_tokens(model, block, inside, wanted, generator)
    if args.coreset:
        say(f"choosing {min(args.rows, len(tokens))} of {len(tokens)} patches")
    rows = choose_rows(tokens, args.rows, generator, args.coreset)
    model.patch_maps["memory"] = PatchMemory(rows, block).to(model.device)
    mean, spread = measure(model, held_out)
    model.score_statistics = {**model.score_statistics, "memory": (mean, spread)}
    state = {name: tensor.detach() for name, tensor in model_tensors(model).items()}
    meta = model_meta(model)
    meta["memory"] = {"block": block, "backbone_sha256": backbone_hash(state, block)}
    write_checkpoint({"model": state, "meta": meta}, output)
    say(
        f"wrote {output}: {len(rows)} rows of {len(inside)} images; on {len(held_out)} others the "
        f"score of known pixels is {mean:.3f} +- {spread:.3f}"
    )


def find_records(args: argparse.Namespace) -> list[tuple]:
    """Return (image path, function that gives its known pixels (H, W) bool, or None)."""
    if args.dataset:
        if args.dataset not in DatasetCatalog.list():
            known = ", ".join(sorted(DATASETS))
            raise ValueError(f"--dataset {args.dataset!r} is not registered; known: {known}")
        metadata = MetadataCatalog.get(args.dataset)
        records = []
        for record in DatasetCatalog.get(args.dataset):
            label = record.get("sem_seg_file_name")
            records.append((record["file_name"], label and (label, metadata)))
        return records
    records = []
    for folder in map(Path, args.images):
        if not folder.is_dir():
            raise FileNotFoundError(f"--images {folder} is not a folder")
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_EXTENSIONS)
        records += [(path, None) for path in found]
    if not records:
        raise FileNotFoundError(f"no image in {', '.join(args.images)}")
    return records


def known_pixels(label) -> torch.Tensor | None:
    """Return which pixels are known, (H, W) bool; None where there is no label."""
    if label is None:
        return None
    path, metadata = label
    values = torch.from_numpy(load_label(path, metadata.label_rule).astype("int64"))
    if metadata.evaluator_type == "closed_set":
        # Pasted outliers have the value after the last known class.
        return values < len(metadata.stuff_classes)
    return values == 0


@torch.inference_mode()
def collect_tokens(model, block: int, records, wanted: int, generator) -> torch.Tensor:
    """Draw equally many known patch tokens of every image, about `wanted` in all: (P, C) half."""
    each = -(-wanted // len(records))
    kept = []
    with Progress("read", len(records)) as progress:
        for path, label in records:
            tokens = image_tokens(model, block, path, known_pixels(label))
            order = torch.randperm(len(tokens), generator=generator)[:each]
            kept.append(tokens[order].half())
            progress.update()
    tokens = torch.cat(kept)
    if len(tokens) == 0:
        raise ValueError("no patch without void or unknown pixels was found")
    return tokens


def image_tokens(model, block: int, path, known) -> torch.Tensor:
    """Return the known patch tokens of all windows of an image, (P, C) on the CPU."""
    image = torch.from_numpy(read_image(path)).permute(2, 0, 1)
    plan = plan_windows(tuple(image.shape[-2:]), model.image_size, model.window_overlap)
    crops = cut_windows(image, plan)
    unknown = torch.zeros(plan.resized)
    if known is not None:
        unknown = F.interpolate((~known).float()[None, None], size=plan.resized)[0, 0]
    found = []
    for crop, (y, x) in zip(crops, plan.origins, strict=True):
        _, tokens = model.run_network(crop[None].to(model.device), final_only=True, blocks=[block])
        height, width = plan.window
        mask = unknown[y : y + height, x : x + width]
        # A patch counts as known when no pixel of it is anything else.
        known_patch = F.max_pool2d(mask[None], model.patch_size)[0].flatten() == 0
        found.append(tokens[block][0].float().cpu()[known_patch])
    return torch.cat(found)


def measure(model, records) -> tuple[float, float]:
    """Return mean and standard deviation of the score over the known pixels of images."""
    count, total, squares = 0, 0.0, 0.0
    for path, label in records:
        image = torch.from_numpy(read_image(path)).permute(2, 0, 1)
        score = model([{"image": image}], score_names=["memory"])[0]["scores"]["memory"].cpu()
        known = known_pixels(label)
        values = (score if known is None else score[known]).double()
        count += values.numel()
        total += values.sum().item()
        squares += values.square().sum().item()
    mean = total / max(count, 1)
    return mean, max(squares / max(count, 1) - mean * mean, 0.0) ** 0.5
