"""Figures of the page: curves, sheets of images and confusion matrices."""

import base64
import io
import json

import numpy as np
from PIL import Image

from anoseg_d2.report.figures import (
    confusion_matrix,
    image_sheet,
    roc_and_pr,
    run_classes,
    training_curves,
)
from anoseg_d2.report.runs import Run, load_run


def content(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


def test_curves_name_every_score_of_a_run_and_the_best_of_several(runs):
    weak, strong = (load_run(runs / name, name=name) for name in ("weak", "strong"))
    alone = content(roc_and_pr([weak], "test_anomaly")).decode()
    assert "msp: " in alone and "rba: " in alone
    both = content(roc_and_pr([weak, strong], "test_anomaly")).decode()
    assert both.count("weak, ") == 1 and both.count("strong, ") == 1
    assert roc_and_pr([weak], "absent") is None


def test_names_in_a_figure_are_text(runs):
    run = load_run(runs / "strong", name="a $x$ <b> {brace} \udcff")
    other = load_run(runs / "weak")
    drawn = content(roc_and_pr([run, other], "test_anomaly")).decode()
    assert r"a $x$ &lt;b&gt; {brace} \udcff" in drawn


def test_a_sheet_has_a_row_for_each_image(runs):
    run = load_run(runs / "weak")
    few, many, closed = (
        Image.open(io.BytesIO(content(image_sheet(run, name))))
        for name in ("test_anomaly", "test_other", "test_closed")
    )
    assert few.format == "WEBP" and many.height > 1.1 * few.height  # 2 and 3 images
    assert few.width > closed.width  # which has no score
    run.folder = None
    assert image_sheet(run, "test_anomaly") is None


def test_a_confusion_matrix_shows_the_classes(runs):
    record = load_run(runs / "weak").records["test_closed"]
    assert np.sum(record["confusion"]) == record["result"]["pixels"]
    assert Image.open(io.BytesIO(content(confusion_matrix(record)))).format == "WEBP"
    assert confusion_matrix({"kind": "closed_set"}) is None


def test_the_curves_of_a_training_have_names_titles_and_units(tmp_path):
    run = Run("a", tmp_path, {})
    assert training_curves(run) is None
    losses = {"total_loss": 9.0, "loss_mask": 1.0, "loss_mask_0": 2.0, "loss_dice_1": 6.0}
    rows = [{"iteration": step, **losses, "lr": 1e-4, "lr/vit": 1e-5} for step in (0, 19, 39, 19)]
    lines = [*map(json.dumps, rows), json.dumps({"iteration": 40, "set/mIoU": 3.0}), '{"iterat']
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    drawn = content(training_curves(run)).decode()
    for word in ("Losses", "Learning rates", "step", "all", "mask", "dice", "vit", "weighted loss"):
        assert f">{word}" in drawn, word
    assert ">set/mIoU" not in drawn and ">mask_0" not in drawn


def test_every_class_has_a_colour_of_its_own(runs):
    names, palette = run_classes(load_run(runs / "weak", model={"num_known": 133}))
    assert len(names) == 134 and len({tuple(color) for color in palette[:134]}) == 134
    assert palette[:134].any(axis=1).all(), "a class that is black looks like void"


def test_names_and_colours_are_those_of_a_fitting_closed_set(runs):
    names, palette = run_classes(load_run(runs / "weak", model={"num_known": 3}))
    assert names == ["road", "car", "sky", "anomaly"] and palette[1].tolist() == [0, 0, 142]
