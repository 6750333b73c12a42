"""What files, folders and patterns stand for."""

import logging

import pytest

from anoseg_d2.prediction.input_files import find_inputs


@pytest.fixture
def tree(tmp_path):
    for name in ("b.PNG", "a.jpg", "clip.mp4", "notes.txt", ".hidden.png", "deep/a.png", "x.raw"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def listed(files):
    return [(file.path.name, file.name, file.is_video) for file in files]


def test_a_folder_stands_for_its_images_and_videos_sorted(tree):
    files, missing = find_inputs([tree])
    assert listed(files) == [
        ("a.jpg", "a", False),
        ("b.PNG", "b", False),
        ("clip.mp4", "clip", True),
    ]
    assert missing == []


def test_patterns_reach_into_subfolders(tree):
    files, missing = find_inputs([f"{tree}/**/*.png", f"{tree}/?.jpg"])
    assert listed(files) == [("a.png", "a", False), ("a.jpg", "a-2", False)] and not missing


def test_every_file_is_taken_once_in_the_order_of_the_arguments(tree):
    files, _ = find_inputs([tree / "clip.mp4", tree, tree / "deep" / ".." / "a.jpg"])
    assert [file.path.name for file in files] == ["clip.mp4", "a.jpg", "b.PNG"]


def test_equal_names_get_a_number_and_a_warning(tree, caplog):
    (tree / "deep" / "A.jpg").touch()
    with caplog.at_level(logging.WARNING):
        files, _ = find_inputs([tree / "a.jpg", tree / "deep" / "a.png", tree / "deep" / "A.jpg"])
    assert [file.name for file in files] == ["a", "a-2", "A-3"]
    assert "deep/a.png are named a-2" in caplog.text and "deep/A.jpg are named A-3" in caplog.text


def test_a_named_file_is_taken_whatever_its_extension(tree):
    files, _ = find_inputs([tree / "x.raw"])
    assert listed(files) == [("x.raw", "x", False)]


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tree):
    (tree / "shot[1].png").touch()
    assert listed(find_inputs([tree / "shot[1].png"])[0]) == [("shot[1].png", "shot[1]", False)]


def test_an_argument_that_matches_nothing_says_what_was_looked_for(tree):
    (tree / "empty").mkdir()
    files, missing = find_inputs([tree / "no.png", tree / "empty", f"{tree}/*.gif", tree / "a.jpg"])
    assert len(files) == 1
    assert "no.png: no such file or folder" in missing[0]
    assert "contains no images (.png" in missing[1] and "empty/**/*'" in missing[1]
    assert "the pattern matches no images" in missing[2]
