"""Fit the memory of normal patches to photographs, for the `memory` score."""

import dataclasses

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor
from torch.nn import functional as F

from anoseg_d2.checkpoint.metadata import model_tensors
from anoseg_d2.data.builtin import DATASETS
from anoseg_d2.data.image_io import read_image
from anoseg_d2.data.label_rules import load_label
from anoseg_d2.modeling.inference import unfiltered
from anoseg_d2.modeling.patch_heads import PatchMemory, free_block
from anoseg_d2.modeling.patch_heads.memory import backbone_hash, choose_rows
from anoseg_d2.modeling.windows import cut_windows, plan_windows
from anoseg_d2.utils.cli import Progress, say

__all__ = ["HELD_OUT", "add_memory", "collect_tokens", "labelled_records"]

# One image out of this many is left out of the memory, to measure the score on.
HELD_OUT = 10


def add_memory(
    model, records: list[tuple], rows: int, seed: int, coreset: bool, settings: dict | None = None
) -> str:
    """Give a model a memory of normal patches, and the statistics of its score.

    Args:
        model: `EoMT`, changed in place.
        records: per image its path, and its label with the dataset's metadata, or None.
        rows: patches to keep.
        seed: of the choice of patches.
        coreset: spread the rows (greedy k-center) instead of drawing them.
        settings: of the model, which its statistics hold for (`score_map_settings`).
    Returns:
        a sentence on what was found.
    """
    block = free_block(len(model.backbone.blocks), model.num_blocks)
    held_out = records[::HELD_OUT] if len(records) > 1 else records
    inside = [r for r in records if r not in held_out] or records
    generator = torch.Generator().manual_seed(seed)
    # A coreset chooses among three times as many candidates.
    tokens = collect_tokens(model, block, inside, rows * (3 if coreset else 1), generator)
    if coreset:
        say(f"choosing {min(rows, len(tokens))} of {len(tokens)} patches")
    kept = choose_rows(tokens, rows, generator, coreset)
    made_by = backbone_hash(model_tensors(model), block)
    memory = PatchMemory(kept, block, backbone_sha256=made_by)
    model.patch_maps["memory"] = memory.to(model.device)
    with unfiltered(model):
        mean, spread = _measure(model, held_out)
    info = model.info
    known = info.statistics_settings is not None or not info.score_statistics
    model.info = dataclasses.replace(
        info,
        score_statistics={**info.score_statistics, "memory": (mean, spread)},
        statistics_settings=settings if known else None,  # unknown of one is unknown of all
    )
    return (
        f"{len(kept)} rows of {len(inside)} images; on {len(held_out)} others the score of known "
        f"pixels is {mean:.3f} +- {spread:.3f}"
    )


def labelled_records(name: str) -> list[tuple]:
    """Return the images of a registered dataset as `add_memory` takes them.

    Raises:
        ValueError: no dataset has this name.
    """
    if name not in DatasetCatalog.list():
        known = ", ".join(sorted(DATASETS))
        raise ValueError(f"--dataset {name!r} is not registered; known: {known}")
    metadata = MetadataCatalog.get(name)
    records = []
    for entry in DatasetCatalog.get(name):
        label = entry.get("sem_seg_file_name")
        records.append((entry["file_name"], label and (label, metadata)))
    return records


def _known_pixels(label) -> Tensor | None:
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
def collect_tokens(model, block: int, records, wanted: int, generator) -> Tensor:
    """Draw equally many known patch tokens of every image, about `wanted` in all: (P, C) half."""
    each = -(-wanted // len(records))
    kept = []
    with Progress("read", len(records)) as progress:
        for path, label in records:
            tokens = _image_tokens(model, block, path, _known_pixels(label))
            order = torch.randperm(len(tokens), generator=generator)[:each]
            kept.append(tokens[order].half())
            progress.update()
    tokens = torch.cat(kept)
    if len(tokens) == 0:
        raise ValueError("no patch without void or unknown pixels was found")
    return tokens


def _image_tokens(model, block: int, path, known) -> Tensor:
    """Return the known patch tokens of all windows of an image, (P, C) on the CPU."""
    image = torch.from_numpy(read_image(path, labelled=known is not None)).permute(2, 0, 1)
    plan = plan_windows(tuple(image.shape[-2:]), model.image_size, model.inference.window_overlap)
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


def _measure(model, records) -> tuple[float, float]:
    """Return mean and standard deviation of the score over the known pixels of images."""
    count, total, squares = 0, 0.0, 0.0
    for path, label in records:
        image = torch.from_numpy(read_image(path, labelled=bool(label))).permute(2, 0, 1)
        score = model([{"image": image}], score_names=["memory"])[0]["scores"]["memory"].cpu()
        known = _known_pixels(label)
        values = (score if known is None else score[known]).double()
        count += values.numel()
        total += values.sum().item()
        squares += values.square().sum().item()
    mean = total / max(count, 1)
    return mean, max(squares / max(count, 1) - mean * mean, 0.0) ** 0.5
