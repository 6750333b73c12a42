"""Read results.json, and define the mean of a figure and the best score.

Several pages and tables name a winner. They all ask this module, so that they name the same one.
"""

import logging
from pathlib import Path

from anoseg_d2.evaluation.run_folder import read_stored, report_folder
from anoseg_d2.utils.files import file_hash

logger = logging.getLogger(__name__)


def find_results(path) -> Path | None:
    """Return the results.json that belongs to `path`, None where there is none.

    Args:
        path: a results.json, a run's folder, its report folder, or a checkpoint in a run's folder.
    """
    path = Path(path)
    if not path.exists():
        return None  # a mistyped name must not find its neighbour's results
    if path.suffix == ".json" and path.is_file():
        return path
    folder = path if path.is_dir() else path.parent
    places = (folder / "results.json", report_folder(folder) / "results.json")
    return next((place for place in places if place.is_file()), None)


def read_results(path) -> dict:
    """Read a results.json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not what an evaluation writes.
    """
    return read_stored(path, "datasets")


def results_of_weights(named, source, file=None) -> Path | None:
    """Return the results.json that belongs to weights.

    Args:
        named: results.json or run folder that the user names, which counts more than a hash:
            merging and averaging change the file. None looks next to the weights.
        source: where the weights are from.
        file: their file, if it is not `source`.
    Returns:
        None where there is none, or only one of other weights, which is logged.
    Raises:
        FileNotFoundError, ValueError: it is named but not there, or broken.
    """
    found = find_results(named or source) if named or source else None
    if named or found is None:
        if found is None and named:
            raise FileNotFoundError(f"--results {named}: there is no results.json")
        return found
    about = read_results(found).get("model") or {}
    stated = about.get("weights_file_sha256")
    file = file or (source if Path(source).is_file() else None)  # hf:// has no file
    if stated and file and stated != file_hash(file) and not _same_tensors(about, file):
        logger.warning("%s is of other weights than %s: it is not used (--results)", found, file)
        return None
    return found


def _same_tensors(about: dict, file) -> bool:
    """Whether a file that has changed, as by `anoseg threshold`, holds the weights all the same."""
    from anoseg_d2.checkpoint import read_checkpoint  # needs torch
    from anoseg_d2.checkpoint.metadata import weights_hash

    stated = about.get("weights_sha256")
    return bool(stated) and stated == weights_hash(read_checkpoint(file).state_dict)


def score_names(results: dict) -> list[str]:
    """Return all scores of the results, in order of appearance."""
    entries = results["datasets"].values()
    return list(dict.fromkeys(name for entry in entries for name in entry.get("scores", {})))


def _figures(results: dict, score: str, figure: str) -> list[float | None]:
    entries = results["datasets"].values()
    return [entry.get("scores", {}).get(score, {}).get(figure) for entry in entries]


def mean_figure(results: dict, score: str | None, figure: str) -> float | None:
    """Return the mean of a figure over the anomaly datasets; None unless every one has it."""
    values = _figures(results, score, figure)
    return None if not values or None in values else sum(values) / len(values)


def best_score(results: dict, implicit: bool = False) -> str | None:
    """Return the score with the highest mean AUPRC: an oracle, chosen on the evaluation labels.

    A mean over fewer datasets does not compare with one over more, so a score that has a figure
    on more datasets is always ahead. The first of equals wins.

    Args:
        results: contents of results.json.
        implicit: leave out the scores that need the learned anomaly class.
    Returns:
        its name; None if no score has an AUPRC.
    """
    from anoseg_d2.modeling.scores import SCORES, ensemble_parts, is_implicit  # needs torch

    ranks = {}
    for score in score_names(results):
        values = [v for v in _figures(results, score, "auprc") if v is not None]
        # Scores of other people's methods are in no registry; nothing is learned from ours.
        parts = [part for part in ensemble_parts(score) if part in SCORES]
        if values and (not implicit or all(map(is_implicit, parts))):
            ranks[score] = (len(values), sum(values) / len(values))
    return max(ranks, key=ranks.get, default=None)


def closed_set_miou(results: dict) -> float | None:
    """mIoU of the first closed set in percent, None if there is none."""
    return next((entry.get("mIoU") for entry in results.get("closed_set", {}).values()), None)
