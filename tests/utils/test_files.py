"""Files appear whole, replace only files, and leave nothing when their writer is killed."""

import os
import signal
import subprocess
import sys

import pytest

from anoseg_d2.utils.files import read_bytes, read_json, remove_abandoned, write_atomic, write_json

WRITE = """
import sys
from anoseg_d2.utils.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_only_temporary_files_of_killed_writers_are_removed(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / "model [1].pth"
    write_atomic(path, b"whole")
    write_atomic(tmp_path / "other.pth", b"whole")
    command = [sys.executable, "-c", WRITE, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ, **pipes) as writer:
        assert writer.stdout.readline() == "writing\n"
        (temporary,) = tmp_path.glob(".*.tmp")
        remove_abandoned(path)
        assert temporary.exists()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        remove_abandoned(tmp_path / "other.pth")
        assert temporary.exists()
        remove_abandoned(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model [1].pth", "other.pth"]
    assert path.read_bytes() == b"whole"


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


@pytest.mark.parametrize("read", [read_bytes, read_json])
def test_a_file_that_cannot_be_read_is_named(tmp_path, read):
    path = tmp_path / "broken.json"
    path.symlink_to("/proc/self/mem")  # reading its first byte is an input/output error
    with pytest.raises(OSError, match="broken.json"):
        read(path)


def test_names_that_are_not_utf8_survive_json(tmp_path):
    write_json(tmp_path / "names.json", {"name": "bad-\udcff"})
    assert read_json(tmp_path / "names.json") == {"name": "bad-\udcff"}
