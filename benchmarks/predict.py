"""Measure `anoseg predict` as a whole, with a checkpoint and with the file exported from it.

    python benchmarks/predict.py --json predict.json
    python benchmarks/predict.py --weights output/model_final.pth --images photos/ --int8

Every run is a process of its own, as a user starts it: imports, reading the weights, photographs
from jpg, network, and overlay and raw map of `rba` written. The sides take turns, so that other
work on the machine slows all of them. Figures are medians of wall-clock seconds. Without --weights
the model is a random ViT of --size; without --images, drawn photographs.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from anoseg_d2.checkpoint import save_weights
from anoseg_d2.config import load_config
from anoseg_d2.export.check import draw_image
from anoseg_d2.export.spec import ExportSpec
from anoseg_d2.export.write import export_model
from anoseg_d2.prediction.predictor import AnomalyPredictor


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="checkpoint; default: a random model")
    parser.add_argument("--size", default="S", help="of the random model (default: %(default)s)")
    parser.add_argument("--crop", type=int, default=352, help="window of the random model")
    parser.add_argument("--images", help="folder of photographs; default: drawn ones")
    parser.add_argument("--count", type=int, default=16, help="drawn photographs")
    parser.add_argument("--image-size", type=int, nargs=2, default=(352, 352), metavar=("H", "W"))
    parser.add_argument("--int8", action="store_true", help="also measure the int8 file")
    parser.add_argument("--repeat", type=int, default=3, help="turns (default: %(default)s)")
    parser.add_argument("--json", help="file for the figures")
    return parser


def make_files(args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Write the weights of every side; returns their paths by name."""
    overrides = ["MODEL.DEVICE", "cpu"]
    if args.weights:
        predictor = AnomalyPredictor.from_pretrained(args.weights, overrides)
    else:
        sizes = ["MODEL.EOMT.SIZE", args.size, "INPUT.CROP_SIZE", (args.crop, args.crop)]
        cfg = load_config(overrides=[*sizes, *overrides, "MODEL.ALLOW_UNTRAINED", True])
        predictor = AnomalyPredictor(cfg)
    files = {"eager": folder / "model.pth", "onnxruntime": folder / "model.onnx"}
    save_weights(predictor.model, files["eager"])
    if args.int8:
        files["onnxruntime int8"] = folder / "int8.onnx"
    for name, path in files.items():
        if path.suffix == ".onnx":
            spec = ExportSpec(("rba",), any_size=True, int8="int8" in name)
            export_model(predictor.model, path, spec, tolerance=np.inf)
    return files


def predict(weights: Path, images: Path, output: Path) -> float:
    """Return the seconds of one run."""
    command = [sys.executable, "-m", "anoseg_d2", "predict", images, "--weights", weights]
    command += ["--score", "rba", "--outputs", "overlay,raw_npy", "--output", output, "--quiet"]
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True)
    return time.perf_counter() - start


def largest_difference(first: Path, second: Path) -> float:
    """Return the largest difference of the raw maps of two runs."""
    found = sorted((first / "rba" / "raw_npy").glob("*.npy"))
    others = [second / path.relative_to(first) for path in found]
    pairs = zip(found, others, strict=True)
    loads = ((np.load(a, allow_pickle=False), np.load(b, allow_pickle=False)) for a, b in pairs)
    return max(float(np.abs(a - b).max()) for a, b in loads)


def main() -> None:
    args = build_parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = Path(args.images or folder / "photos")
        if not args.images:
            images.mkdir()
            for number in range(args.count):
                photo = draw_image(*args.image_size, seed=number).permute(1, 2, 0).numpy()
                Image.fromarray(photo).save(images / f"{number:03d}.jpg", quality=95)
        files = make_files(args, folder)
        seconds: dict[str, list[float]] = {side: [] for side in files}
        for _ in range(args.repeat):
            for side, path in files.items():
                seconds[side].append(predict(path, images, folder / side))
        medians = {side: statistics.median(values) for side, values in seconds.items()}
        rows = [
            {
                "side": side,
                "seconds": value,
                "all_seconds": seconds[side],
                "ratio": medians["eager"] / value,
                "largest_difference": largest_difference(folder / "eager", folder / side),
                "file_mb": files[side].stat().st_size / 1e6,
            }
            for side, value in medians.items()
        ]
        count = len(list((folder / "eager" / "rba" / "raw_npy").iterdir()))
    print(f"{count} photographs")
    print("| side | seconds | eager / side | largest difference | file MB |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['side']} | {row['seconds']:.2f} | {row['ratio']:.2f} | "
            f"{row['largest_difference']:.2g} | {row['file_mb']:.0f} |"
        )
    if args.json:
        about = {"photographs": count, "machine": platform.processor(), "rows": rows}
        Path(args.json).write_text(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
