"""Writing files whole: nothing but a regular file is ever replaced."""

import os

import pytest

from anoseg_d2.utils.files import write_atomic


def test_a_pipe_or_device_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file.*pipe"):
        write_atomic(pipe, b"content")
    assert pipe.is_fifo()


def test_an_output_inside_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file/inside"):
        write_atomic(tmp_path / "file" / "inside", b"content")
