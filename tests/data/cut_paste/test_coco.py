"""COCO files: every kind of annotation and photograph is used, or counted and named."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from anoseg_d2.data.cut_paste.coco import CocoObjects, fold_name

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
    source = coco(
        tmp_path,
        [
            {},
            {"segmentation": []},
            {"segmentation": {"size": [W, H], "counts": compressed_rle(square_mask())["counts"]}},
            {"segmentation": None},
            {"segmentation": [1, 2, 3, 4, 5, 6]},
            {"segmentation": [[200, 200, 300, 200, 300, 300, 200, 300]]},
            {"category_id": 999},
            {"image_id": 999},
        ],
    )
    assert len(source) == 1
    named = [name.split(" (")[0] for name in source.problems["unusable annotations"]]
    assert named == [str(number) for number in range(1, 8)]


def test_a_mask_that_is_larger_than_its_photograph_is_an_unreadable_object(tmp_path):
    counts = compressed_rle(np.pad(square_mask(), ((0, 0), (0, 900))))["counts"]
    source = coco(tmp_path, [{"segmentation": {"size": [H, W], "counts": counts}}])
    with pytest.raises(ValueError, match="RLE"):
        source.load(0)


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


def test_photographs_are_turned_as_exif_says(tmp_path):
    source = coco(tmp_path, [{}])
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees for display
    Image.new("RGB", (H, W), (90, 120, 150)).save(tmp_path / "a.jpg", exif=exif)
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
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        CocoObjects(tmp_path / "nothing.json", tmp_path)
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "not a COCO instances file"),
        ('{"images": []}', "not a COCO instances file"),
        ('{"images": [], "categories": [], "annotations": [{"caption": ""}]}', "not a COCO"),
        ('{"images": [], "categories": [], "annotations": []}', "no masks"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            CocoObjects(path, tmp_path / "photos")


def test_no_eligible_object_says_why(tmp_path):
    with pytest.raises(ValueError, match="no object to paste.*1 of categories"):
        coco(tmp_path, [{"category_id": 1}, {"area": 10}])


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg"])
def test_photographs_outside_their_folder_are_refused(tmp_path, name):
    path = write_coco(tmp_path, [{}, {"image_id": 1}], photos=("a.jpg", "b.jpg"))
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    source = CocoObjects(path, tmp_path)
    assert len(source) == 1 and list(source.files) == ["instances.json", "b.jpg"]
    assert "outside" in source.problems["unusable annotations"][0]


NAMES = ["Person", "car_(automobile)", "traffic_light", "Stop-Sign", "cow", "pickup truck", "Pole"]


def write_names(folder):
    path = write_coco(folder, [{"category_id": number} for number in range(len(NAMES))])
    content = json.loads(path.read_text())
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    path.write_text(json.dumps(content))
    return path


def test_names_of_other_vocabularies_are_folded_before_they_are_compared(tmp_path):
    path = write_names(tmp_path)
    source = CocoObjects(path, tmp_path)
    assert [source.category(index) for index in range(len(source))] == ["cow", *NAMES[5:]]
    assert source.skipped == {"of categories left out": 4}
    controls = CocoObjects(path, tmp_path, labels={"person": 24, "car": 26})
    assert [controls.load(index).label for index in range(len(controls))] == [24, 26]


@pytest.mark.parametrize("area", [0, None])
def test_an_area_that_is_missing_is_that_of_the_mask(tmp_path, area):
    speck = [[40, 30, 50, 30, 50, 40, 40, 40]]
    source = coco(tmp_path, [{"area": area}, {"area": area, "segmentation": speck}])
    assert len(source) == 1 and source.skipped == {"under 1000 px": 1}


@pytest.mark.parametrize(
    "name", ["Traffic_Light", "traffic-light", " TRAFFIC light ", "Traffic.light"]
)
def test_one_name_has_many_spellings(name):
    assert fold_name(name) == "traffic light"
    assert fold_name("car_(automobile)") == fold_name("Car (automobile)") == "car"
