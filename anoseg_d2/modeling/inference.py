"""Run inference on images of any size: windows, linear maps, native size, scores.

Every score is a pointwise function of a few maps, most of them linear in the sigmoid of the mask
logits (`scores`). So windows merge maps, one resize brings them to native size, and the formulas
come last. All of this happens strip by strip (`strips`).

Only the network runs in mixed precision, if anything does. What follows is float32, because
bfloat16 has 8 bits of precision, and thousands of pixels would share one score.

Shape letters: n windows, Q queries, M channels of all maps together, (h, w) mask logits of a
window, (H, W) output.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from anoseg_d2.modeling import scores
from anoseg_d2.modeling.filters import GuidedFilter
from anoseg_d2.modeling.strips import View, WindowPrediction, native_rows, strips
from anoseg_d2.modeling.windows import (
    WindowPlan,
    cut_windows,
    plan_windows,
    resize_image,
    resize_rows,
)
from anoseg_d2.utils.config_files import flat_items
from anoseg_d2.utils.constants import VOID
from anoseg_d2.utils.options import check_options, keys_of, names_of, option
from anoseg_d2.utils.ranges import integer, number, sequence, text

# Windows per forward pass where INPUT.WINDOW_BATCH is 0.
MOST_WINDOWS = 8
# Options of inference that change no score map. Every other one does: a new option is compared
# with what thresholds and statistics were measured at unless it is named here.
NEUTRAL_KEYS = ("TEST.ANOMALY.SCORES", "INPUT.WINDOW_BATCH")
# The one that comes after an ensemble has divided its parts.
FILTER_KEY = "TEST.ANOMALY.GUIDED_FILTER"


@dataclass(frozen=True)
class InferenceOptions:
    """How a model segments and scores images; `EoMT.inference` is replaced as a whole.

    Args:
        dtype: type of mixed precision that the network uses; None for none.
    """

    scores: tuple[str, ...] = option(
        [],
        sequence(text(empty=False)),
        'scores to evaluate, or ensembles such as "rba+anomaly"; empty: all that the model offers',
        key="TEST.ANOMALY.SCORES",
    )
    guided_filter: float = option(
        0.0,
        number(0, 4),
        "radius, in patches, of the filter that aligns scores with image edges; 0: none",
        key="TEST.ANOMALY.GUIDED_FILTER",
    )
    window_overlap: float = option(
        0.0,
        number(0, 0.95),
        "minimum overlap of neighbouring windows, as a fraction of a window",
        key="TEST.WINDOW_OVERLAP",
    )
    window_taper: bool = option(
        False,
        says="where windows overlap, trust each less towards its borders, where it lacks context",
        key="TEST.WINDOW_TAPER",
    )
    flip: bool = option(
        False,
        says="average with the mirrored image: every window twice, twice the time",
        key="TEST.FLIP",
    )
    scales: tuple[float, ...] = option(
        (1.0,),
        sequence(number(1, 8), (1, 2, 3, 4)),
        "average scores over these scales; at 2 a window covers half the length that it does at 1",
        key="TEST.SCALES",
    )
    second_look: float = option(
        0.0,
        number(0, 8),
        "scale at which windows are looked at once more if they hold a suspicion; 0: none",
        key="TEST.SECOND_LOOK.SCALE",
    )
    suspicion: str = option(
        "anomaly",
        text(empty=False),
        "score that raises the suspicion",
        key="TEST.SECOND_LOOK.SCORE",
    )
    suspicious: float = option(
        0.5,
        number(),
        "a window is looked at again if this score reaches so much at any of its pixels",
        key="TEST.SECOND_LOOK.ABOVE",
    )
    window_batch: int = option(
        0,
        integer(0, 10_000, "0: up to 8"),
        "largest number of windows in one forward pass, over all images",
        key="INPUT.WINDOW_BATCH",
    )
    query_tolerance: float = option(
        1e-4,
        number(0, 0.1),
        "queries that change no map by more than this are left out before masks are enlarged",
        key="TEST.QUERY_TOLERANCE",
    )
    dtype: torch.dtype | None = None

    def __post_init__(self):
        check_options(self)
        if 0 < self.second_look < 1:
            (name,) = names_of(self, "second_look")
            raise ValueError(f"{name} is {self.second_look}; it must be 0 or at least 1")

    def plan(self, size: tuple[int, int], window: tuple[int, int], scale: float) -> WindowPlan:
        """Place windows (h, w) on an image (H, W) at one of the scales."""
        return plan_windows(
            size, window, self.window_overlap, self.flip, scale, taper=self.window_taper
        )


def score_map_settings(config: dict, filters: bool = True) -> dict[str, Any]:
    """Return what a config says of the keys that change a score map, as plain values.

    Args:
        config: config node, or the nested dicts of one that was stored; it may lack keys.
        filters: with that of the guided filter.
    """
    values = dict(flat_items(config))
    # These two are not options of inference, but no less a part of what is measured.
    keys = [*keys_of("", InferenceOptions), "TEST.AMP", "INPUT.CROP_SIZE"]
    left_out = NEUTRAL_KEYS if filters else (*NEUTRAL_KEYS, FILTER_KEY)
    keys = [key for key in keys if key not in left_out and key in values]
    return {key: list(v) if isinstance(v := values[key], tuple) else v for key in keys}


def differing(then: dict[str, Any], now: dict[str, Any]) -> str:
    """List the settings that something was measured at and that are others now; "" if none are."""
    return ", ".join(
        f"{key} was {then[key]}, is {now[key]}"
        for key in then
        if key in now and then[key] != now[key]
    )


@contextlib.contextmanager
def unfiltered(model: nn.Module) -> Iterator[None]:
    """Switch a model's filter off: an ensemble divides its parts before they are filtered."""
    options = model.inference
    model.inference = replace(options, guided_filter=0.0)
    try:
        yield
    finally:
        model.inference = options


def infer_images(
    model: nn.Module,
    samples: list[dict],
    score_names: Iterable[str] | None = None,
    as_bytes: bool = True,
) -> list[dict]:
    """Segment and score images; windows of several images share a forward pass.

    Args:
        model: an `EoMT` or a `PatchModel`.
        samples: per image `image` (3, H, W) RGB 0..255 of any size, uint8 or float, with optional
            `height` and `width` of the output.
        score_names: scores to give; None for the model's own.
        as_bytes: round images of floats to whole numbers first, as photographs are stored. An
            exported file gets stretched images as they are, so its check leaves them so, too.
    Returns:
        per image `sem_seg` (H, W) int64 argmax over the known classes, `scores` {name: (H, W)
        float32} and `confidence` (H, W) float32 in 0..1. Of a model without classes: 255 and 0.
    Raises:
        ValueError: the model cannot give a score, or `plan_windows` refuses an image.
    """
    names = model.check_scores(score_names) if score_names else model.score_names
    options = model.inference
    # What raises the suspicion is computed whether or not anybody wants to see it.
    looked = model.check_scores([options.suspicion]) if options.second_look else []
    looked = list(dict.fromkeys([*names, *looked]))
    photos = [sample["image"] for sample in samples]
    if as_bytes:  # detectron2's DefaultPredictor gives floats; windows are resized as bytes.
        photos = [
            photo if photo.dtype == torch.uint8 else photo.round().clamp(0, 255).to(torch.uint8)
            for photo in photos
        ]
    plans = [
        [options.plan(tuple(photo.shape[-2:]), model.image_size, scale) for scale in options.scales]
        for photo in photos
    ]
    results = []
    with torch.inference_mode():
        predictions = _predict_all(model, photos, plans, looked)
        for sample, photo, own in zip(samples, photos, plans, strict=True):
            views = [View(plan, list(islice(predictions, len(plan.origins)))) for plan in own]
            height, width = photo.shape[-2:]
            size = (sample.get("height", height), sample.get("width", width))
            with torch.autocast(model.device.type, enabled=False):
                result = _read_image(model, views, size, looked)
            if options.second_look:
                _look_again(model, photo, result["scores"])
            found = {name: result["scores"][name] for name in names}
            if options.guided_filter > 0:
                radius = filter_radius(model, own[0], size)
                with torch.autocast(model.device.type, enabled=False):
                    guide = GuidedFilter(resize_image(photo, size)[None].to(model.device), radius)
                    found = {name: guide(value[None])[0] for name, value in found.items()}
            result["scores"] = found
            results.append(result)
    return results


def _predict_all(model, photos, plans, names) -> Iterator[WindowPrediction]:
    """Yield the prediction of every window of every plan in order, a batch at a time."""
    crops = (
        crop_and_flip
        for photo, own in zip(photos, plans, strict=True)
        for plan in own
        for crop_and_flip in zip(cut_windows(photo, plan), plan.flipped, strict=True)
    )
    while batch := list(islice(crops, model.inference.window_batch or MOST_WINDOWS)):
        images = torch.stack([crop for crop, _ in batch]).to(model.device)
        mask_logits, coefficients, patch_maps = predict_windows(model, images, names)
        for index, (_, flipped) in enumerate(batch):
            own = {name: value[index] for name, value in coefficients.items()}
            # Masks are most of the work that follows, and most queries claim nothing.
            order = choose_queries(own, model.inference.query_tolerance)
            window = WindowPrediction(
                mask_logits[index][order].permute(1, 2, 0).contiguous(),
                {name: value.shape[-1] for name, value in own.items()},
                torch.cat([value[order] for value in own.values()], dim=-1).T,
                {name: value[index] for name, value in patch_maps.items()},
            )
            yield window.flip() if flipped else window


def predict_windows(
    model: nn.Module, images: Tensor, names: Iterable[str]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Run the network on windows and compute what all maps are built from.

    Args:
        model: an `EoMT`.
        images: (B, 3, H, W) RGB 0..255 of the model's `image_size`.
        names: names of scores.
    Returns:
        mask logits (B, Q, h, w), coefficients {linear map: (B, Q, M)} and patch maps
        {patch map: (B, M, rows, columns)}, all float32.
    """
    read = {name for score in scores.single_scores(names) for name in scores.SCORES[score].maps}
    parts = {name: module for name, module in model.patch_maps.items() if name in read}
    blocks = {source for module in parts.values() for source in module.sources}
    precision, kind = model.inference.dtype, images.device.type
    with torch.autocast(kind, precision) if precision else contextlib.nullcontext():
        predictions, tokens = model.run_network(images, final_only=True, blocks=blocks)
    mask_logits, class_logits = predictions[-1]
    with torch.autocast(kind, enabled=False):
        coefficients = scores.linear_coefficients(class_logits, model.num_known, names)
        tokens = {block: value.float() for block, value in tokens.items()}
        grid = model.backbone.patch_embed.grid_size
        patch_maps = {name: module(tokens, grid) for name, module in parts.items()}
    return mask_logits.float(), coefficients, patch_maps


def choose_queries(coefficients: dict[str, Tensor], tolerance: float) -> Tensor:
    """Choose the queries that matter to any of the maps.

    A mask is at most 1, so the queries that are left out change a map by at most the sum of their
    coefficients, which stays below `tolerance` in every channel.

    Args:
        coefficients: {linear map: (Q, M)} of one window, including `probs`.
        tolerance: bound on the error of every map; 0 keeps every query.
    Returns:
        (Q',) int64, at least one if there is any, with the queries most certain of an object first.
    """
    order = coefficients["probs"].sum(dim=-1).argsort(descending=True)
    if len(order) == 0:  # a bare backbone
        return order
    # Entry n bounds what a map loses without query n and all after it.
    every = torch.cat(list(coefficients.values()), dim=-1)[order].abs().double()
    left = every.flip(0).cumsum(0).flip(0).amax(dim=-1)
    return order[: max(1, int((left >= tolerance).sum()))]


def _read_image(model, views: list[View], size, names) -> dict:
    """Compute the maps of an image strip by strip, resize them, and evaluate the formulas."""
    sem_seg = views[0].windows[0].mask_logits.new_empty(size, dtype=torch.int64)
    confidence = sem_seg.new_empty(size, dtype=torch.float32)
    score_maps = {name: torch.zeros_like(confidence) for name in names}
    for start, stop in strips(views, size):
        probs = 0
        for view in views:
            maps, channels = native_rows(view, size, start, stop)
            parts = maps[None].split(list(channels.values()), dim=1)
            named = dict(zip(channels, parts, strict=True))
            # Not of the mean of the maps: a sum of log odds needs the agreement of all scales.
            for name, value in read_scores(model, named, names).items():
                score_maps[name][start:stop] += value[0] / len(views)
            probs += named["probs"] / len(views)
        sem_seg[start:stop], confidence[start:stop] = (x[0] for x in read_classes(model, probs))
    return {"sem_seg": sem_seg, "scores": score_maps, "confidence": confidence}


def _look_again(model, photo: Tensor, found: dict[str, Tensor]) -> None:
    """Add one more scale to scores {name: (H, W)} in place, where any window holds a suspicion.

    A small object covers more patches there, and most of an image need not be enlarged for it. At a
    pixel the new scale counts for as much as the weight of the windows that were looked at is of
    the weight of all windows there: where every one was, the result is the mean of all scales.
    """
    options, size = model.inference, found[model.inference.suspicion].shape
    whole = options.plan(tuple(photo.shape[-2:]), model.image_size, options.second_look)
    height, width = whole.window
    # Weight of all windows and of those chosen, at every pixel of the enlarged image.
    total = torch.zeros(2, *whole.resized)
    weights = whole.weights[0][:, None] * whole.weights[1]
    suspected = (found[options.suspicion] >= options.suspicious).cpu()
    down, right = (out / side for out, side in zip(size, whole.resized, strict=True))
    chosen = []
    for index, (y, x) in enumerate(whole.origins):
        rows = slice(int(y * down), math.ceil((y + height) * down))
        columns = slice(int(x * right), math.ceil((x + width) * right))
        looked = bool(suspected[rows, columns].any())
        chosen += [index] * looked
        total[: 1 + looked, y : y + height, x : x + width] += weights
    if not chosen:
        return
    origins, flipped = ([of[i] for i in chosen] for of in (whole.origins, whole.flipped))
    plan = whole._replace(origins=origins, flipped=flipped)
    windows = list(_predict_all(model, [photo], [[plan]], list(found)))
    with torch.autocast(model.device.type, enabled=False):
        closer = _read_image(model, [View(plan, windows)], size, list(found))["scores"]
    share = resize_rows((total[1:] / total[:1]).to(model.device), size, 0, size[0])[0]
    count = len(options.scales)
    for name, score in found.items():
        score += (closer[name] - score) * (share / (count + share))


def filter_radius(model, plan: WindowPlan, size: tuple[int, int]) -> float:
    """Return the radius of the model's guided filter in pixels of the output.

    Args:
        model: an `EoMT`.
        plan: of the first scale.
        size: (H, W) of the output.
    """
    # The longer sides, because rounding changes their ratio least.
    enlarged = max(plan.resized) / model.inference.scales[0] / max(size)
    return model.inference.guided_filter * model.patch_size / enlarged


def read_scores(model: nn.Module, maps: dict[str, Tensor], names: Iterable[str]) -> dict:
    """Evaluate the formulas on merged maps {name: (B, M, H, W)}: {score name: (B, H, W)}."""
    statistics = model.info.score_statistics
    return scores.scores_from_maps(maps, model.num_known, names, statistics)


def read_classes(model: nn.Module, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Segment by the merged map of class probabilities.

    Args:
        model: an `EoMT` or a `PatchModel`.
        probs: (B, K or more, H, W).
    Returns:
        argmax over the known classes, int64, and its confidence, both (B, H, W).
    """
    known = probs[:, : model.num_known]
    if model.num_known == 0:
        nothing = probs.new_zeros(probs.shape[0], *probs.shape[2:])
        return torch.full_like(nothing, VOID, dtype=torch.int64), nothing
    best, total = known.amax(dim=1), known.sum(dim=1)
    if torch.compiler.is_exporting():
        sem_seg = known.argmax(dim=1)
    else:  # the same, ten times as fast on CPUs, where torch does not vectorise it
        last = model.num_known - 1
        kind = torch.uint8 if last < 256 else torch.int32
        # The first of equal classes has the highest number, counted from the last class.
        number = torch.arange(last, -1, -1, dtype=kind, device=known.device)[:, None, None]
        sem_seg = last - (number * (known == best[:, None])).amax(dim=1).long()
    # The maximum of `known_distribution`, to the bit: rounding keeps the order of its classes.
    return sem_seg, best / total.clamp(min=1) + (1 - total).clamp(min=0) / model.num_known
