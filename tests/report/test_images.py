"""Thumbnails, colours and crops of the page, within a budget."""

import numpy as np
import pytest
import small_sets

from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.report import images as report_images
from anoseg_d2.report.runs import load_run


def test_images_come_worst_first_and_whole(runs):
    run = load_run(runs / "strong", name="strong")
    ranges = report_images.color_ranges([run])
    images, notes = report_images.collect_images([run], ranges)
    assert notes == []
    best = run.best_score()
    ap = {i["image_id"]: i["ap"][best] for i in run.records["test_anomaly"]["per_image"]}
    order = [ap[image["id"]] for image in images["test_anomaly"]]
    assert order[-1] is None and order[:-1] == sorted(order[:-1])
    maps = images["test_anomaly"][0]["runs"]["strong"]
    assert set(maps["heat"]) == {"msp", "rba", "anomaly"} and maps["prediction"]


def test_too_many_images_are_shrunk_then_left_out_and_said_so(runs):
    found = [load_run(runs / "strong", name="strong")]
    ranges = report_images.color_ranges(found)
    whole, _ = report_images.collect_images(found, ranges)
    size = report_images.characters
    everything = sum(size(image) for images in whole.values() for image in images)
    for share in (0.6, 0.3):
        images, notes = report_images.collect_images(found, ranges, int(everything * share))
        kept = [image for images in images.values() for image in images]
        assert notes and sum(map(size, kept)) < everything * share


def test_the_scale_of_a_score_is_one_for_all_sets(runs):
    found = load_run(runs / "weak", name="weak")
    assert set(report_images.color_ranges([found])) == {("weak", "msp"), ("weak", "rba")}


def test_every_class_has_a_colour_of_its_own(runs):
    run = load_run(runs / "weak", model={"num_known": 133})
    names, palette = report_images.run_classes(run)
    assert len(names) == 134 and len({tuple(color) for color in palette[:134]}) == 134
    assert palette[:134].any(axis=1).all(), "a class that is black looks like void"
    seen = report_images.seen_classes(run)
    assert [name for name, _ in seen] == ["class 0", "class 1", "class 2"]


def test_names_and_colours_are_those_of_a_fitting_closed_set(runs):
    names, palette = report_images.run_classes(load_run(runs / "weak", model={"num_known": 3}))
    assert names == ["road", "car", "sky", "anomaly"] and palette[1].tolist() == [0, 0, 142]


def test_false_components_are_shown_with_the_box_and_area_of_native_size(tmp_path):
    label = np.zeros((800, 1200), np.uint8)
    label[100:200, 100:200] = 1
    images = small_sets.write_set(
        tmp_path, "test_one", [label], evaluator_type="anomaly", label_rule=small_sets.ANOMALY_RULE
    )
    score = (label == 1) * np.float32(2)
    score[400:600, 800:1000] = 1.5  # below the best threshold
    score[300:321, 600:630] = 3  # above it, 630 pixels
    evaluator = AnomalyEvaluator("test_one", output_dir=tmp_path / "run")
    evaluator.reset()
    evaluator.process(images, [{"scores": {"s": score}, "sem_seg": label}])
    evaluator.evaluate()
    (found,) = report_images.false_components(load_run(tmp_path / "run"), "test_one")["s"]
    assert found["text"] == "630 pixels above 2"
    rows, columns = np.nonzero(found["component"])
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (9, 12)  # thumbnails are 0.4 times as large
    assert found["score"][rows, columns].mean() > 2 and found["photo"].shape == (128, 128, 3)


def test_the_cross_is_on_the_worst_pixel(runs):
    run = load_run(runs / "weak")
    for failure in run.records["test_anomaly"]["failures"]:
        crop = report_images.kept_crop(run, "test_anomaly", failure)
        if failure["kind"] == "false":
            assert crop["score"][tuple(crop["place"])] == pytest.approx(failure["value"], rel=1e-3)
