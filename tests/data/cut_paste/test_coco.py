"""COCO files: every kind of annotation and photograph is used, or counted and named."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from anoseg_d2.data.cut_paste.coco import (
    CocoObjects,
    fold_name,
    is_file_name,
    looks_like,
    mask_decides,
    to_rle,
    touches_edge,
    whole_number,
)

H, W = 120, 160
SQUARE = [[40, 30, 100, 30, 100, 90, 40, 90]]
CATEGORIES = [
    {"id": 1, "name": "person"},
    {"id": 17, "name": "cat"},
    {"id": 64, "name": "potted plant"},
]


def square_mask():
    mask = np.zeros((H, W), np.uint8, order="F")
    mask[30:90, 40:100] = 1
    return mask


def write_coco(folder, annotations, photos=("a.jpg",), **image_changes):
    """One photograph per name, and annotations on the first unless they say otherwise."""
    folder.mkdir(exist_ok=True)
    images = []
    for number, name in enumerate(photos):
        images.append({"id": number, "file_name": name, "height": H, "width": W, **image_changes})
        Image.new("RGB", (W, H), (90, 120, 150)).save(folder / name)
    for number, annotation in enumerate(annotations):
        base = {"id": number, "image_id": 0, "category_id": 17, "area": 3600, "iscrowd": 0}
        annotations[number] = {**base, "segmentation": SQUARE, **annotation}
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def coco(folder, annotations, photos=("a.jpg",), **arguments):
    return CocoObjects(write_coco(folder, annotations, photos), folder, **arguments)


def uncompressed_rle(mask):
    values = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(values)) + 1
    counts = np.diff([0, *changes, len(values)]).tolist()
    return {"size": list(mask.shape), "counts": counts if not values[0] else [0, *counts]}


def compressed_rle(mask):
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


@pytest.mark.parametrize(
    "segmentation", [SQUARE, uncompressed_rle(square_mask()), compressed_rle(square_mask())]
)
def test_polygons_and_both_rles_give_the_same_mask(tmp_path, segmentation):
    source = coco(tmp_path, [{"segmentation": segmentation}])
    item = source.load(0)
    assert (item.mask == (square_mask() > 0)).all()
    assert item.image.shape == (H, W, 3) and item.label is None
    assert item.source["annotation_id"] == 0 and item.source["category"] == "cat"
    assert item.source["source_image"] == "a.jpg" and not source.problems


def test_what_the_rules_leave_out_is_counted(tmp_path):
    source = coco(
        tmp_path,
        [
            {},
            {"category_id": 1},
            {"category_id": 64},
            {"iscrowd": 1, "segmentation": uncompressed_rle(square_mask())},
            {"area": 999},
            {"area": None, "segmentation": [[40, 30, 60, 30, 60, 50, 40, 50]]},
            {"segmentation": [[40, 60, 100, 60, 100, 120, 40, 120]]},
            {"segmentation": [[-50, 30, 60, 30, 60, 90, -50, 90]]},
        ],
    )
    assert len(source) == 1
    assert source.skipped == {
        "of categories left out": 2,
        "crowds": 1,
        "under 1000 px": 2,
        "cut off by their photograph's border": 2,
    }


def test_unusable_annotations_are_named(tmp_path):
    far = [[40, 30, 1e9, 30, 100, 90, 40, 90]]
    wrong_size = {"size": [W, H], "counts": compressed_rle(square_mask())["counts"]}
    short = {"size": [H, W], "counts": compressed_rle(square_mask()[:, :100])["counts"]}
    source = coco(
        tmp_path,
        [
            {},
            {"segmentation": []},
            {"segmentation": [[1, 2, 3, 4]]},
            {"segmentation": far},
            {"segmentation": [[40, 30, float("nan"), 30, 100, 90]]},
            {"segmentation": wrong_size},
            {"segmentation": short},
            {"segmentation": {"size": [H, W], "counts": [100, 200]}},
            {"segmentation": None},
            {"segmentation": [1, 2, 3, 4, 5, 6]},
            {"segmentation": [[200, 200, 300, 200, 300, 300, 200, 300]]},
            {"category_id": 999},
            {"image_id": 999},
        ],
    )
    assert len(source) == 1
    assert [name.split(" (")[0] for name in source.problems["unusable masks"]] == [
        f"annotation {number}" for number in range(1, 10)
    ]
    assert source.problems["empty masks"] == ["annotation 10"]
    assert source.problems["annotations of a category that is not listed"] == ["annotation 11"]
    missing = "annotations whose image entry is missing or unusable"
    assert source.problems[missing] == ["annotation 12"]


def test_overlap_categories_are_a_choice(tmp_path):
    annotations = [{"category_id": number} for number in (1, 17, 64)]
    path = write_coco(tmp_path, annotations)
    assert len(CocoObjects(path, tmp_path)) == 1
    assert len(CocoObjects(path, tmp_path, drop=("person",))) == 2
    known = CocoObjects(path, tmp_path, labels={"person": 24})
    assert len(known) == 1 and known.load(0).label == 24


def test_cut_objects_are_a_choice(tmp_path):
    cut = [[0, 30, 60, 30, 60, 90, 0, 90]]
    path = write_coco(tmp_path, [{}, {"segmentation": cut}])
    assert len(CocoObjects(path, tmp_path)) == 1
    assert len(CocoObjects(path, tmp_path, keep_cut=True)) == 2


@pytest.mark.parametrize(
    ("name", "mode", "colour"),
    [
        ("gray.png", "L", 100),
        ("cmyk.jpg", "CMYK", (10, 20, 30, 40)),
        ("deep.png", "I;16", 40_000),
        ("palette.png", "P", 3),
        ("alpha.webp", "RGBA", (9, 8, 7, 128)),
    ],
)
def test_photographs_of_every_mode_are_read(tmp_path, name, mode, colour):
    source = coco(tmp_path, [{}], photos=(name,))
    Image.new(mode, (W, H), colour).save(tmp_path / name)
    image = source.load(0).image
    assert image.shape == (H, W, 3) and image.dtype == np.uint8
    if mode == "I;16":
        assert (image == 40_000 >> 8).all()


def test_exif_turned_photographs_fit_their_annotation_either_way(tmp_path):
    """The annotation's size says whether it was drawn on the turned or on the stored picture."""
    source = coco(tmp_path, [{}])
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees for display
    for size in ((H, W), (W, H)):
        Image.new("RGB", size, (90, 120, 150)).save(tmp_path / "a.jpg", exif=exif)
        assert source.load(0).image.shape == (H, W, 3)


def test_unreadable_photographs_raise_with_their_name(tmp_path):
    photos = ("whole.jpg", "missing.jpg", "cut.jpg", "other.jpg", "text.jpg")
    path = write_coco(tmp_path, [{"image_id": number} for number in range(5)], photos)
    (tmp_path / "missing.jpg").unlink()
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (50, 50)).save(tmp_path / "other.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    source = CocoObjects(path, tmp_path)
    assert source.problems == {"photographs missing": ["missing.jpg"]}
    source.load(0)
    for index, name in ((2, "cut.jpg"), (3, "other.jpg is 50x50"), (4, "text.jpg")):
        with pytest.raises(ValueError, match=name):
            source.load(index)
    with pytest.raises(FileNotFoundError, match="missing.jpg"):
        source.load(1)


def test_wrong_folders_and_files_say_what_is_there(tmp_path):
    path = write_coco(tmp_path / "photos", [{}])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="a.jpg; the folder holds: readme.txt"):
        CocoObjects(path, tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no folder of COCO photographs"):
        CocoObjects(path, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no COCO annotation file"):
        CocoObjects(tmp_path / "nothing.json", tmp_path)
    for text, message in (
        ("{", "is not json"),
        ("[]", "found list"),
        ('{"images": []}', r"needs the lists .*; found \['images'\]"),
        ('{"images": [], "categories": [], "annotations": [{"caption": ""}]}', "no masks"),
        ('{"images": [], "categories": [{"id": 1}], "annotations": []}', "name and an id"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            CocoObjects(path, tmp_path / "photos")


def test_no_eligible_object_says_why(tmp_path):
    with pytest.raises(ValueError, match="no object to paste.*1 of categories"):
        coco(tmp_path, [{"category_id": 1}, {"area": 10}])


@pytest.mark.parametrize(
    "name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "..\\x.jpg", "C:/x", "", None, 3]
)
def test_photographs_outside_their_folder_are_refused(tmp_path, name):
    path = write_coco(tmp_path, [{}, {"image_id": 1}], photos=("a.jpg", "b.jpg"))
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    source = CocoObjects(path, tmp_path)
    assert len(source) == 1 and list(source.files) == ["instances.json", "b.jpg"]
    assert "image 0" in source.problems["photographs named outside their folder"][0]


@pytest.mark.parametrize("side", [10**9, 2**31, 10**30, -5, 0, 1.5, "x", None, True])
def test_impossible_sizes_are_named_before_anything_is_allocated(tmp_path, side):
    path = write_coco(tmp_path, [{}, {"image_id": 1}], photos=("a.jpg", "b.jpg"))
    content = json.loads(path.read_text())
    content["images"][0] |= {"height": side, "width": side}
    path.write_text(json.dumps(content))
    source = CocoObjects(path, tmp_path)
    assert len(source) == 1
    assert "image 0" in source.problems["image entries of no usable size"][0]


def test_entries_of_wrong_types_are_named(tmp_path):
    path = write_coco(tmp_path, [{}])
    content = json.loads(path.read_text())
    content["images"] += [7, {"id": [1]}, None]
    content["annotations"] += [
        *("text", {"id": {}}, {"id": 2**70, "category_id": 17}),
        {"id": 5, "category_id": [17]},
        {"id": 6, "category_id": 17, "image_id": [0]},
        {"id": 7, "category_id": 17, "image_id": 0, "segmentation": [["a", "b"] * 3]},
        {"id": 8, "category_id": 17, "image_id": 0, "segmentation": [[[1, 2]] * 6]},
        {
            "id": 9,
            "category_id": 17,
            "image_id": 0,
            "segmentation": {"size": [H, W], "counts": "\u00e9"},
        },
    ]
    path.write_text(json.dumps(content))
    source = CocoObjects(path, tmp_path)
    assert len(source) == 1
    assert len(source.problems["image entries without an id"]) == 3
    assert len(source.problems["annotations without an id that is a whole number"]) == 3
    assert len(source.problems["unusable masks"]) == 3


NAMES = ["Person", "car_(automobile)", "traffic_light", "Stop-Sign", "cow", "pickup truck", "Pole"]


def write_names(folder):
    path = write_coco(folder, [{"category_id": number} for number in range(len(NAMES))])
    content = json.loads(path.read_text())
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    path.write_text(json.dumps(content))
    return path


def test_names_of_other_vocabularies_are_folded_before_they_are_compared(tmp_path, caplog):
    path = write_names(tmp_path)
    source = CocoObjects(path, tmp_path, known=["pole"])
    assert [source.category(index) for index in range(len(source))] == ["cow", *NAMES[5:]]
    assert source.skipped == {"of categories left out": 4}
    # What looks like a known class is named before it is pasted.
    assert "'pickup truck'" in caplog.text and "'truck'" in caplog.text and "'Pole'" in caplog.text
    assert "cow" not in caplog.text
    controls = CocoObjects(path, tmp_path, labels={"person": 24, "car": 26})
    assert [controls.load(index).label for index in range(len(controls))] == [24, 26]


EXPORTED = {
    "text ids": {"image": "0", "image_id": "0", "id": "0", "category_id": "17"},
    "floats as ids": {"image": 0.0, "image_id": 0.0, "id": 0.0, "category_id": 17.0},
    "an image id that is a name": {"image": "a.jpg", "image_id": "a.jpg"},
    "area 0": {"area": 0},
    "a fraction of the image as area": {"area": 0.18},
    "area as text": {"area": "3600"},
    "area in a list": {"area": [3600]},
}


@pytest.mark.parametrize("kind", EXPORTED)
def test_what_exporters_write_differently_is_read_alike(tmp_path, kind):
    changes = dict(EXPORTED[kind])
    path = write_coco(tmp_path, [{}])
    content = json.loads(path.read_text())
    content["images"][0]["id"] = changes.pop("image", 0)
    content["annotations"][0] |= changes
    path.write_text(json.dumps(content))
    source = CocoObjects(path, tmp_path)
    assert not source.problems and source.load(0).source == {
        **{"source": "coco", "annotation_id": 0, "source_image": "a.jpg"},
        **{"category": "cat", "category_id": 17},
    }


def test_an_area_that_its_mask_denies_does_not_make_a_speck_an_object(tmp_path):
    speck = [[40, 30, 50, 30, 50, 40, 40, 40]]
    source = coco(tmp_path, [{}, {"area": 5000, "segmentation": speck}])
    assert len(source) == 1 and source.skipped == {"under 1000 px": 1}


def test_an_annotation_id_that_is_a_word_is_refused_for_that(tmp_path):
    source = coco(tmp_path, [{}, {"id": "first"}])
    assert len(source) == 1
    assert "first" in source.problems["annotations without an id that is a whole number"][0]


def test_a_source_of_which_nothing_can_be_read_is_refused_before_any_work(tmp_path):
    path = write_coco(tmp_path, [{}] * 3)
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"3 objects.*a\.jpg"):
        CocoObjects(path, tmp_path).refuse_if_unreadable()


@pytest.mark.parametrize(
    "name", ["Traffic_Light", "traffic-light", " TRAFFIC light ", "Traffic.light"]
)
def test_one_name_has_many_spellings(name):
    assert fold_name(name) == "traffic light"
    assert fold_name("car_(automobile)") == fold_name("Car (automobile)") == "car"


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("cars", ["bus", "car"], "car"),
        ("trafficlight", ["traffic light"], "traffic light"),
        ("School_Bus", ["bus"], "bus"),
        ("cat", ["car", "train"], None),
        ("fire hydrant", ["traffic light", "stop sign"], None),
        ("(?)", ["car"], None),
    ],
)
def test_a_category_that_looks_like_a_known_class_is_found(name, known, found):
    assert looks_like(name, known) == found


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3), (3.0, 3), ("3", 3), ("007", 7), (-1, -1), (3.5, None), ("3.0", None), ("a", None)]
    + [
        (True, None),
        (None, None),
        ([3], None),
        (2**63, None),
        (float("inf"), None),
        ("9" * 40, None),
    ],
)
def test_an_id_is_a_whole_number_however_it_is_written(value, number):
    assert whole_number(value) == number


@pytest.mark.parametrize(
    ("area", "pixels", "decides"),
    [(2400, None, False), (2400, 2000, False), (2400, 500, True), (0, None, True)]
    + [(0.12, None, True), ("2400", None, True), ([2400], None, True), (None, None, True)]
    + [(float("nan"), None, True)],
)
def test_an_area_that_cannot_be_true_is_taken_from_the_mask(area, pixels, decides):
    assert mask_decides(area, pixels) == decides


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../a.png", "a/../../b.png", "C:\\a.png", "a\0.png"]
)
def test_a_file_name_stays_in_its_folder(name):
    assert is_file_name("val/a.png") and not is_file_name(name)


def test_masks_that_reach_the_border_are_told_from_those_inside():
    inside = to_rle([[20, 20, 40, 20, 40, 40, 20, 40]], 60, 80)
    cut = to_rle([[0, 20, 40, 20, 40, 40, 0, 40]], 60, 80)
    assert not touches_edge(inside) and touches_edge(cut)
    assert int(coco_mask.area(inside)) == np.prod((20, 20))
