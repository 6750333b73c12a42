"""Lock OUTPUT_DIR to one run, refuse to mix results, clean up after killed runs.

Only files that the project itself writes are ever deleted: the folder may hold others.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from anoseg_d2.utils.files import remove_abandoned

try:
    import fcntl
except ImportError:  # not a Unix: runs are not kept apart
    fcntl = None

__all__ = ["claim_output_dir"]

logger = logging.getLogger(__name__)

LOCK = ".lock"
_CHECKPOINTS = tuple(
    f"model_{which}.pth" for which in ("final", "ema", "best", "[0-9]" * 7, "[0-9]" * 8)
)
# What a run writes; averaged weights have the same below `ema`.
_WRITTEN = (
    *_CHECKPOINTS,
    *("model_final_adapter.safetensors", "last_checkpoint", "config.yaml", "metrics.json"),
    *("events.out.tfevents.[0-9]*", "report/index.html", "report/curves.json"),
    *(f"report/results.{kind}" for kind in ("json", "csv", "md", "tex")),
    *("inference/unfinished.json", "inference/*/result.json", "inference/*/images/*.npz"),
)


@contextlib.contextmanager
def claim_output_dir(
    output_dir, *, training: bool = True, resume: bool = False, overwrite: bool = False
) -> Iterator[None]:
    """Create OUTPUT_DIR and lock it for this process.

    Args:
        training: a training would mix with what an earlier one left; an evaluation would not.
        resume: the run in the folder is continued.
        overwrite: what an earlier training left is deleted.
    Raises:
        ValueError: another process holds the folder, or it holds a run that is neither continued
            nor overwritten.
        OSError: the folder cannot be made or written.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"OUTPUT_DIR {folder} is a file; it must be a folder")
    folder.mkdir(parents=True, exist_ok=True)
    # Without O_NOFOLLOW, a link of this name would have the file that it leads to overwritten.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(folder / LOCK, flags, 0o666), "r+", encoding="utf-8") as lock:
        _lock(lock, folder)
        for place in (folder, folder / "ema", folder / "report"):
            remove_abandoned(place)
        earlier = sorted(path.name for name in _CHECKPOINTS for path in folder.glob(name))
        if training and earlier and not resume:
            if not overwrite:
                raise ValueError(
                    f"OUTPUT_DIR {folder} holds a run ({earlier[-1]}): continue it with --resume, "
                    "delete it with --overwrite, or choose another OUTPUT_DIR"
                )
            logger.warning("--overwrite: deleting the run in %s", folder)
            for pattern in _WRITTEN:
                for path in (*folder.glob(pattern), *folder.glob(f"ema/{pattern}")):
                    # A folder may be a link to another run, whose files are not this one's.
                    if path.is_file() and path.parent.resolve().is_relative_to(folder.resolve()):
                        path.unlink()
        yield


def _lock(stream, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        # The system drops this lock when the process ends, however it ends.
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"OUTPUT_DIR {folder} is in use by another run (process {stream.read().strip()}); wait "
            "for it, or choose another OUTPUT_DIR"
        ) from error
    except OSError as error:  # Lustre and some NFS and FUSE mounts have no locks
        reason = error.strerror
        logger.warning("%s cannot be locked (%s): start no second run in it", folder, reason)
    stream.truncate(0)
    stream.write(str(os.getpid()))
    stream.flush()
