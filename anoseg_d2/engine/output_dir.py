"""OUTPUT_DIR belongs to one run: a lock, no silent overwriting, no litter of killed runs."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from anoseg_d2.evaluation.kept_maps import KEPT_PREFIX
from anoseg_d2.evaluation.streaming.exact_counts import EXACT_PREFIX

try:
    import fcntl
except ImportError:  # not a Unix: runs are not kept apart
    fcntl = None

__all__ = ["claim_output_dir"]

logger = logging.getLogger(__name__)

LOCK = ".lock"
# What a training writes; everything else in the folder is left alone.
_RESULTS = ("model_*.pth", "last_checkpoint", "metrics.json", "events.out.tfevents.*")
_APPENDED = ("log.txt", "metrics.json", "config.yaml", "last_checkpoint")
_RESULT_FOLDERS = ("inference", "report", "ema")
# Temporary names of files that were being written when a run was killed; averaged weights have
# folders of their own.
_LITTER = (
    *("*.tmp", ".*.tmp", "**/*.part.mp4"),
    *(f"{top}report/.*.tmp" for top in ("", "ema/")),
    *(
        f"{top}inference/**/{name}"
        for top in ("", "ema/")
        for name in (".*.tmp", ".spill-*", f"{KEPT_PREFIX}*", f"{EXACT_PREFIX}*")
    ),
)


@contextlib.contextmanager
def claim_output_dir(
    output_dir, *, training: bool = True, resume: bool = False, overwrite: bool = False
) -> Iterator[None]:
    """Hold OUTPUT_DIR for this process; it is made.

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
    for name in (LOCK, *_APPENDED):
        if (folder / name).exists() and not (folder / name).is_file():
            # Opening a pipe would wait for its other end, and that may never come.
            raise ValueError(f"OUTPUT_DIR {folder}: {name} is not a regular file; move it away")
    with open(folder / LOCK, "a+", encoding="utf-8") as lock:
        _lock(lock, folder)
        # Only now: nobody else is writing here, so temporary files are those of killed runs.
        for pattern in _LITTER:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        earlier = sorted(path.name for path in folder.glob("model_*.pth"))
        if training and earlier and not resume:
            if not overwrite:
                raise ValueError(
                    f"OUTPUT_DIR {folder} holds a run ({earlier[-1]}): continue it with --resume, "
                    "delete it with --overwrite, or choose another OUTPUT_DIR"
                )
            _delete_run(folder)
        yield


def _lock(stream, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        # The system drops this lock when the process ends, however it ends.
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.seek(0)
        raise ValueError(
            f"OUTPUT_DIR {folder} is in use by another run (process {stream.read().strip()}); wait "
            "for it, or choose another OUTPUT_DIR"
        ) from error
    stream.truncate(0)
    stream.write(str(os.getpid()))
    stream.flush()


def _delete_run(folder: Path) -> None:
    logger.warning("--overwrite: deleting the run in %s", folder)
    for pattern in _RESULTS:
        for path in folder.glob(pattern):
            path.unlink()
    for name in _RESULT_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
