"""Small anomaly sets, evaluated with outputs that are known."""

import numpy as np
import small_sets

from anoseg_d2.data.image_io import read_label
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator


def labels_of(images):
    return [read_label(image["sem_seg_file_name"]) for image in images]


def outputs_of(images, **kwargs):
    return [small_sets.outputs_for(label, i, **kwargs) for i, label in enumerate(labels_of(images))]


def pooled(images, outputs, name):
    labels = np.concatenate([label.ravel() for label in labels_of(images)])
    scores = np.concatenate([output["scores"][name].ravel() for output in outputs])
    return labels[labels != 255], scores[labels != 255]


def run(images, outputs, output_dir=None, **kwargs):
    evaluator = AnomalyEvaluator("test_anomaly", output_dir=output_dir, **kwargs)
    evaluator.reset()
    evaluator.process(images, outputs)
    return evaluator, evaluator.evaluate()
