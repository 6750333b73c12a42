"""Components of a score map as records and as COCO json."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from anoseg_d2.prediction.detections import CocoWriter, encode_mask, find_detections


def two_objects():
    """A block of 6 at 0.9 in the lower right corner, a diagonal of 3 at 0.5, one loose pixel."""
    score = np.zeros((8, 10), np.float32)
    score[6:8, 7:10] = 0.9
    score[0, 2] = score[1, 3] = score[2, 4] = 0.5
    score[5, 0] = 0.7
    return score


def test_boxes_areas_and_scores_by_hand():
    block, loose, diagonal = find_detections(two_objects(), 0.5)
    assert block[:2] == ((7, 6, 3, 2), 6) and block.mask.all()
    assert loose[:2] == ((0, 5, 1, 1), 1)
    assert diagonal[:2] == ((2, 0, 3, 3), 3), "diagonal neighbours belong together"
    assert (diagonal.mask == np.eye(3, dtype=bool)).all()
    assert [round(d.score, 6) for d in (block, loose, diagonal)] == [0.9, 0.7, 0.5]


def test_a_pixel_at_the_threshold_counts_and_small_components_do_not():
    assert len(find_detections(two_objects(), np.nextafter(np.float32(0.5), np.float32(1)))) == 2
    assert [d.area for d in find_detections(two_objects(), 0.5, min_size=4)] == [6]
    assert find_detections(two_objects(), 0.95) == []


def test_mean_and_maximum_are_of_the_component_alone():
    score = np.array([[1.0, 0.0, 3.0], [0.0, 0.0, 3.0], [2.0, 0.0, 3.0]], np.float32)
    score[2, 1] = 4.0
    (found,) = find_detections(np.pad(score, 1, constant_values=9)[1:-1, 1:-1], 2.0)
    assert (found.score, found.highest, found.area) == (pytest.approx(3.0), 4.0, 5)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        find_detections(np.full((2, 2), np.nan), 0.5)
    with pytest.raises(ValueError, match="NaN"):
        find_detections(np.zeros((2, 2)), float("nan"))


@given(seed=st.integers(0, 10**6), size=st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(max_examples=60, deadline=None)
def test_encoded_masks_decode_to_the_thresholded_map(seed, size):
    score = np.random.default_rng(seed).random(size)
    found = find_detections(score, 0.6)
    decoded = [coco_mask.decode(encode_mask(detection, size)) for detection in found]
    union = np.sum(decoded, axis=0) if decoded else np.zeros(size)
    assert (union == (score >= 0.6)).all(), "every pixel once"
    for detection, mask in zip(found, decoded, strict=True):
        rle = encode_mask(detection, size)
        assert coco_mask.area(rle) == detection.area == mask.sum()
        assert coco_mask.toBbox(rle).tolist() == list(detection.box)


def test_pycocotools_loads_the_json(tmp_path):
    score = two_objects()
    with CocoWriter(tmp_path / "a" / "out.json", {"score": "rba"}) as writer:
        assert writer.add("x.png", score.shape, find_detections(score, 0.5)) == 1
        assert writer.add("film.mp4", (4, 4), [], frame=7) == 2
    coco = COCO(tmp_path / "a" / "out.json")
    assert coco.imgs[2] == {"id": 2, "file_name": "film.mp4", "height": 4, "width": 4, "frame": 7}
    assert coco.loadCats([1])[0]["name"] == "anomaly" and coco.dataset["info"]["score"] == "rba"
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert [a["bbox"] for a in annotations] == [[7, 6, 3, 2], [0, 5, 1, 1], [2, 0, 3, 3]]
    assert (coco.annToMask(annotations[0]) == (score > 0.8)).all()


def test_an_empty_json_is_valid_and_an_interrupted_one_is_whole(tmp_path):
    with CocoWriter(tmp_path / "empty.json"):
        pass
    content = json.loads((tmp_path / "empty.json").read_text())
    assert content["images"] == content["annotations"] == []
    with pytest.raises(KeyboardInterrupt), CocoWriter(tmp_path / "half.json") as writer:
        writer.add("first.png", (8, 10), find_detections(two_objects(), 0.5))
        raise KeyboardInterrupt
    assert len(json.loads((tmp_path / "half.json").read_text())["annotations"]) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.json", "half.json"]
