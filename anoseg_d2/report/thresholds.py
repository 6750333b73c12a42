"""Thresholds of a score, read from the results of an evaluation.

They hold for the weights and the settings of that evaluation: `recorded_settings` says which to
take, and `holds_for` compares what was built with them.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anoseg_d2.report.results import find_results, read_results, results_of_weights
from anoseg_d2.utils.config_files import parse_yaml

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
            f"no results.json at {path}: evaluate first (anoseg eval), then name the run's folder"
        )
    dataset = chosen_dataset(results, dataset)
    scores = read_results(results)["datasets"][dataset].get("scores", {})
    if score not in scores:
        raise ValueError(
            f"{results}: {score!r} was not evaluated on {dataset}; evaluated: {', '.join(scores)}"
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


def recorded_settings(results) -> dict[str, Any]:
    """Return the config keys that change a score map, with their values in an evaluation.

    Args:
        results: its results.json; what it does not say is left out.
    """
    from anoseg_d2.modeling.inference import score_map_settings  # needs torch

    config = read_results(results).get("config")
    if isinstance(config, str):
        config = parse_yaml(config.encode(), f"config of {results}")
    return score_map_settings(config) if isinstance(config, dict) else {}


def holds_for(results, predictor, named: bool) -> bool:
    """Whether an evaluation was of the weights and settings of a predictor.

    Args:
        results: its results.json. What it does not say is warned about, and taken for equal.
        predictor: `AnomalyPredictor`.
        named: the user named it, so that a difference is a mistake; otherwise it is logged.
    Raises:
        ValueError: it was not, and is named.
    """
    from anoseg_d2.checkpoint.metadata import describe_weights
    from anoseg_d2.modeling.inference import differing, score_map_settings

    about, then = read_results(results).get("model") or {}, recorded_settings(results)
    ours = describe_weights(predictor.model, predictor.weights_file)
    now = score_map_settings(predictor.cfg)
    # The file of merged adapters has other tensors; the hash of tensors is that of any format.
    stated = [name for name in ("weights_file_sha256", "weights_sha256") if about.get(name)]
    why = differing(then, now)
    if stated and not any(about[name] == ours[name] for name in stated):
        name = stated[0]
        why = f"it is of other weights: {name} {about[name]:.12}, here {ours[name] or 'none':.12}"
    if why and named:
        raise ValueError(f"{results} does not hold here: {why}")
    unknown = [*([] if stated else ["weights"]), *(key for key in now if key not in then)]
    if why:
        logger.warning("%s does not hold here: %s", results, why)
    elif unknown:
        logger.warning(
            "%s does not say its %s: make sure that they are these", results, ", ".join(unknown)
        )
    return not why


def thresholds_of_weights(
    names: Iterable[str], source, predictor, results=None, dataset: str | None = None
) -> tuple[dict[str, float], str | None]:
    """Find the threshold at 95 % TPR of each score of a model.

    Args:
        names: of the scores.
        source: where the model is from; its evaluation is looked for next to it.
        predictor: of the model, for which an evaluation must hold (`holds_for`).
        results: results.json or run folder that the user names; then everything must be there.
        dataset: evaluated set that decides; None where there is only one.
    Returns:
        {score: threshold} of the scores that were evaluated, and the dataset that they hold for;
        what is missing is logged.
    Raises:
        FileNotFoundError, ValueError: `results` was given and does not hold them all.
    """
    place = results_of_weights(results, source, predictor.weights_file)
    if place is None or not holds_for(place, predictor, bool(results)):
        return {}, None
    found = {}
    for name in names:
        try:
            found[name] = read_threshold(place, name, 95, dataset)
        except ValueError as error:
            if results:
                raise
            logger.warning("no threshold of %s is stored (--results-set): %s", name, error)
    return found, chosen_dataset(place, dataset) if found else None


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
