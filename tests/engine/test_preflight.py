"""What a run misses is named before anything starts, and each dataset is listed once."""

import pytest
from detectron2.data import DatasetCatalog
from runs import small_run
from small_sets import anomaly_set

from anoseg_d2.data.builtin import register_cards
from anoseg_d2.engine import check_inputs
from anoseg_d2.engine.preflight import listed_once


@pytest.mark.parametrize(
    "overrides,error,message",
    [
        (("MODEL.WEIGHTS", "no/model.pth"), FileNotFoundError, "no/model.pth does not exist"),
        (("DATASETS.TRAIN", ("citiscapes",)), ValueError, "'citiscapes'.*cityscapes_19_train"),
        (("DATASETS.TRAIN", ()), ValueError, "DATASETS.TRAIN is empty"),
        (("MODEL.EOMT.NUM_CLASSES", 4), ValueError, "NUM_CLASSES is 4, but .* has 3"),
    ],
)
def test_missing_weights_and_unknown_sets_are_named_before_anything_starts(
    tmp_path, overrides, error, message
):
    with pytest.raises(error, match=message):
        check_inputs(small_run(tmp_path, "run", *overrides), training=True)
    assert not (tmp_path / "run").exists()


def test_evaluation_without_weights_is_refused(tiny_cfg, tmp_path):
    anomaly_set(tmp_path)
    cfg = tiny_cfg("DATASETS.TEST", ("test_anomaly",), "MODEL.WEIGHTS", "")
    with pytest.raises(ValueError, match="--eval-only.*checkpoint.*MODEL.WEIGHTS"):
        check_inputs(cfg, training=False)


def test_a_list_of_images_is_given_as_copies_and_read_anew_afterwards(tmp_path):
    cfg = small_run(tmp_path)
    (name,) = register_cards(cfg)
    images = check_inputs(cfg, training=True)
    (tmp_path / "data" / "images" / "0.png").unlink()
    (tmp_path / "data" / "labels" / "0.png").unlink()
    with listed_once(images):
        DatasetCatalog.get(name).clear()
        assert len(DatasetCatalog.get(name)) == 4
    assert len(DatasetCatalog.get(name)) == 3
