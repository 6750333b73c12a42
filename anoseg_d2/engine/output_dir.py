"""Keep the files of one run apart from those of another.

Only files that the project itself writes are ever deleted: the folder may hold others.
"""

import logging
from pathlib import Path

logger = logging.getLogger(__name__)

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
    *(".anoseg-*", "report/.anoseg-*"),  # half a file, where a run was killed as it wrote
)


def claim_output_dir(
    output_dir, *, training: bool = True, resume: bool = False, overwrite: bool = False
) -> None:
    """Create OUTPUT_DIR, and refuse to mix a new training with one that it holds.

    Args:
        training: a training would mix with what an earlier one left; an evaluation would not.
        resume: the run in the folder is continued.
        overwrite: what an earlier training left is deleted.
    Raises:
        ValueError: it is a file, or it holds a run that is neither continued nor overwritten.
        OSError: the folder cannot be made or written.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"OUTPUT_DIR {folder} is a file; it must be a folder")
    folder.mkdir(parents=True, exist_ok=True)
    earlier = sorted(path.name for name in _CHECKPOINTS for path in folder.glob(name))
    if not training or not earlier or resume:
        return
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
