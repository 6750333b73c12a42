#!/usr/bin/env python
"""Build Fishyscapes Static from its published overlays and Cityscapes.

    python datasets/prepare_fishyscapes_static.py --overlays fs_val_v3 \\
        --cityscapes datasets/cityscapes --output datasets

The images contain Cityscapes and cannot be published. The authors (Blum et al. 2019,
arXiv:1904.03215) publish labels `NNNN_<frame>_labels.png` and overlays `NNNN*rgb.npz`, whose array
`rgb` is the signed difference to the Cityscapes image: image = clip(Cityscapes + rgb, 0, 255).
This script writes `fs_static_images_vK/` and, unless it exists, `fs_val_vK/` below --output.
A frame that cannot be built is reported and skipped, and the exit status is then 1.
"""

import argparse
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np

from anoseg_d2.data.image_io import MAX_PIXELS, read_image, read_label, write_image
from anoseg_d2.data.label_rules import LABEL_RULES
from anoseg_d2.utils import cli
from anoseg_d2.utils.files import atomic_path

LABEL = re.compile(r"(\d+)_(.+)_labels\.png", re.IGNORECASE)


def main(argv=None) -> int:
    """Run the command line; return the exit status."""
    parser = cli.build_parser(__doc__)
    parser.add_argument(
        "--overlays", type=Path, required=True, metavar="DIR", help="unpacked fs_val_vK.zip"
    )
    parser.add_argument(
        "--cityscapes", type=Path, required=True, metavar="DIR", help="holds leftImg8bit/"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="datasets folder")
    parser.add_argument(
        "--version", type=int, choices=(1, 2, 3), help="default: read from the folder's name"
    )
    args = parser.parse_args(argv)
    stopped = "interrupted; the same command continues from here"
    return cli.run_command(lambda: build(args), stopped, args.verbosity)


def build(args: argparse.Namespace) -> int:
    """Build every frame that has a label; return the exit status."""
    version = args.version or _version(args.overlays)
    frames = _frames(args.overlays)
    photographs = _photographs(args.cityscapes)
    images = args.output / f"fs_static_images_v{version}"
    labels = args.output / f"fs_val_v{version}"
    failed = []
    with cli.Progress("built", len(frames)) as progress:
        for label_path in frames:
            number, frame = LABEL.fullmatch(label_path.name).groups()
            try:
                image = _compose(label_path, number, frame, photographs)
                target = labels / label_path.name
                if not target.is_file() or not target.samefile(label_path):
                    with atomic_path(target) as temporary:
                        shutil.copyfile(label_path, temporary)
                write_image(images / f"{number}_{frame}_rgb.png", image)
            except (FileNotFoundError, ValueError) as error:
                failed.append(f"{label_path.name}: {error}")
            progress.update()
    for message in failed:
        print(f"skipped {message}", file=sys.stderr)
    cli.say(f"{len(frames) - len(failed)} of {len(frames)} images built in {images}")
    cli.say(f"check them: python datasets/check.py fishyscapes_static --root {args.output}")
    return int(bool(failed))


def _version(folder: Path) -> int:
    match = re.fullmatch(r"fs_val_v([123])", folder.resolve().name)
    if match is None:
        raise ValueError(
            f"--overlays {folder} is not named fs_val_vK; give the version with --version"
        )
    return int(match[1])


def _frames(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"--overlays {folder} is not a folder")
    frames = sorted(path for path in folder.iterdir() if LABEL.fullmatch(path.name))
    if not frames:
        raise FileNotFoundError(f"--overlays {folder} has no file named NNNN_<frame>_labels.png")
    return frames


def _photographs(cityscapes: Path) -> dict[str, Path]:
    """Return frame -> photograph, over all splits."""
    suffix = "_leftImg8bit.png"
    paths = sorted((cityscapes / "leftImg8bit").glob(f"*/*/*{suffix}"))
    if not paths:
        raise FileNotFoundError(f"--cityscapes {cityscapes} has no leftImg8bit/*/*/*{suffix}")
    return {path.name.removesuffix(suffix): path for path in paths}


def _compose(label_path: Path, number: str, frame: str, photographs) -> np.ndarray:
    """Return the image of one frame, (H, W, 3) uint8 RGB."""
    frame = frame.removesuffix("_leftImg8bit")
    if frame not in photographs:
        raise FileNotFoundError(f"Cityscapes has no frame {frame}")
    image = read_image(photographs[frame])
    label = LABEL_RULES["anomaly"].apply(read_label(label_path), str(label_path))
    if label.shape != image.shape[:2]:
        raise ValueError(f"the label is {label.shape}, but its photograph is {image.shape[:2]}")
    overlays = sorted(label_path.parent.glob(f"{number}*rgb.npz"))
    if len(overlays) != 1:
        raise FileNotFoundError(f"found {len(overlays)} overlays {number}*rgb.npz, expected one")
    overlay = read_overlay(overlays[0], image.shape)
    return (image.astype(np.int64) + overlay).clip(0, 255).astype(np.uint8)


def read_overlay(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Read the signed difference of an overlay, (H, W, 3) int64.

    Shape and type are checked in the header before anything is unpacked, and pickles are refused.

    Raises:
        ValueError: it is not such a file, or its size differs from the photograph's.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("rgb.npy") as stream:
            major = np.lib.format.read_magic(stream)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            declared, _, kind = read[major](stream)
        if declared != shape or kind.kind not in "iuf" or np.prod(declared) > 3 * MAX_PIXELS:
            raise ValueError(f"it declares {declared} {kind}, but its photograph is {shape}")
        with np.load(path, allow_pickle=False) as arrays:
            difference = arrays["rgb"]
    except (zipfile.BadZipFile, KeyError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"cannot read the overlay {path}: {error}") from error
    if not np.isfinite(difference).all():
        raise ValueError(f"the overlay {path} has values that are not finite")
    # The authors' code truncates to integers before adding.
    return difference.clip(-255, 255).astype(np.int64)


if __name__ == "__main__":
    sys.exit(main())
