"""Measure the speed of the exported model in onnxruntime against the model in PyTorch.

    python benchmarks/export.py --json export.json
    python benchmarks/export.py --weights output/model_final.pth --image-size 1080 1920 --threads 8
    python benchmarks/export.py --int8 --weights model_final.pth --dataset road_anomaly --images 10

One image after the other on the CPU, with the same number of threads on both sides; the sides take
turns, so that other work on the machine slows both. Figures are medians of wall-clock seconds.
Eager is what `AnomalyPredictor` runs. Without --weights, the model is a random ViT of --size.

--dataset also evaluates each file and the model on labelled images, to state what a precision costs
in AUPRC and FPR95.
"""

import argparse
import dataclasses
import json
import math
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from anoseg_d2.config import load_config
from anoseg_d2.data.builtin import register_cards
from anoseg_d2.data.image_io import read_image
from anoseg_d2.data.label_rules import load_label
from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.export import check
from anoseg_d2.export.check import draw_image, open_session
from anoseg_d2.export.spec import ExportSpec
from anoseg_d2.export.write import export_model
from anoseg_d2.prediction.predictor import AnomalyPredictor

FIGURES = ("auprc", "fpr95")


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
        # Differences are a result here, so none of them is too large.
        differences = export_model(model, path, spec, tolerance=math.inf)
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
        "precision": "float16" if spec.half else "int8" if spec.int8 else "float32",
        "file_mb": megabytes,
        "seconds": medians,
        "all_seconds": seconds,
        "ratio": medians["eager"] / medians["onnxruntime"],
        "differences": {d.output: d.largest for d in differences},
    }


def read_labelled(name: str, count: int) -> list[tuple[torch.Tensor, np.ndarray]]:
    """Return images (3, H, W) uint8 and labels (H, W) of a dataset, evenly spread over it."""
    records = DatasetCatalog.get(name)
    rule = MetadataCatalog.get(name).label_rule
    chosen = [records[index * len(records) // count] for index in range(min(count, len(records)))]
    return [
        (
            torch.from_numpy(read_image(record["file_name"])).permute(2, 0, 1),
            load_label(record["sem_seg_file_name"], rule),
        )
        for record in chosen
    ]


def compare_figures(model, names: list[str], precision: str, images: list) -> dict:
    """Evaluate the model and its file on images of one size.

    Returns:
        {score: {"eager" or "file": {"auprc": ..., "fpr95": ...}}}, as fractions, and under
        `differing_pixels` the fraction of pixels with another class.
    """
    size = tuple(images[0][0].shape[-2:])
    spec = make_spec(names, size, precision)
    metrics = {name: {"eager": PixelMetrics(), "file": PixelMetrics()} for name in names}
    differing = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_model(model, path, spec, tolerance=math.inf)
        session = open_session(path)
        for image, label in images:
            (eager,) = model([{"image": image}])
            found = dict(
                zip(spec.outputs, session.run(None, {"image": image[None].numpy()}), strict=True)
            )
            differing.append((found["sem_seg"][0] != eager["sem_seg"].numpy()).mean())
            for name in names:
                metrics[name]["eager"].update(eager["scores"][name], label)
                metrics[name]["file"].update(found[name][0], label)
    undefined = metrics[names[0]]["eager"].compute().get("why")
    if undefined:
        raise ValueError(f"{undefined}; give a larger --images than {len(images)}")
    figures = {
        name: {
            side: {key: value for key, value in counts.compute().items() if key in FIGURES}
            for side, counts in sides.items()
        }
        for name, sides in metrics.items()
    }
    return {"differing_pixels": float(np.mean(differing)), "images": len(images), **figures}


def make_spec(names: list[str], size, precision: str) -> ExportSpec:
    half, int8 = precision == "float16", precision == "int8"
    return ExportSpec(tuple(names), image_size=size, half=half, int8=int8)


def cpu_extensions() -> list[str]:
    """Return which 8-bit and vector instructions Linux reports."""
    known = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [name for name in known if name in words]


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
    parser.add_argument("--int8", action="store_true", help="also measure the int8 file")
    parser.add_argument("--dataset", help="registered anomaly set to evaluate both sides on")
    parser.add_argument("--card", action="append", default=[], help="register this card first")
    parser.add_argument("--images", type=int, default=10, help="of --dataset, all of one size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument(
        "opts", nargs="*", help="KEY VALUE pairs of the config", metavar="KEY VALUE"
    )
    return parser


def print_figures(figures: dict, names: list[str]) -> None:
    """Print what each precision costs."""
    print("\n| precision | score | eager AUPRC | file AUPRC | eager FPR95 | file FPR95 | classes |")
    print("|---|---|---|---|---|---|---|")
    for precision, found in figures.items():
        for name in names:
            eager, file = found[name]["eager"], found[name]["file"]
            print(
                f"| {precision} | {name} | {eager['auprc']:.2%} | {file['auprc']:.2%} "
                f"| {eager['fpr95']:.2%} | {file['fpr95']:.2%} "
                f"| {found['differing_pixels']:.2%} differ |"
            )


def main():
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    check.TOLERANCES["int8"] = (0.3, 1.0)  # a result here, like differences of scores
    torch.manual_seed(0)
    model = build_predictor(args).model
    model.inference = dataclasses.replace(model.inference, scores=list(args.scores))
    result = {
        "machine": platform.machine(),
        "threads": args.threads,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "cpu": cpu_extensions(),
        "model": {"weights": args.weights or "random", "window": list(model.image_size)},
        "measured": [],
    }
    precisions = ["float32", *["float16"] * args.fp16, *["int8"] * args.int8]
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {result['cpu']}")
    print("| image | precision | eager s | onnxruntime s | ratio | file MB | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for size in [None, *([tuple(args.image_size)] if args.image_size else [])]:
        for precision in precisions:
            spec = make_spec(args.scores, size, precision)
            row = measure(model, spec, args.repeat, draw_image(*(size or model.image_size)))
            result["measured"].append(row)
            seconds, height_width = row["seconds"], "x".join(map(str, row["image"]))
            print(
                f"| {height_width} | {row['precision']} | {seconds['eager']:.3f} "
                f"| {seconds['onnxruntime']:.3f} | {row['ratio']:.2f} | {row['file_mb']:.0f} "
                f"| {max(row['differences'][name] for name in args.scores):.1e} |",
                flush=True,
            )
    if args.dataset:
        register_cards(args.card)
        images = read_labelled(args.dataset, args.images)
        result["figures"] = {
            precision: compare_figures(model, args.scores, precision, images)
            for precision in precisions
        }
        print_figures(result["figures"], args.scores)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
