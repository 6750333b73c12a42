"""Read results.json, and define once what its figures mean: a score's mean, the best score.

Several pages and tables name a winner. They all ask this module, so that they name the same one.
"""

from pathlib import Path

from anoseg_d2.evaluation.run_folder import report_folder
from anoseg_d2.evaluation.stored_form import check_results, check_stored
from anoseg_d2.utils.files import file_hash, read_json

__all__ = [
    "best_score",
    "closed_set_miou",
    "find_results",
    "is_of_weights",
    "mean_figure",
    "read_results",
    "score_names",
]


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
    return check_stored(read_json(path), check_results, path)


def is_of_weights(results: dict, file) -> bool:
    """Whether results may be of these weights: False if they name another file's hash.

    Args:
        results: contents of results.json.
        file: of the weights; None where there is none, such as timm's.
    """
    stated = (results.get("model") or {}).get("weights_file_sha256")
    return not stated or file is None or stated == file_hash(file)


def score_names(results: dict) -> list[str]:
    """All scores of the results, in order of appearance."""
    entries = results["datasets"].values()
    return list(dict.fromkeys(name for entry in entries for name in entry.get("scores", {})))


def _figures(results: dict, score: str, figure: str) -> list[float | None]:
    entries = results["datasets"].values()
    return [entry.get("scores", {}).get(score, {}).get(figure) for entry in entries]


def mean_figure(results: dict, score: str | None, figure: str) -> float | None:
    """Mean of a score's figure over the anomaly datasets; None unless every one has it."""
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
