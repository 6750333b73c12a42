"""Anomaly scores are pointwise functions of a few maps, most of them linear in the masks.

Shape letters: B images, Q queries, K known classes, R class rows `[known, (anomaly), no-object]`,
M channels of a map, (H, W) pixels.

With m = sigmoid(mask logits), p = softmax(class logits) over all rows and L the class logits
themselves, a linear map is `sum_q c[q] m[q]` for some coefficients c per query. Windows are merged
and resized as maps, and a score is a small pure function of the result. Higher scores are more
anomalous; everything is float32. The formulas below write P_c = sum_q p[q, c] m[q] and
G_c = sum_q relu(L[q, c] - L[q, no-object]) m[q].

Some maps do not come from the masks but from patch heads (`PATCH_HEADS`), under the names of these;
windows merge them in the same way.

`rba+anomaly` is the ensemble of two (or more) scores: the mean of their z-scores, with mean and
spread measured once on closed-set images, so that metrics pooled over images stay meaningful.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from anoseg_d2.modeling.patch_heads import PATCH_HEADS
from anoseg_d2.utils.registry import Registry

# name -> function of (class_logits (B, Q, R), K) that returns coefficients (B, Q, M).
LINEAR_MAPS = Registry("linear map")
SCORES = Registry("score")
# Smallest probability of the anomaly class that `odds` tells from none: ten times the error that
# TEST.QUERY_TOLERANCE allows by default.
ODDS_FLOOR = 1e-3


class Score(NamedTuple):
    """A registered score.

    formula: maps `{name: (B, M, H, W)}` and K -> (B, H, W).
    maps: names in `LINEAR_MAPS` or `PATCH_HEADS` that the formula reads.
    needs_anomaly: whether the model must have the learned anomaly class.
    learned: whether it reads something that was trained on outliers.
    """

    formula: Callable[[dict[str, Tensor], int], Tensor]
    maps: tuple[str, ...]
    needs_anomaly: bool
    learned: bool


def register_score(
    name: str,
    maps: Iterable[str] = ("probs",),
    needs_anomaly: bool = False,
    learned: bool | None = None,
):
    """Return a decorator that adds a score to `SCORES`.

    Args:
        name: name of the score.
        maps: names in `LINEAR_MAPS` or `PATCH_HEADS` that the formula reads.
        needs_anomaly: the model must have the learned anomaly class.
        learned: the score reads something that was trained on outliers; None: as needs_anomaly.
    Raises:
        ValueError: the name is taken, or a map is unknown.

    Example::

        @register_score("second_best")
        def second_best(maps, num_known):
            return -maps["probs"][:, :num_known].topk(2, dim=1).values[:, 1]
    """
    maps = tuple(maps)

    def add(formula):
        for map_name in maps:
            if map_name not in PATCH_HEADS:
                LINEAR_MAPS[map_name]
        was_learned = needs_anomaly if learned is None else learned
        SCORES.register(name)(Score(formula, maps, needs_anomaly, was_learned))
        return formula

    return add


@LINEAR_MAPS.register("probs")
def _probs(class_logits: Tensor, num_known: int) -> Tensor:
    return class_logits.softmax(dim=-1)[..., :-1]  # what is no object adds to no pixel


@LINEAR_MAPS.register("logit_gap")
def _logit_gap(class_logits: Tensor, num_known: int) -> Tensor:
    # Logits are defined up to a constant per query; the gap to no-object is not.
    return (class_logits[..., :num_known] - class_logits[..., -1:]).relu()


@LINEAR_MAPS.register("raw_logits")
def _raw_logits(class_logits: Tensor, num_known: int) -> Tensor:
    return class_logits[..., :num_known]


@LINEAR_MAPS.register("uno")
def _uno(class_logits: Tensor, num_known: int) -> Tensor:
    probs = class_logits.softmax(dim=-1)
    best_known = probs[..., :num_known].amax(dim=-1, keepdim=True)
    return probs[..., num_known : num_known + 1] - best_known


@register_score("msp")
def msp(maps: dict[str, Tensor], num_known: int) -> Tensor:
    """1 - max_c P_c over the known classes.

    Range: at most 1; 0 where one mask claims the pixel with certainty, below 0 where several masks
    of one class overlap. "A Baseline for Detecting Misclassified and Out-of-Distribution Examples
    in Neural Networks" (arXiv:1610.02136), carried over from pixels to masks.
    """
    return 1 - maps["probs"][:, :num_known].amax(dim=1)


@register_score("max_logit", maps=("logit_gap",))
def max_logit(maps: dict[str, Tensor], num_known: int) -> Tensor:
    """-max_c G_c over the known classes.

    Range: at most 0, without a lower bound. "Scaling Out-of-Distribution Detection for Real-World
    Settings" (arXiv:1911.11132). Departure: the gap to no-object replaces the bare logit, because
    a query's logits are defined only up to a constant.
    """
    return -maps["logit_gap"].amax(dim=1)


@register_score("max_logit_raw", maps=("raw_logits",))
def max_logit_raw(maps: dict[str, Tensor], num_known: int) -> Tensor:
    """-max_c sum_q L[q, c] m[q] over the known classes: max-logit on the logits as they are.

    Range: any real number. The form that mask-classification papers print; it changes when a
    constant is added to a query's logits, which changes no prediction.
    """
    return -maps["raw_logits"].amax(dim=1)


@register_score("energy", maps=("logit_gap",))
def energy(maps: dict[str, Tensor], num_known: int) -> Tensor:
    """-logsumexp_c G_c over the known classes.

    Range: at most -log K, without a lower bound. "Energy-based Out-of-distribution Detection"
    (arXiv:2010.03759), on the gap to no-object like `max_logit`.
    """
    return -maps["logit_gap"].logsumexp(dim=1)


@register_score("entropy")
def entropy(maps: dict[str, Tensor], num_known: int) -> Tensor:
    """H(pi) / log K, where pi is `known_distribution` of the class maps.

    Range: 0 for one confident mask to 1 for a pixel that no mask claims. Softmax entropy as in
    "Entropy Maximization and Meta Classification for Out-of-Distribution Detection in Semantic
    Segmentation" (arXiv:2012.06575), on a distribution derived from masks.
    """
    pi = known_distribution(maps["probs"][:, :num_known])
    # The clamp turns 0 log 0 into 0 and is several times faster than torch.xlogy.
    plogp = pi * pi.clamp(min=torch.finfo(pi.dtype).tiny).log()
    return plogp.sum(dim=1) / -torch.log(torch.tensor(float(num_known), device=pi.device))


@register_score("rba")
def rba(maps: dict[str, Tensor], num_known: int) -> Tensor:
    """-sum_c tanh(P_c) over the known classes.

    Range: -K to 0; -tanh(1) = -0.76 for one confident mask, 0 for a pixel that no mask claims.
    "RbA: Segmenting Unknown Regions Rejected by All" (arXiv:2211.14293).
    """
    return -maps["probs"][:, :num_known].tanh().sum(dim=1)


@register_score("rba_sum")
def rba_sum(maps: dict[str, Tensor], num_known: int) -> Tensor:
    """1 - sum_c P_c over the known classes: rejected by all, without the squashing tanh.

    Range: at most 1; 0 for one confident mask, below 0 where masks overlap. Equation 6 of the
    paper that this project implements.
    """
    return 1 - maps["probs"][:, :num_known].sum(dim=1)


@register_score("anomaly", needs_anomaly=True)
def anomaly(maps: dict[str, Tensor], num_known: int) -> Tensor:
    """P_K = sum_q p[q, K] m[q]: the learned anomaly class, trained by outlier exposure.

    Range: 0 to 1 for one confident mask, above 1 where several anomaly masks overlap.
    """
    return maps["probs"][:, num_known]


@register_score("uno", maps=("uno",), needs_anomaly=True)
def uno(maps: dict[str, Tensor], num_known: int) -> Tensor:
    """sum_q m[q] (p[q, K] - max_{c < K} p[q, c]): the learned class against the best known one.

    Range: -1 to 1 where one mask claims the pixel. "Outlier detection by ensembling uncertainty
    with negative objectness" (UNO, arXiv:2402.15374).
    """
    return maps["uno"][:, 0]


@register_score("memory", maps=("memory",))
def memory(maps: dict[str, Tensor], num_known: int) -> Tensor:
    """1 - max over known patch tokens of their cosine with this patch's token.

    Range: 0 for a patch of the memory to 2. See `PatchMemory`.
    """
    return maps["memory"][:, 0]


@register_score("ratio", maps=("ratio",), learned=True)
def ratio(maps: dict[str, Tensor], num_known: int) -> Tensor:
    """log p(unknown) - log p(known) of a patch, by a small head on its tokens.

    Range: any real number; above 0 where unknown is more likely. See `RatioHead`.
    """
    return maps["ratio"][:, 0]


@register_score("odds", maps=("probs", "ratio"), needs_anomaly=True)
def odds(maps: dict[str, Tensor], num_known: int) -> Tensor:
    """log P_K / (1 - P_K) + ratio: the log odds of the learned class and of the ratio head, added.

    Range: any real number. Evidence from two sources adds up in log odds, as if they were
    independent: the masks know outlines, and the head was shown many more pasted objects. P_K is
    clamped to `ODDS_FLOOR`..1 - `ODDS_FLOOR`, or the faintest mask would decide. See `ratio`; the
    sum is measured in experiments/beyond.
    """
    return _log_odds(maps, num_known) + maps["ratio"][:, 0]


@register_score("joint", maps=("probs", "memory"), needs_anomaly=True)
def joint(maps: dict[str, Tensor], num_known: int) -> Tensor:
    """log P_K / (1 - P_K) + 2 memory: the learned class and the distance to normal patches, added.

    Range: any real number. The two err in different places: one was shown pasted objects, the other
    only normal photographs. The memory has to be in standard units, or its weight in the sum would
    mean nothing. See `odds` and `PatchMemory`; weights are compared in experiments/small/road_s.
    """
    return _log_odds(maps, num_known) + 2 * maps["memory"][:, 0]


def _log_odds(maps: dict[str, Tensor], num_known: int) -> Tensor:
    # Overlapping masks may add up to more than 1.
    learned = maps["probs"][:, num_known].clamp(ODDS_FLOOR, 1 - ODDS_FLOOR)
    return (learned / (1 - learned)).log()


def is_implicit(name: str) -> bool:
    """Return whether a score, or every part of an ensemble, uses nothing trained on outliers.

    Raises:
        ValueError: an unknown name.
    """
    return not any(SCORES[part].learned for part in ensemble_parts(name))


def known_distribution(probs: Tensor) -> Tensor:
    """Return a distribution over the K known classes at every pixel.

    pi_c = P_c / max(S, 1) + max(0, 1 - S) / K with S = sum_c P_c: mass that no mask claims is
    spread evenly, and mass beyond 1 is scaled down.

    Args:
        probs: P (B, K, H, W), not negative.
    Returns:
        (B, K, H, W), sums to 1.
    """
    total = probs.sum(dim=1, keepdim=True)
    return probs / total.clamp(min=1) + (1 - total).clamp(min=0) / probs.shape[1]


def available_scores(
    has_anomaly: bool, names: Iterable[str] | None = None, patch_maps: Iterable[str] = ()
) -> list[str]:
    """Return the names of the scores that a model can give, in the registry's order.

    Args:
        has_anomaly: whether it has the anomaly class.
        names: the scores asked for, which keep their order; None or empty for all that apply.
        patch_maps: names in `PATCH_HEADS` of the maps that the model makes of its patch tokens.
    Raises:
        ValueError: an unknown name, or a score that needs what the model does not have.
    """
    asked = list(names or [])
    for name in single_scores(asked):
        if SCORES[name].needs_anomaly and not has_anomaly:
            raise ValueError(
                f"score {name!r} needs a model with the anomaly class "
                "(MODEL.EOMT.ANOMALY_CLASS True); this one has known classes only"
            )
        for map_name in SCORES[name].maps:
            if map_name in PATCH_HEADS and map_name not in patch_maps:
                raise ValueError(
                    f"score {name!r} needs a model with {map_name!r}, which this one does not "
                    f"have: {PATCH_HEADS[map_name].wanted}"
                )
    return asked or [
        name
        for name, score in SCORES.items()
        if (has_anomaly or not score.needs_anomaly)
        and all(m in patch_maps or m not in PATCH_HEADS for m in score.maps)
    ]


def ensemble_parts(name: str) -> list[str]:
    """Return the scores that `name` is made of: itself, or the parts of `first+second`."""
    # A registered name may hold a plus itself.
    return name.split("+") if name not in SCORES else [name]


def single_scores(names: Iterable[str]) -> list[str]:
    """Return the registered scores behind `names`, each once, ensembles taken apart."""
    return list(dict.fromkeys(part for name in names for part in ensemble_parts(name)))


def linear_coefficients(
    class_logits: Tensor, num_known: int, names: Iterable[str]
) -> dict[str, Tensor]:
    """Compute the coefficients of the linear maps that the named scores read, and of `probs`.

    Args:
        class_logits: (B, Q, R).
        num_known: K.
        names: names of scores.
    Returns:
        `{map name: (B, Q, M)}` float32.
    """
    logits = class_logits.float()
    read = [name for score in single_scores(names) for name in SCORES[score].maps]
    # `probs` always: the segmentation is read from it. Other names are those of patch heads.
    wanted = dict.fromkeys(["probs", *(name for name in read if name in LINEAR_MAPS)])
    return {name: LINEAR_MAPS[name](logits, num_known) for name in wanted}


def combine_masks(coefficients: Tensor, mask_logits: Tensor) -> Tensor:
    """Sum c[q] sigmoid(mask_logits[q]) over q: (B, Q, M), (B, Q, H, W) -> (B, M, H, W) float32."""
    return torch.einsum("bqm,bqhw->bmhw", coefficients, mask_logits.float().sigmoid())


def scores_from_maps(
    maps: Mapping[str, Tensor],
    num_known: int,
    names: Iterable[str],
    statistics: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Tensor]:
    """Evaluate score formulas on maps.

    Args:
        maps: `{map name: (B, M, H, W)}`.
        num_known: K.
        names: scores, or ensembles `first+second`.
        statistics: mean and standard deviation of every part of an ensemble.
    Returns:
        `{score name: (B, H, W)}`.
    Raises:
        ValueError: an ensemble without the statistics of its parts.
    """
    names = list(names)
    statistics = statistics or {}
    check_statistics(names, statistics)
    # Each formula once, though several ensembles may share it.
    found = {name: SCORES[name].formula(maps, num_known) for name in single_scores(names)}
    for name in names:
        if name not in found:
            scaled = [
                (found[part] - statistics[part][0]) / max(statistics[part][1], 1e-12)
                for part in ensemble_parts(name)
            ]
            found[name] = torch.stack(scaled).mean(dim=0)
    return {name: found[name] for name in names}


def check_statistics(names: Iterable[str], statistics: Mapping[str, tuple[float, float]]) -> None:
    """Raise ValueError for the first ensemble in `names` whose parts lack statistics."""
    for name in names:
        parts = ensemble_parts(name)
        missing = [part for part in parts if len(parts) > 1 and part not in statistics]
        if missing:
            raise ValueError(
                f"ensemble {name!r} needs mean and spread of {', '.join(missing)} on known pixels: "
                "evaluate with a closed set in DATASETS.TEST, or set `score_statistics`"
            )


def anomaly_scores(
    class_logits: Tensor,
    mask_logits: Tensor,
    num_known: int,
    names: Iterable[str] | None = None,
    statistics: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Tensor]:
    """Compute scores from one set of predictions.

    Args:
        class_logits: (B, Q, R), rows `[known 0..K-1, (anomaly), no-object]`.
        mask_logits: (B, Q, H, W), already at the size of the wanted maps.
        num_known: K, at least 2.
        names: scores, or ensembles `first+second`; None for all scores that apply.
        statistics: mean and standard deviation of every part of an ensemble on known pixels.
    Returns:
        `{name: (B, H, W)}` float32, higher is more anomalous.
    Raises:
        ValueError: unknown names, or a number of rows that does not fit K.
    """
    # Only the number of rows tells whether the anomaly class is among them.
    rows = class_logits.shape[-1]
    if rows not in (num_known + 1, num_known + 2):
        raise ValueError(
            f"class logits have {rows} rows; {num_known} known classes need {num_known + 1} (with "
            f"no-object) or {num_known + 2} (and the anomaly class)"
        )
    names = available_scores(rows == num_known + 2, names)
    # Also within a caller's autocast: bfloat16 would merge thousands of pixels into one score.
    with torch.autocast(class_logits.device.type, enabled=False):
        coefficients = linear_coefficients(class_logits, num_known, names)
        maps = {name: combine_masks(value, mask_logits) for name, value in coefficients.items()}
        return scores_from_maps(maps, num_known, names, statistics)
