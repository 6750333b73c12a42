"""Measure the speed of the exported model in onnxruntime against the model in PyTorch.

    python benchmarks/export.py --json export.json
    python benchmarks/export.py --weights output/model_final.pth --image-size 1080 1920 --threads 8

One image after the other on the CPU, the same threads on both sides; the sides take turns, so that
other work on the machine meets both. Figures are medians of wall-clock seconds. Eager is what
`AnomalyPredictor` runs. Without --weights: a random ViT of --size.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch

from anoseg_d2.config import load_config
from anoseg_d2.export.check import draw_image, open_session
from anoseg_d2.export.graph import ExportSpec
from anoseg_d2.export.write import export_model
from anoseg_d2.prediction.predictor import AnomalyPredictor


def build_predictor(args: argparse.Namespace) -> AnomalyPredictor:
    """Build the model to measure, on the CPU."""
    overrides = ["MODEL.DEVICE", "cpu", *args.opts]
    if args.weights:
        return AnomalyPredictor.from_pretrained(args.weights, overrides)
    sizes = ["MODEL.EOMT.SIZE", args.size, "INPUT.CROP_SIZE", (args.crop, args.crop)]
    cfg = load_config(args.config_file, [] if args.config_file else sizes)
    cfg.merge_from_list(overrides)
    return AnomalyPredictor(cfg)


def measure(model, spec: ExportSpec, repeat: int, image: torch.Tensor) -> dict:
    """Time both sides in turns; returns seconds and the largest difference of each output."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        differences = export_model(model, path, spec)
        session = open_session(path)
        megabytes = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
        seconds = {"eager": [], "onnxruntime": []}
        for turn in range(repeat + 1):
            start = time.perf_counter()
            model([{"image": image}])
            middle = time.perf_counter()
            session.run(None, {"image": image[None].numpy()})
            end = time.perf_counter()
            if turn:  # the first turn warms up both sides
                seconds["eager"].append(middle - start)
                seconds["onnxruntime"].append(end - middle)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    return {
        "image": list(image.shape[-2:]),
        "precision": "float16" if spec.half else "float32",
        "file_mb": megabytes,
        "seconds": medians,
        "all_seconds": seconds,
        "ratio": medians["eager"] / medians["onnxruntime"],
        "differences": {d.output: d.largest for d in differences},
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="checkpoint, as for tools/export_model.py")
    parser.add_argument("--config-file", default="", help="instead of --size and --crop")
    parser.add_argument("--size", default="S", choices=["S", "B", "L"])
    parser.add_argument("--crop", type=int, default=352, help="side of the window")
    parser.add_argument("--scores", nargs="+", default=["rba"])
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="also measure images of this size, windows inside the graph",
    )
    parser.add_argument("--fp16", action="store_true", help="also measure the float16 file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument(
        "opts", nargs="*", help="KEY VALUE pairs of the config", metavar="KEY VALUE"
    )
    return parser


def main():
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = build_predictor(args).model
    model.asked_scores = list(args.scores)
    result = {
        "machine": platform.machine(),
        "threads": args.threads,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "model": {"weights": args.weights or "random", "window": list(model.image_size)},
        "measured": [],
    }
    print("| image | precision | eager s | onnxruntime s | ratio | file MB | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for size in [None, *([tuple(args.image_size)] if args.image_size else [])]:
        for half in (False, True)[: 1 + args.fp16]:
            spec = ExportSpec(tuple(args.scores), image_size=size, half=half)
            row = measure(model, spec, args.repeat, draw_image(*(size or model.image_size)))
            result["measured"].append(row)
            seconds, height_width = row["seconds"], "x".join(map(str, row["image"]))
            print(
                f"| {height_width} | {row['precision']} | {seconds['eager']:.3f} "
                f"| {seconds['onnxruntime']:.3f} | {row['ratio']:.2f} | {row['file_mb']:.0f} "
                f"| {max(row['differences'][name] for name in args.scores):.1e} |",
                flush=True,
            )
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
