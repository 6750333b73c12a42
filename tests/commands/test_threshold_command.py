"""A threshold from normal photographs is stored with its promise, and everything uses it."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from anoseg_d2 import AnomalyPredictor
from anoseg_d2.checkpoint import model_meta, read_checkpoint
from anoseg_d2.checkpoint.metadata import describe_weights
from anoseg_d2.commands import app, predict, threshold
from anoseg_d2.config import load_config
from anoseg_d2.evaluation.alarm_rate import alarm_level
from anoseg_d2.evaluation.map_files import read_map
from anoseg_d2.prediction.detections import find_detections
from anoseg_d2.report.results import results_of_weights
from anoseg_d2.utils.files import file_hash


@pytest.fixture
def weights(tmp_path, tiny_eomt):
    """A checkpoint of a run, with something else than weights in it."""
    model = tiny_eomt()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path / "run" / "model_final.pth"
    path.parent.mkdir()
    torch.save({"model": model.state_dict(), "meta": model_meta(model), "iteration": 7}, path)
    (path.parent / "last_checkpoint").write_text(path.name)
    return path


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(19):
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        path = tmp_path / "photos" / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((64, 48)).save(path)
    return tmp_path / "photos"


def find(weights, photos, *more, rate="0.1"):
    options = ["--images", str(photos), "--alarm-rate", rate, "--min-size", "8", *map(str, more)]
    return threshold.main([str(weights), *options])


def test_the_threshold_is_stored_in_place_and_holds_for_its_own_images(weights, photos, capsys):
    assert find(weights.parent, photos) == 0
    assert "at most 10 % of new normal images raise an alarm" in capsys.readouterr().out
    assert read_checkpoint(weights).extra == {"iteration": 7}
    predictor = AnomalyPredictor.from_pretrained(str(weights), ["MODEL.DEVICE", "cpu"])
    record = predictor.thresholds["rba"]
    assert (record["count"], record["min_size"], record["alarm_rate"]) == (19, 8, 0.1)
    scores = [r["scores"]["rba"] for r in predictor(sorted(map(str, photos.iterdir())))]
    # 18 = ceil(20 * 0.9) raise none; the last bits depend on what is predicted together.
    assert sum(bool(find_detections(s, record["threshold"] + 1e-5, 8)) for s in scores) == 1
    assert sorted(alarm_level(s, 8) for s in scores)[17] == pytest.approx(record["threshold"], 1e-5)


def test_predict_uses_it_and_its_scale(weights, photos, tmp_path, capsys):
    assert find(weights, photos) == 0
    command = [str(photos / "03.png"), "--weights", str(weights)]
    kinds = ["--outputs", "raw_npy,byte,json", "--unit-scale"]
    assert predict.main([*command, "--output", str(tmp_path / "unit"), *kinds]) == 0
    assert predict.main([*command, "--output", str(tmp_path / "plain")]) == 0
    assert "at most 10 % of new normal images" in capsys.readouterr().out
    record = read_checkpoint(weights).meta["thresholds"]["rba"]
    info = json.loads((tmp_path / "plain/rba/components.json").read_text())["info"]
    assert (info["threshold"], info["min_size"]) == (record["threshold"], 8)
    info = json.loads((tmp_path / "unit/rba/components.json").read_text())["info"]
    assert info["threshold"] == 0.5
    predictor = AnomalyPredictor.from_pretrained(str(weights), ["MODEL.DEVICE", "cpu"])
    result = predictor(str(photos / "03.png"))
    anomalous = result["scores"]["rba"] >= record["threshold"]
    unit = read_map(tmp_path / "unit/rba/raw_npy/03.npy")
    np.testing.assert_allclose(unit, predictor.unit_scores(result)["rba"], atol=1e-5)
    byte = np.asarray(Image.open(tmp_path / "unit/rba/byte/03.png"))
    assert byte.dtype == np.uint8
    assert np.array_equal(unit >= 0.5, byte >= 128)
    assert ((unit >= 0.5) == anomalous).mean() > 0.99


def test_the_page_of_the_app_begins_with_it(weights, photos):
    assert find(weights, photos) == 0
    predictor = AnomalyPredictor.from_pretrained(str(weights), ["MODEL.DEVICE", "cpu"])
    record = predictor.thresholds["rba"]
    for unit_scale, expected in ((False, record["threshold"]), (True, 0.5)):
        page = app.Playground(predictor, "w.pth", unit_scale=unit_scale)
        opened, _ = page.open(str(photos / "03.png"))
        slider = page.slider(opened, "rba")
        assert "at most 10 % of new normal images" in slider["info"]
        if slider["minimum"] < expected < slider["maximum"]:
            assert slider["value"] == expected
        assert len(page.view(opened, "rba", expected, 8)) == 4


def test_the_evaluation_next_to_the_weights_stays_theirs(weights, photos):
    predictor = AnomalyPredictor.from_pretrained(str(weights), ["MODEL.DEVICE", "cpu"])
    about = describe_weights(predictor.model, weights)
    place = weights.parent / "results.json"
    place.write_text(json.dumps({"datasets": {}, "model": about}))
    assert find(weights, photos) == 0
    assert file_hash(weights) != about["weights_file_sha256"]
    assert results_of_weights(None, weights) == place


def test_too_few_images_are_refused_at_once_with_the_number(photos, capsys):
    assert find("gone.pth", photos, rate="0.01") == 2
    assert "19 normal units are too few" in (said := capsys.readouterr().err) and "99" in said
    assert find("gone.pth", photos, "--confidence", "0.95") == 2
    assert "29 are needed" in capsys.readouterr().err
    assert find("gone.pth", photos, "--block", "4") == 2
    assert "4 normal units" in capsys.readouterr().err


def test_the_objects_that_raise_an_alarm_are_counted(weights, photos, tmp_path, capsys):
    mask = np.zeros((48, 64), np.uint8)
    mask[:8, :8] = mask[20:, 30:] = 1
    (tmp_path / "masks").mkdir()
    for photo in photos.iterdir():
        Image.fromarray(mask).save(tmp_path / "masks" / photo.name)
    card = tmp_path / "odd.yaml"
    files = "root: ./\nimages: 'photos/{id}.png'\nlabels: 'masks/{id}.png'\nvoid: []\n"
    card.write_text(f"name: odd\nkind: anomaly\n{files}known: [0]\nanomaly: [1]\n")
    assert find(weights, photos, "--objects", card) == 0
    assert re.search(r"rba: \d+ of 38 objects of odd raise an alarm", capsys.readouterr().out)
    card.write_text(f"name: odd\n{files}classes: [a, b]\nlabel_values: {{0: a, 1: b}}\n")
    assert find(weights, photos, "--objects", card) == 2
    assert "the labels of odd mark no objects" in capsys.readouterr().err


def test_other_settings_go_without_it(weights, photos, caplog):
    assert find(weights, photos) == 0
    changed = ["MODEL.DEVICE", "cpu", "TEST.FLIP", True]
    assert AnomalyPredictor.from_pretrained(str(weights), changed).thresholds == {}
    assert "TEST.FLIP was False, is True" in caplog.text


def test_a_training_that_starts_from_it_does_not_keep_it(weights, photos):
    from anoseg_d2.checkpoint import build_config_overrides
    from anoseg_d2.checkpoint.from_config import load_weights
    from anoseg_d2.modeling import EoMT

    assert find(weights, photos) == 0
    overrides = [*build_config_overrides(read_checkpoint(weights)), "MODEL.WEIGHTS", str(weights)]
    cfg = load_config(overrides=[*overrides, "MODEL.DEVICE", "cpu"])
    model = EoMT(cfg)
    load_weights(cfg, model, training=True)
    assert model.info.thresholds == {}


def test_another_file_keeps_the_first_and_holds_both(weights, photos, tmp_path):
    before = weights.read_bytes()
    first, second = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert find(weights, photos, "--output", first) == 0
    assert find(first, photos, "--output", second, "--score", "msp", "--confidence", "0.8") == 0
    assert weights.read_bytes() == before
    stored = AnomalyPredictor.from_pretrained(str(second), ["MODEL.DEVICE", "cpu"]).thresholds
    assert set(stored) == {"rba", "msp"} and stored["msp"]["confidence"] == 0.8


def test_images_and_each_video_are_sequences_of_their_own():
    levels = threshold.Levels(1)
    for value in (1.0, 2.0):
        levels.write_image("a", "a.png", None, np.full((2, 2), value), None)
    with levels.video("v", "v.mp4", 25) as take:
        take(0, 0.0, None, np.full((2, 2), 3.0), None)
    assert levels.sequences == [[1.0, 2.0], [3.0]] and levels.medians == [1.0, 2.0, 3.0]
