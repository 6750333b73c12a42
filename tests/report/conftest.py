"""Evaluated runs that the tests of the report share."""

import numpy as np
import pytest
import small_sets

from anoseg_d2.data.image_io import read_label
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.closed_set_evaluation import ClosedSetEvaluator
from anoseg_d2.report.write import combine_reports, write_report


def evaluate(folder, output_dir, signal=2.0, names=("msp", "rba")):
    """One evaluated run: two anomaly sets and a closed one."""
    for name, count in (("test_anomaly", 2), ("test_other", 3)):
        images = small_sets.anomaly_set(folder, name, count)
        evaluator = AnomalyEvaluator(name, output_dir=output_dir)
        evaluator.reset()
        for index, image in enumerate(images):
            label = read_label(image["sem_seg_file_name"])
            output = small_sets.outputs_for(label, index, names=names, signal=signal)
            evaluator.process([image], [output])
        evaluator.evaluate()
    images = small_sets.closed_set(folder, [np.array([[0, 1], [1, 255]], np.uint8)])
    closed = ClosedSetEvaluator("test_closed", output_dir)
    closed.process(images, [{"sem_seg": np.zeros((2, 2), int), "confidence": np.ones((2, 2))}])
    closed.evaluate()


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Two evaluated runs, each with its own report, and one over both."""
    folder = tmp_path_factory.mktemp("runs")
    evaluate(folder, folder / "weak", 1.0)
    evaluate(folder, folder / "strong", 4.0, names=("msp", "rba", "anomaly"))
    write_report(folder / "weak", model={"weights": "weak.pth", "parameters": 7}, name="weak")
    write_report(folder / "strong", model={"weights": "strong.pth"}, config="A: 1", name="strong")
    names = ["weak", "strong <b>"]
    combine_reports([folder / "weak", folder / "strong"], names, folder / "both", title="Two & two")
    return folder
