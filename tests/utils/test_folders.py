"""One walk of folders for data sets, objects, maps and predictions."""

import os
import unicodedata

import pytest

from anoseg_d2.data.cut_paste.sources import CutOutFolder
from anoseg_d2.data.dataset_files import match_files
from anoseg_d2.evaluation.map_files import find_maps
from anoseg_d2.prediction.input_files import find_inputs
from anoseg_d2.prediction.submission import find_images
from anoseg_d2.utils.folders import same_name, walk_files


@pytest.fixture
def tree(tmp_path):
    """Two images, one behind a link, among all that is to be skipped."""
    names = ("in/a.png", "far/b.png", "in/._a.png", "in/.ipynb_checkpoints/a-checkpoint.png")
    for name in (*names, "in/@eaDir/a.png", "in/__MACOSX/a.png", "in/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.symlink(tmp_path / "far", tmp_path / "in/linked")
    os.symlink(tmp_path / "in", tmp_path / "in/linked/circle")
    return tmp_path / "in"


@pytest.mark.parametrize(
    "find",
    [
        lambda folder: [str(p.relative_to(folder)) for p in walk_files(folder, (".png",))],
        lambda folder: [
            str(p.relative_to(folder)) for p in match_files(folder, "**/{id}.png").values()
        ],
        lambda folder: CutOutFolder(folder).names,
        lambda folder: [os.path.relpath(p, folder) for p in find_maps(folder, [])[1]],
    ],
    ids=["walk", "data set", "cut-outs", "maps"],
)
def test_links_are_followed_and_what_nobody_made_on_purpose_is_skipped(tree, find):
    assert find(tree) == ["a.png", "linked/b.png"]


def test_a_folder_without_its_subfolders(tree):
    assert [file.name for file in find_inputs([tree])[0]] == ["a"]
    assert [file.name for file in find_images(tree)] == ["a"]


def test_a_broken_link_is_kept_so_that_reading_it_names_it(tmp_path):
    os.symlink(tmp_path / "gone.png", tmp_path / "a.png")
    assert [path.name for path in walk_files(tmp_path, (".png",))] == ["a.png"]


def test_accents_pair_however_they_are_stored(tmp_path):
    forms = [unicodedata.normalize(form, "Straße_Ü1.png") for form in ("NFD", "NFC")]
    assert forms[0] != forms[1]
    for folder, name in zip(("images", "labels"), forms, strict=True):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    images, labels = (match_files(tmp_path, f"{side}/{{id}}.*") for side in ("images", "labels"))
    assert images.keys() == labels.keys()
    image = {"image_id": "x", "file_name": str(tmp_path / "images" / forms[0])}
    assert len(find_maps(tmp_path / "labels", [image])[0]) == 1


def test_the_accents_of_a_pattern_may_be_stored_in_the_other_form(tmp_path):
    (tmp_path / unicodedata.normalize("NFD", "Fotos_ä")).mkdir()
    (tmp_path / unicodedata.normalize("NFD", "Fotos_ä/1.png")).touch()
    assert list(match_files(tmp_path, unicodedata.normalize("NFC", "Fotos_ä/{id}.png"))) == ["1"]


def test_bytes_that_are_not_utf8_become_escapes():
    assert same_name(os.fsdecode(b"a\xff")) == "a\\udcff"
