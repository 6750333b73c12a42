"""Fit the memory of normal patches to photographs, for the `memory` score."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor
from torch.nn import functional as F

from anoseg_d2.checkpoint.metadata import model_tensors
from anoseg_d2.data.builtin import DATASETS
from anoseg_d2.data.image_io import read_image
from anoseg_d2.data.label_rules import load_label
from anoseg_d2.modeling.eomt import EoMT
from anoseg_d2.modeling.inference import unfiltered
from anoseg_d2.modeling.patch_heads import PatchMemory
from anoseg_d2.modeling.patch_heads.memory import (
    backbone_hash,
    choose_rows,
    leave_one_out,
    plain_blocks,
)
from anoseg_d2.modeling.patch_model import PatchModel
from anoseg_d2.modeling.scores import ensemble_parts
from anoseg_d2.modeling.windows import cut_windows, plan_windows
from anoseg_d2.utils.cli import Progress, say

# One image out of this many is left out of the memory, to measure the score on.
HELD_OUT = 10


def add_memory(
    model: EoMT | PatchModel,
    records: list[tuple],
    rows: int | None,
    seed: int,
    coreset: bool | None = None,
    settings: dict | None = None,
    blocks: Sequence[int] | None = None,
    unadapted: Mapping[str, Tensor] | None = None,
) -> str:
    """Give a model a memory of normal patches, and the statistics of its score.

    Args:
        model: changed in place.
        records: per image its path, and its label with the dataset's metadata, or None.
        rows: patches to keep; None: 8000, or 2000 of several blocks of an EoMT.
        seed: of the choice of patches.
        coreset: spread the rows (greedy k-center) instead of drawing them; None: if there is one
            block. Several are standardised by their rows, which then have to be a fair sample.
        settings: of the model, which its statistics hold for (`score_map_settings`).
        blocks: ViT blocks, counted from 0; None for `default_blocks`.
        unadapted: tensors of the checkpoint, where adapters were merged into the model's.
    Returns:
        a sentence on what was found.
    Raises:
        ValueError: the ViT has no such block.
    """
    blocks = check_blocks(model, blocks or default_blocks(model))
    # Comparing each patch in several blocks should not cost more than in one.
    rows = rows or (2000 if len(blocks) > 1 and isinstance(model, EoMT) else 8000)
    coreset = len(blocks) == 1 if coreset is None else coreset
    held_out = records[::HELD_OUT] if len(records) > 1 else records
    inside = [r for r in records if r not in held_out] or records
    generator = torch.Generator().manual_seed(seed)
    vit, kind = model.backbone, {"blocks": blocks}
    if isinstance(model, EoMT):
        kind["plain"] = plain_blocks(vit, model.num_blocks, blocks, unadapted)
    # Its plain blocks have to be there before there are rows.
    model.patch_maps["memory"] = PatchMemory(torch.ones(len(blocks), 1, vit.embed_dim), **kind)
    memory = model.patch_maps["memory"].to(model.device)
    # A coreset chooses among three times as many candidates.
    wanted = rows * (3 if coreset else 1)
    tokens, images = collect_tokens(model, memory.sources, inside, wanted, generator)
    if coreset:
        say(f"choosing {min(rows, len(images))} of {len(images)} patches")
    # Side by side, so that a cosine is the mean of those of the blocks.
    parts = [F.normalize(part.float(), dim=-1) for part in tokens] if len(blocks) > 1 else tokens
    kept = choose_rows(torch.cat([*parts], dim=-1), rows, generator, coreset)
    tokens = tokens[:, kept]
    kind["backbone_sha256"] = backbone_hash(model_tensors(model), memory.plain_from - 1)
    if len(blocks) > 1:
        kind["mean"], kind["spread"] = leave_one_out(tokens, images[kept])
    memory = PatchMemory(tokens if len(blocks) > 1 else tokens[0], **kind)
    model.patch_maps["memory"] = memory.to(model.device)
    with unfiltered(model):
        mean, spread = _measure(model, held_out)
    info = model.info
    known = info.statistics_settings is not None or not info.score_statistics
    model.info = dataclasses.replace(
        info,
        score_statistics={**info.score_statistics, "memory": (mean, spread)},
        statistics_settings=settings if known else None,  # unknown of one is unknown of all
        # Thresholds of scores that this memory takes no part in.
        thresholds={n: t for n, t in info.thresholds.items() if "memory" not in ensemble_parts(n)},
    )
    return (
        f"{len(kept)} rows of {len(inside)} images; on {len(held_out)} others the score of known "
        f"pixels is {mean:.3f} +- {spread:.3f}"
    )


def default_blocks(model: EoMT | PatchModel) -> tuple[int, ...]:
    """Return blocks 6, 9 and 12 of twelve, and the same fractions of other depths.

    Early blocks find what is odd anywhere in an image, the last one finds small objects.
    """
    depth = len(model.backbone.blocks)
    return tuple(sorted({max(round(depth * part) - 1, 0) for part in (1 / 2, 3 / 4, 1)}))


def check_blocks(model: EoMT | PatchModel, blocks: Sequence[int]) -> tuple[int, ...]:
    """Return the blocks in order, each once; raises ValueError, where they count from 1."""
    depth = len(model.backbone.blocks)
    if not all(0 <= block < depth for block in blocks):
        raise ValueError(
            f"--blocks {' '.join(str(block + 1) for block in blocks)}: this model has blocks 1 to "
            f"{depth}"
        )
    return tuple(sorted(set(blocks)))


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
def collect_tokens(
    model, sources: Sequence[int | str], records, wanted: int, generator
) -> tuple[Tensor, Tensor]:
    """Draw equally many known patches of every image, about `wanted` in all.

    Returns:
        their tokens of each source of a `PatchHead`, (M, P, C) half, and the number of their image,
        (P,) int64.
    """
    each = -(-wanted // len(records))
    kept, images = [], []
    with Progress("read", len(records)) as progress:
        for number, (path, label) in enumerate(records):
            tokens = _image_tokens(model, sources, path, _known_pixels(label))
            order = torch.randperm(tokens.shape[1], generator=generator)[:each]
            kept.append(tokens[:, order].half())
            images.append(torch.full_like(order, number))
            progress.update()
    tokens = torch.cat(kept, dim=1)
    if tokens.shape[1] == 0:
        raise ValueError("no patch without void or unknown pixels was found")
    return tokens, torch.cat(images)


def _image_tokens(model, sources: Sequence[int | str], path, known) -> Tensor:
    """Return the known patch tokens of all windows of an image, (M, P, C) on the CPU."""
    image = torch.from_numpy(read_image(path)).permute(2, 0, 1)
    plan = plan_windows(tuple(image.shape[-2:]), model.image_size, model.inference.window_overlap)
    crops = cut_windows(image, plan)
    unknown = torch.zeros(plan.resized)
    if known is not None:
        unknown = F.interpolate((~known).float()[None, None], size=plan.resized)[0, 0]
    found = []
    for crop, (y, x) in zip(crops, plan.origins, strict=True):
        _, tokens = model.run_network(crop[None].to(model.device), final_only=True, blocks=sources)
        height, width = plan.window
        mask = unknown[y : y + height, x : x + width]
        # A patch counts as known when no pixel of it is anything else.
        known_patch = F.max_pool2d(mask[None], model.patch_size)[0].flatten() == 0
        own = torch.stack([tokens[source][0] for source in sources])
        found.append(own.float().cpu()[:, known_patch])
    return torch.cat(found, dim=1)


def _measure(model, records) -> tuple[float, float]:
    """Return mean and standard deviation of the score over the known pixels of images."""
    count, total, squares = 0, 0.0, 0.0
    for path, label in records:
        image = torch.from_numpy(read_image(path)).permute(2, 0, 1)
        score = model([{"image": image}], score_names=["memory"])[0]["scores"]["memory"].cpu()
        known = _known_pixels(label)
        values = (score if known is None else score[known]).double()
        count += values.numel()
        total += values.sum().item()
        squares += values.square().sum().item()
    mean = total / max(count, 1)
    return mean, max(squares / max(count, 1) - mean * mean, 0.0) ** 0.5
