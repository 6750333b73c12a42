"""Evaluate score maps in files: one score of a method, keeping its other scores."""

from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.kept_maps import FileMaps
from anoseg_d2.evaluation.run_folder import add_scores, read_record

__all__ = ["MapEvaluator"]


class MapEvaluator(AnomalyEvaluator):
    """Evaluate the maps of one score. Other scores of the method in the same folder are kept.

    Args:
        dataset_name, output_dir: as `AnomalyEvaluator`.
        score: its name.
        maps: the files, for the second pass.
        method: name of the method that the folder belongs to.
        labels: digest of the labels; figures on other labels are not kept next to these.
        warnings: what a reader of the figures must know, added to the evaluator's own.
        options: `components`, `exact` and `keep_images` of `AnomalyEvaluator`.
    """

    keep_scores = True

    def __init__(
        self,
        dataset_name: str,
        score: str,
        output_dir,
        *,
        maps: FileMaps,
        method: str,
        labels: str,
        warnings: list[str],
        **options,
    ):
        self._file_maps, self._method, self._label_digest = maps, method, labels
        self._given_warnings = warnings
        super().__init__(dataset_name, [score], output_dir, **options)

    def open_maps(self) -> FileMaps:
        """Return a reader of the files themselves, so that nothing is copied."""
        return self._file_maps

    def remove_earlier(self) -> None:
        """Remove nothing: `record` adds to what is there."""

    def score_warnings(self, name: str, entry: dict) -> list[str]:
        """Return the given warnings, the evaluator's own, and that the sign may be wrong."""
        found = [*self._given_warnings, *super().score_warnings(name, entry)]
        # Only here: maps of other methods come without a word about their sign.
        if entry["auroc"] is not None and entry["auroc"] < 50:
            found.append(
                f"the AUROC of {name} is {entry['auroc']:.2f} %, under 50 %: known pixels score "
                "higher than anomalies. If it looks like confidence, not anomaly: --negate"
            )
        return found

    def record(self, curves: dict, warnings: dict[str, list[str]]) -> dict:
        """Return the contents of result.json, with the other scores of an earlier one.

        Raises:
            ValueError: the labels have changed since the other scores were evaluated.
        """
        record = super().record(curves, warnings)
        record |= {"method": self._method, "labels": self._label_digest}
        path = self.folder / "result.json"
        return add_scores(read_record(path), record) if path.is_file() else record
