"""Inference on an image of any size: windows, linear maps, native size, scores.

Every score is a pointwise function of a few maps that are linear in the sigmoid of the mask
logits. So windows merge maps, one resize brings them to native size, and the formulas come last.

Shape letters: n windows, Q queries, M channels of all maps together, (h, w) window, (H, W) output.
"""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from anoseg_d2.modeling import scores
from anoseg_d2.modeling.windows import (
    WindowMerger,
    WindowPlan,
    cut_windows,
    plan_windows,
    resize_rows,
)

__all__ = ["infer_image", "is_out_of_memory", "smaller_batch"]

logger = logging.getLogger(__name__)

# Floats that one strip of mask logits or linear maps may hold at once: 4 Mi of them are 16 MiB, and
# what is made of them needs a few times as much. Larger strips are slower: they leave the cache.
STRIP_ELEMENTS = 4 * 2**20

# Devices other than CUDA raise a plain RuntimeError, which only its message tells apart.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


@torch.no_grad()
def infer_image(model: nn.Module, sample: dict) -> dict:
    """Segment and score one image.

    Args:
        model: an `EoMT`; its `window_batch` is lowered when memory runs out, and stays lowered.
        sample: `image` (3, H, W) uint8 RGB of any size, with optional `height` and `width` of the
            output.
    Returns:
        `sem_seg` (H, W) int64, `scores` {name: (H, W) float32}, `confidence` (H, W) float32.
    """
    image = sample["image"]
    plan = plan_windows(image.shape[-2:], model.image_size, model.window_overlap)
    maps, channels = window_maps(model, cut_windows(image, plan), plan)
    size = (sample.get("height", image.shape[-2]), sample.get("width", image.shape[-1]))
    return read_maps(model, maps, channels, size)


def window_maps(model: nn.Module, crops: Tensor, plan: WindowPlan) -> tuple[Tensor, dict]:
    """Run the model on windows (n, 3, h, w) and merge their maps.

    Returns:
        maps (M, H, W) at the resized image's size, and the number of channels of each named map.
    """
    merger, done, channels = WindowMerger(plan), 0, {}
    while done < len(crops):
        part = crops[done : done + (model.window_batch or len(crops))]
        try:
            for maps, named in _maps_of(model, part):
                merger.add(maps, done)
                done, channels = done + 1, named
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            model.window_batch = smaller_batch(len(part), plan, error)
    return merger.mean(), channels


def _maps_of(model: nn.Module, crops: Tensor) -> Iterator[tuple[Tensor, dict]]:
    """Yield the maps (M, h, w) of one window after the other, and the channels of each map."""
    mask_logits, stacked, channels = model.predict_coefficients(crops.to(model.device))
    size = tuple(crops.shape[-2:])
    for logits, coefficients in zip(mask_logits.float(), stacked, strict=True):
        maps = logits.new_empty(coefficients.shape[-1], *size)
        for start, stop in _strips(size, len(logits)):
            strip = resize_rows(logits, size, start, stop)
            maps[:, start:stop] = scores.combine_masks(coefficients[None], strip[None])[0]
        yield maps, channels


def read_maps(model: nn.Module, maps: Tensor, channels: dict, size: tuple[int, int]) -> dict:
    """Resize maps (M, H', W') to the output size and evaluate the formulas, strip by strip."""
    sem_seg = maps.new_empty(size, dtype=torch.int64)
    confidence = maps.new_empty(size)
    score_maps = {name: maps.new_empty(size) for name in model.score_names}
    for start, stop in _strips(size, len(maps)):
        values = model.read_scores(resize_rows(maps, size, start, stop)[None], channels)
        sem_seg[start:stop] = values["sem_seg"][0]
        confidence[start:stop] = values["confidence"][0]
        for name, value in values["scores"].items():
            score_maps[name][start:stop] = value[0]
    for function in model.postprocess:
        score_maps = {name: function(value, sem_seg) for name, value in score_maps.items()}
    return {"sem_seg": sem_seg, "scores": score_maps, "confidence": confidence}


def _strips(size: tuple[int, int], channels: int) -> Iterator[tuple[int, int]]:
    """Rows start..stop that split (channels, H, W) values into strips of STRIP_ELEMENTS."""
    height, width = size
    rows = max(1, STRIP_ELEMENTS // (channels * width))
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch raised `error` for want of memory, on any device."""
    words = str(error).lower()
    is_cuda = isinstance(error, torch.cuda.OutOfMemoryError)
    return is_cuda or any(phrase in words for phrase in _NO_MEMORY)


def smaller_batch(windows: int, plan: WindowPlan, error: RuntimeError) -> int:
    """Half as many windows per forward, said in the log.

    Args:
        windows: how many did not fit.
        plan: of the image at hand.
        error: what torch raised.
    Raises:
        RuntimeError: not even one window fits; the cause is `error`.
    """
    if windows == 1:
        height, width = plan.window
        raise RuntimeError(
            f"out of memory with a single window of {height}x{width} (image resized to "
            f"{plan.resized[0]}x{plan.resized[1]}); a smaller INPUT.CROP_SIZE, fewer "
            f"TEST.ANOMALY.SCORES, or MODEL.DEVICE cpu needs less: {error}"
        ) from error
    logger.warning(
        "out of memory with %d windows per forward; going on with INPUT.WINDOW_BATCH %d",
        windows,
        windows // 2,
    )
    return windows // 2
