import pytest

from anoseg_d2.data.dataset_files import Layout, find_files, match_files, path_regex


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_placeholder_captures_one_piece_of_a_name(tmp_path):
    touch(tmp_path, "images/a.png", "images/b.c.JPG", "images/deep/d.png", "other/e.png")
    assert set(match_files(tmp_path, "images/{id}.*")) == {"a", "b.c"}


def test_several_placeholders_are_joined_in_order_of_their_names(tmp_path):
    touch(tmp_path, "s1/rgb/7.png", "s2/rgb/7.png")
    assert set(match_files(tmp_path, "{scene}/rgb/{id}.png")) == {"7__s1", "7__s2"}


def test_a_repeated_placeholder_must_capture_the_same(tmp_path):
    touch(tmp_path, "a/a_rgb.png", "a/b_rgb.png")
    assert set(match_files(tmp_path, "{id}/{id}_rgb.png")) == {"a"}


def test_double_star_goes_down_any_number_of_folders(tmp_path):
    touch(tmp_path, "x/1.png", "x/y/2.png", "x/y/z/3.png")
    assert set(match_files(tmp_path, "x/**/{id}.png")) == {"1", "2", "3"}


def test_regular_expression_characters_in_names_mean_themselves(tmp_path):
    touch(tmp_path, "a+(b)/1.png", "aab/2.png")
    assert set(match_files(tmp_path, "a+(b)/{id}.png")) == {"1"}


def test_hidden_files_and_other_formats_are_not_images(tmp_path):
    touch(tmp_path, "i/._a.png", "i/a.png", "i/a.txt", "i/Thumbs.db", "i/.cache/b.png")
    assert set(match_files(tmp_path, "i/**/{id}.*")) == {"a"}


def test_links_are_followed_and_their_loops_end(tmp_path):
    touch(tmp_path, "far/1.png")
    (tmp_path / "near").symlink_to(tmp_path / "far")
    (tmp_path / "far/loop").symlink_to(tmp_path / "far")
    assert set(match_files(tmp_path, "near/**/{id}.png")) == {"1"}


def test_two_files_for_one_id_are_refused(tmp_path):
    touch(tmp_path, "images/1.jpg", "images/1.png")
    with pytest.raises(ValueError, match=r"two files for '1'.*1\.jpg.*1\.png"):
        match_files(tmp_path, "images/{id}.*")


LAYOUT = Layout("plain", ("set", "Set"), ("images/{id}.*",), ("labels/{id}.png",))


def test_pairs_are_sorted_and_partnerless_files_listed(tmp_path):
    touch(tmp_path, "set/images/b.jpg", "set/images/a.jpg", "set/images/c.jpg")
    touch(tmp_path, "set/labels/a.png", "set/labels/b.png", "set/labels/z.png")
    found = find_files("mine", tmp_path, [LAYOUT])
    assert [key for key, *_ in found.pairs] == ["a", "b"]
    assert [p.name for p in found.images_without_label] == ["c.jpg"]
    assert [p.name for p in found.labels_without_image] == ["z.png"]


def test_nothing_there_says_what_was_looked_for_and_what_is_there(tmp_path):
    touch(tmp_path, "set/pictures/a.jpg")
    with pytest.raises(FileNotFoundError) as error:
        find_files("mine", tmp_path, [LAYOUT])
    for words in ("mine", str(tmp_path), "images/{id}.*", "holds: pictures", "DETECTRON2_DATASETS"):
        assert words in str(error.value)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_files("mine", tmp_path / "nowhere", [LAYOUT])


def test_two_copies_at_once_are_refused_and_a_link_to_the_same_is_one(tmp_path):
    touch(tmp_path, "set/images/a.jpg", "set/labels/a.png")
    (tmp_path / "Set").symlink_to(tmp_path / "set")
    assert len(find_files("mine", tmp_path, [LAYOUT]).pairs) == 1
    (tmp_path / "Set").unlink()
    touch(tmp_path, "Set/images/a.jpg", "Set/labels/a.png")
    with pytest.raises(ValueError, match="2 copies.*plain in"):
        find_files("mine", tmp_path, [LAYOUT])


def test_extensions_are_compared_without_case_and_a_star_is_any():
    assert path_regex("a/{id}.png").fullmatch("a/1.PNG")["id"] == "1"
    assert path_regex("a/{id}.*").fullmatch("a/1.b.jpg")["id"] == "1.b"
    assert not path_regex("a/{id}.*").fullmatch("a/1")
