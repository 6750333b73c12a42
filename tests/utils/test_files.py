"""Files appear whole, and replace only files."""

import errno
import os

import pytest

from anoseg_d2.utils.files import (
    read_json,
    write_atomic,
    write_json,
)


def test_a_disk_that_fails_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_atomic(tmp_path / "model.pth", b"content")
    assert not list(tmp_path.iterdir())


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path):
    path = tmp_path / ("n" * 251 + ".png")
    write_atomic(path, b"content")
    assert path.read_bytes() == b"content"
    with pytest.raises(OSError, match="n{300}"):
        write_atomic(tmp_path / ("n" * 300), b"content")


def test_a_written_file_has_the_usual_permissions(tmp_path):
    write_atomic(tmp_path / "file", b"")
    (tmp_path / "usual").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_pipe_or_device_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file.*pipe"):
        write_atomic(pipe, b"content")
    assert pipe.is_fifo()


def test_an_output_inside_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        write_atomic(tmp_path / "file" / "inside", b"content")


def test_names_that_are_not_utf8_survive_json(tmp_path):
    write_json(tmp_path / "names.json", {"name": "bad-\udcff"})
    assert read_json(tmp_path / "names.json") == {"name": "bad-\udcff"}
