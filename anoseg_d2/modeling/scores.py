"""Anomaly scores: pointwise functions of a few maps that are linear in the masks.

Shape letters: B images, Q queries, K known classes, R class rows `[known, (anomaly), no-object]`,
M channels of a map, (H, W) pixels.

With m = sigmoid(mask logits) every map is `sum_q c[q] m[q]` for some coefficients c per query, so
windows and sizes are merged on maps, and a score is a small pure function of the merged maps.
Higher scores are more anomalous; all is float32.

`rba+anomaly` is the ensemble of two (or more) scores: the mean of their z-scores, with mean and
spread measured once on closed-set images, so that pooled metrics stay meaningful.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from anoseg_d2.utils.registry import Registry

__all__ = [
    "LINEAR_MAPS",
    "SCORES",
    "Score",
    "anomaly_scores",
    "available_scores",
    "check_statistics",
    "combine_masks",
    "ensemble_parts",
    "known_distribution",
    "linear_coefficients",
    "register_score",
    "scores_from_maps",
    "single_scores",
]

LINEAR_MAPS = Registry("linear map")
SCORES = Registry("score")


class Score(NamedTuple):
    """A registered score.

    formula: maps `{name: (B, M, H, W)}` and K -> (B, H, W).
    maps: names in `LINEAR_MAPS` that the formula reads.
    needs_anomaly: whether the model must have the anomaly class.
    """

    formula: Callable[[dict[str, Tensor], int], Tensor]
    maps: tuple[str, ...]
    needs_anomaly: bool


def register_score(name: str, maps: Iterable[str] = ("probs",), needs_anomaly: bool = False):
    """Return a decorator that adds a score to `SCORES`.

    Example::

        @register_score("second_best")
        def second_best(maps, num_known):
            return -maps["probs"][:, :num_known].topk(2, dim=1).values[:, 1]
    """
    maps = tuple(maps)

    def file(formula):
        for map_name in maps:
            LINEAR_MAPS[map_name]
        SCORES.register(name)(Score(formula, maps, needs_anomaly))
        return formula

    return file


@LINEAR_MAPS.register("probs")
def _probs(class_logits: Tensor, num_known: int, temperature: float) -> Tensor:
    return class_logits.softmax(dim=-1)[..., :-1]


@LINEAR_MAPS.register("tempered")
def _tempered(class_logits: Tensor, num_known: int, temperature: float) -> Tensor:
    return (class_logits / temperature).softmax(dim=-1)[..., :num_known]


@LINEAR_MAPS.register("logit_gap")
def _logit_gap(class_logits: Tensor, num_known: int, temperature: float) -> Tensor:
    # Logits are defined up to a constant per query; the gap to no-object is not.
    return (class_logits[..., :num_known] - class_logits[..., -1:]).relu()


@LINEAR_MAPS.register("raw_logits")
def _raw_logits(class_logits: Tensor, num_known: int, temperature: float) -> Tensor:
    return class_logits[..., :num_known]


@LINEAR_MAPS.register("uno")
def _uno(class_logits: Tensor, num_known: int, temperature: float) -> Tensor:
    probs = class_logits.softmax(dim=-1)
    best_known = probs[..., :num_known].max(dim=-1, keepdim=True).values
    return probs[..., num_known : num_known + 1] - best_known


@register_score("msp", maps=("tempered",))
def _msp_score(maps, num_known):
    return 1 - maps["tempered"].max(dim=1).values


@register_score("max_logit", maps=("logit_gap",))
def _max_logit_score(maps, num_known):
    return -maps["logit_gap"].max(dim=1).values


@register_score("max_logit_raw", maps=("raw_logits",))
def _max_logit_raw_score(maps, num_known):
    return -maps["raw_logits"].max(dim=1).values


@register_score("energy", maps=("logit_gap",))
def _energy_score(maps, num_known):
    return -maps["logit_gap"].logsumexp(dim=1)


@register_score("entropy", maps=("tempered",))
def _entropy_score(maps, num_known):
    pi = known_distribution(maps["tempered"])
    entropy = -torch.xlogy(pi, pi).sum(dim=1)
    return entropy / torch.log(torch.tensor(float(num_known), device=pi.device))


@register_score("rba")
def _rba_score(maps, num_known):
    """arXiv:2211.14293."""
    return -maps["probs"][:, :num_known].tanh().sum(dim=1)


@register_score("rba_sum")
def _rba_sum_score(maps, num_known):
    return 1 - maps["probs"][:, :num_known].sum(dim=1)


@register_score("anomaly", needs_anomaly=True)
def _anomaly_score(maps, num_known):
    return maps["probs"][:, num_known]


@register_score("uno", maps=("uno",), needs_anomaly=True)
def _uno_score(maps, num_known):
    return maps["uno"][:, 0]


def known_distribution(probs: Tensor) -> Tensor:
    """A distribution over the K known classes at every pixel.

    pi_c = P_c / max(S, 1) + max(0, 1 - S) / K with S = sum_c P_c: mass that no mask claims is
    spread evenly, mass beyond 1 is scaled down.

    Args:
        probs: P (B, K, H, W), not negative.
    Returns:
        (B, K, H, W), sums to 1.
    """
    total = probs.sum(dim=1, keepdim=True)
    return probs / total.clamp(min=1) + (1 - total).clamp(min=0) / probs.shape[1]


def _has_anomaly(num_rows: int, num_known: int) -> bool:
    if num_rows not in (num_known + 1, num_known + 2):
        raise ValueError(
            f"class logits have {num_rows} rows; {num_known} known classes ask for "
            f"{num_known + 1} (with no-object) or {num_known + 2} (and the anomaly class)"
        )
    return num_rows == num_known + 2


def available_scores(has_anomaly: bool, names: Iterable[str] | None = None) -> list[str]:
    """Names of the scores that a model can give, in the registry's order.

    Args:
        has_anomaly: whether it has the anomaly class.
        names: what is asked for; None or empty for all that apply.
    Raises:
        ValueError: an unknown name, or one that needs the anomaly class.
    """
    asked = list(names or [])
    for name in single_scores(asked):
        if SCORES[name].needs_anomaly and not has_anomaly:
            raise ValueError(
                f"score {name!r} needs a model with the anomaly class "
                "(MODEL.EOMT.ANOMALY_CLASS True); this one has known classes only"
            )
    return asked or [
        name for name, score in SCORES.items() if has_anomaly or not score.needs_anomaly
    ]


def ensemble_parts(name: str) -> list[str]:
    """Scores that `name` is made of: itself, or the parts of `first+second`."""
    return name.split("+") if name not in SCORES else [name]


def single_scores(names: Iterable[str]) -> list[str]:
    """The registered scores behind `names`, each once, ensembles taken apart."""
    return list(dict.fromkeys(part for name in names for part in ensemble_parts(name)))


def linear_coefficients(
    class_logits: Tensor, num_known: int, names: Iterable[str], temperature: float = 1.0
) -> dict[str, Tensor]:
    """Coefficients per query of the maps that the named scores read, and always of `probs`.

    Args:
        class_logits: (B, Q, R).
        num_known: K.
        names: of scores.
        temperature: of the softmax behind `msp` and `entropy`.
    Returns:
        `{map name: (B, Q, M)}` float32.
    """
    logits = class_logits.float()
    singles = single_scores(names)
    wanted = dict.fromkeys(["probs", *(m for name in singles for m in SCORES[name].maps)])
    return {name: LINEAR_MAPS[name](logits, num_known, temperature) for name in wanted}


def combine_masks(coefficients: Tensor, mask_logits: Tensor) -> Tensor:
    """sum_q c[q] sigmoid(mask_logits[q]): (B, Q, M) and (B, Q, H, W) -> (B, M, H, W), float32."""
    return torch.einsum("bqm,bqhw->bmhw", coefficients, mask_logits.float().sigmoid())


def scores_from_maps(
    maps: dict[str, Tensor],
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
    singles = {name: SCORES[name].formula(maps, num_known) for name in single_scores(names)}
    return {
        name: singles[name] if name in singles else _ensemble(name, singles, statistics or {})
        for name in names
    }


def check_statistics(names: Iterable[str], statistics: Mapping[str, tuple[float, float]]) -> None:
    """Raise ValueError for the first ensemble in `names` a part of which has no statistics."""
    for name in names:
        parts = ensemble_parts(name)
        missing = [part for part in parts if len(parts) > 1 and part not in statistics]
        if missing:
            raise ValueError(
                f"ensemble {name!r} needs mean and spread of {', '.join(missing)} on known pixels: "
                "evaluate with a closed set in DATASETS.TEST, or set `score_statistics`"
            )


def _ensemble(name: str, singles: dict[str, Tensor], statistics) -> Tensor:
    """Mean of the z-scores of the parts of `name`."""
    check_statistics([name], statistics)
    parts = ensemble_parts(name)
    scaled = [
        (singles[part] - statistics[part][0]) / max(statistics[part][1], 1e-12) for part in parts
    ]
    return torch.stack(scaled).mean(dim=0)


def anomaly_scores(
    class_logits: Tensor,
    mask_logits: Tensor,
    num_known: int,
    names: Iterable[str] | None = None,
    temperature: float = 1.0,
    statistics: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Tensor]:
    """Every asked score from one set of predictions.

    Args:
        class_logits: (B, Q, R), rows `[known 0..K-1, (anomaly), no-object]`.
        mask_logits: (B, Q, H, W), already at the size of the wanted maps.
        num_known: K, at least 2.
        names: scores, or ensembles `first+second`; None for all scores that apply.
        temperature: of the softmax behind `msp` and `entropy`.
        statistics: mean and standard deviation of every part of an ensemble on known pixels.
    Returns:
        `{name: (B, H, W)}` float32, higher is more anomalous.
    Raises:
        ValueError: unknown names, or a number of rows that does not fit K.
    """
    has_anomaly = _has_anomaly(class_logits.shape[-1], num_known)
    names = available_scores(has_anomaly, names)
    coefficients = linear_coefficients(class_logits, num_known, names, temperature)
    maps = {name: combine_masks(value, mask_logits) for name, value in coefficients.items()}
    return scores_from_maps(maps, num_known, names, statistics)
