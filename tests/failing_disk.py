"""A disk that fails at its n-th call, for tests of everything that writes files."""

import builtins
import errno
import os

REAL_OPEN = builtins.open
CODES = (errno.ENOSPC, errno.EIO)
SYSTEM_CALLS = ((os, "replace"), (os, "fsync"))


class FailAt:
    """Let the n-th call of any wrapped function fail, and count the calls."""

    def __init__(self, number, code):
        self.number, self.code, self.calls = number, code, 0

    def wrap(self, function, leaves_half=False):
        """Wrap a function; `leaves_half` is for torch's and safetensors' writers (data, path)."""

        def wrapped(*args, **kwargs):
            self.calls += 1
            if self.calls == self.number:
                if leaves_half:
                    with REAL_OPEN(args[1], "wb") as stream:
                        stream.write(b"half")
                    # These writers do not raise OSError.
                    raise RuntimeError("PytorchStreamWriter failed writing file data/0")
                raise OSError(self.code, os.strerror(self.code))
            return function(*args, **kwargs)

        return wrapped

    def patch(self, monkeypatch, *calls):
        """Wrap the calls by which files are made, and `calls`: pairs of an owner and a name."""
        for owner, name in (*SYSTEM_CALLS, *calls):
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name)))
