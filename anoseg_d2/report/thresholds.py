"""Thresholds of a score, read from the results of an evaluation."""

import logging
from collections.abc import Iterable
from pathlib import Path

from anoseg_d2.report.results import find_results, read_results, results_of_weights

__all__ = ["chosen_dataset", "list_thresholds", "read_threshold", "thresholds_of_weights"]

logger = logging.getLogger(__name__)


def read_threshold(path, score: str, tpr: float, dataset: str | None = None) -> float:
    """Read at which threshold an evaluated score reaches a true-positive rate.

    Args:
        path: see `find_results`.
        score: its name.
        tpr: percent of the anomalous pixels, one of those that results.json states.
        dataset: evaluated set that decides; None where there is only one.
    Returns:
        the highest threshold with that rate, for `score >= threshold`.
    Raises:
        FileNotFoundError: there are no results. ValueError: they do not hold that figure; the
            message says what they hold.
    """
    results = find_results(path)
    if results is None:
        raise FileNotFoundError(
            f"no results.json at {path}: evaluate first (anoseg eval), then name its "
            "file or the run's folder"
        )
    dataset = chosen_dataset(results, dataset)
    scores = read_results(results)["datasets"][dataset].get("scores", {})
    if score not in scores:
        raise ValueError(
            f"{results}: score {score!r} was not evaluated on {dataset}; evaluated: "
            f"{', '.join(scores)}"
        )
    # Files of older versions state none at all.
    known = scores[score].get("tpr_thresholds") or {}
    if known.get(f"{tpr:g}") is None:
        stated = ", ".join(name for name, value in known.items() if value is not None)
        why = scores[score].get("why") or "an older version wrote it; evaluate again"
        raise ValueError(
            f"{results}: no threshold of {score!r} at a true-positive rate of {tpr:g} %; stated: "
            f"{stated or f'none, {why}'}"
        )
    return known[f"{tpr:g}"]


def thresholds_of_weights(
    names: Iterable[str], source, weights, results=None, dataset: str | None = None
) -> tuple[dict[str, float], str | None]:
    """Find the threshold at 95 % TPR of each score of a model.

    Args:
        names: of the scores.
        source: where the model is from; its evaluation is looked for next to it.
        weights: its file, which an evaluation that is found there must name.
        results: results.json or run folder that the user names; then everything must be there.
        dataset: evaluated set that decides; None where there is only one.
    Returns:
        {score: threshold} of the scores that were evaluated, and the dataset that they hold for;
        what is missing is logged.
    Raises:
        FileNotFoundError, ValueError: `results` was given and does not hold them all.
    """
    place = results_of_weights(results, source, weights)
    if place is None:
        return {}, None
    found = {}
    try:
        dataset = chosen_dataset(place, dataset)
    except ValueError as error:
        if results:
            raise
        logger.warning("no thresholds are stored (--results, --results-set): %s", error)
        return {}, None
    for name in names:
        try:
            found[name] = read_threshold(place, name, 95, dataset)
        except ValueError as error:
            if results:
                raise
            logger.warning("no threshold of %s is stored: %s", name, error)
    return found, dataset if found else None


def list_thresholds(path) -> dict[str, dict[str, float]]:
    """List every threshold that an evaluation states.

    Args:
        path: of results.json.
    Returns:
        {score: {what it reaches, such as "road_anomaly: 95 % TPR": threshold}}, the best F1 of a
        dataset before its true-positive rates.
    """
    found: dict[str, dict[str, float]] = {}
    for dataset, record in read_results(path)["datasets"].items():
        for score, entry in record.get("scores", {}).items():
            rates = entry.get("tpr_thresholds") or {}
            reached = {"best F1": entry.get("best_f1_threshold")}
            reached |= {f"{rate} % TPR": value for rate, value in rates.items()}
            named = {f"{dataset}: {what}": v for what, v in reached.items() if v is not None}
            found.setdefault(score, {}).update(named)
    return found


def chosen_dataset(results: Path, dataset: str | None = None) -> str:
    """Return the evaluated set that decides thresholds: the given one, or the only one.

    Raises:
        ValueError: it was not evaluated, or a choice is needed; the message lists the sets.
    """
    sets = read_results(results)["datasets"]
    if dataset in sets or (dataset is None and len(sets) == 1):
        return dataset or next(iter(sets))
    asked = "no set was chosen" if dataset is None else f"no dataset {dataset!r}"
    evaluated = ", ".join(sets) or "no anomaly set"
    raise ValueError(f"{results}: {asked}; their thresholds differ, choose one: {evaluated}")
