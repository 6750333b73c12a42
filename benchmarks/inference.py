"""Measure the speed of inference against its peers; both sides take turns in one run.

    python benchmarks/inference.py --json inference.json
    python benchmarks/inference.py --weights output/model_final.pth --rows scores folder

Three groups of rows; every figure is the median of CPU-wall seconds, both sides take turns.
    network   our network against transformers' EomtForUniversalSegmentation with the same weights,
              final prediction only, float32, and ours in mixed precision where it is named
    scores    every score at native size, segmentation and confidence, against only the network
    folder    a folder as `anoseg predict` does it (reading, predicting and writing overlap) against
              one image at a time
Without --weights, the model is a random ViT of --size. All its queries matter,
which is the worst case of TEST.QUERY_TOLERANCE; the row says how many each map kept.
"""

import argparse
import copy
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from anoseg_d2.config import load_config
from anoseg_d2.data.image_io import read_image, write_image
from anoseg_d2.export.check import draw_image
from anoseg_d2.modeling.eomt import EoMT
from anoseg_d2.modeling.inference import choose_queries, predict_windows
from anoseg_d2.modeling.windows import cut_windows, plan_windows
from anoseg_d2.prediction.input_files import find_inputs
from anoseg_d2.prediction.job import PredictionJob
from anoseg_d2.prediction.outputs import ScoreOutputs
from anoseg_d2.prediction.predictor import AnomalyPredictor
from anoseg_d2.utils.files import write_json


def take_turns(sides: dict, repeat: int) -> dict:
    """Return the median seconds of each side; the first turn warms up."""
    seconds = {name: [] for name in sides}
    for turn in range(repeat + 1):
        for name, work in sides.items():
            start = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def build_predictor(args: argparse.Namespace, crop: int) -> AnomalyPredictor:
    """Build the model to measure, on the CPU."""
    overrides = ["MODEL.DEVICE", "cpu", *args.opts]
    if args.weights:
        return AnomalyPredictor.from_pretrained(args.weights, overrides)
    sizes = ["MODEL.EOMT.SIZE", args.size, "INPUT.CROP_SIZE", (crop, crop)]
    sizes += ["MODEL.EOMT.ANOMALY_CLASS", True, "MODEL.ALLOW_UNTRAINED", True]
    return AnomalyPredictor(load_config("", [*sizes, *overrides]))


def transformers_twin(model: EoMT):
    """Return an EomtForUniversalSegmentation of the same sizes, and a copy with its weights."""
    from transformers import EomtConfig, EomtForUniversalSegmentation

    from anoseg_d2.checkpoint import load_into, read_checkpoint

    vit = model.backbone
    config = EomtConfig(
        hidden_size=vit.embed_dim,
        num_hidden_layers=len(vit.blocks),
        num_attention_heads=vit.blocks[0].attn.num_heads,
        num_register_tokens=0 if vit.reg_token is None else vit.reg_token.shape[1],
        image_size=model.image_size[0],
        patch_size=model.patch_size,
        num_blocks=model.num_blocks,
        num_queries=model.num_queries,
        num_labels=model.num_known,
    )
    peer, copied = EomtForUniversalSegmentation(config).eval(), copy.deepcopy(model)
    peer.attn_mask_probs.zero_()  # a finished training has annealed its masks away
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        load_into(copied, read_checkpoint(folder))
    return peer, copied


def measure_network(args, predictor: AnomalyPredictor) -> list[dict]:
    """Time our network against transformers', on one image of the size that the model sees."""
    peer, model = transformers_twin(predictor.model)
    height, width = model.image_size
    image = draw_image(height, width)[None]
    pixels = (image.float() - model.pixel_mean) / model.pixel_std

    def ours():
        with torch.inference_mode():
            return model.predict_masks(image, final_only=True)[-1][0]

    def theirs():
        with torch.inference_mode():
            return peer(pixel_values=pixels).masks_queries_logits

    difference = (ours() - theirs()).abs().max().item()
    rows, sides = [], {"transformers": theirs, "ours": ours}
    if args.precision:
        dtype = getattr(torch, args.precision)

        def mixed():
            with torch.autocast("cpu", dtype):
                return ours()

        sides[args.precision] = mixed
    seconds = take_turns(sides, args.repeat)
    for name in list(sides)[1:]:
        rows.append(
            {
                "row": f"network {height}x{width}, {name}",
                "against": "transformers, float32",
                "seconds": seconds[name],
                "peer_seconds": seconds["transformers"],
                "ratio": seconds[name] / seconds["transformers"],
                "largest_difference": difference if name == "ours" else None,
            }
        )
    return rows


def measure_scores(args, predictor: AnomalyPredictor, size: tuple[int, int]) -> list[dict]:
    """Time every score of an image against only the network on its windows."""
    model, image = predictor.model, draw_image(*size)
    plan = plan_windows(size, model.image_size, model.inference.window_overlap)
    crops = cut_windows(image, plan)

    def network():
        with torch.inference_mode():
            model.predict_masks(crops, final_only=True)

    seconds = take_turns(
        {"network": network, "scores": lambda: model([{"image": image}])}, args.repeat
    )
    with torch.inference_mode():
        coefficients = predict_windows(model, crops[:1], model.score_names)[1]
    own = {name: value[0] for name, value in coefficients.items()}
    kept = len(choose_queries(own, model.inference.query_tolerance))
    return [
        {
            "row": f"{len(model.score_names)} scores, {size[0]}x{size[1]}, {len(crops)} windows",
            "against": "the network",
            "seconds": seconds["scores"],
            "peer_seconds": seconds["network"],
            "ratio": seconds["scores"] / seconds["network"],
            "queries_kept": kept,
            "queries": model.num_queries,
        }
    ]


def measure_folder(args, predictor: AnomalyPredictor) -> list[dict]:
    """Time a folder with overlapping work against one image at a time."""
    kinds = ("overlay", "heatmap")
    with tempfile.TemporaryDirectory() as folder:
        for index in range(args.images):
            write_image(
                Path(folder) / "in" / f"{index}.png",
                draw_image(*args.image_size, index).permute(1, 2, 0).numpy(),
            )
        files, _ = find_inputs([Path(folder) / "in"])

        def overlapped():
            with ScoreOutputs(Path(folder) / "a", "rba", kinds) as outputs:
                PredictionJob(predictor, {"rba": outputs}).images(files)

        def one_by_one():
            with ScoreOutputs(Path(folder) / "b", "rba", kinds) as outputs:
                for file in files:
                    photo = read_image(file.path)
                    score = predictor(photo[..., ::-1])["scores"]["rba"]
                    outputs.write_image(file.name, str(file.path), photo, score)

        seconds = take_turns({"one by one": one_by_one, "folder": overlapped}, args.repeat)
    size = "x".join(map(str, args.image_size))
    return [
        {
            "row": f"folder of {args.images} images {size}, {args.threads} threads",
            "against": "one by one",
            "seconds": seconds["folder"],
            "peer_seconds": seconds["one by one"],
            "ratio": seconds["folder"] / seconds["one by one"],
        }
    ]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", nargs="+", default=["network", "scores", "folder"], help="groups to measure")
    add("--weights", help="checkpoint; default: a random ViT")
    add("--size", default="S", choices=["S", "B", "L"])
    add("--crops", nargs="+", type=int, default=[352, 640], help="sides of the square window")
    add("--wide", action="store_true", help="also scores of 2S x S images, two windows of side S")
    add("--precision", choices=["bfloat16", "float16"], help="also measure the network in this")
    add("--images", type=int, default=12, help="in the folder")
    add("--image-size", type=int, nargs=2, default=[720, 1280], metavar=("H", "W"))
    add("--threads", type=int, default=1)
    add("--repeat", type=int, default=7)
    add("--json", help="write the figures to this file")
    add("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    for crop in args.crops[: 1 if args.weights else None]:
        predictor = build_predictor(args, crop)
        side = predictor.model.image_size
        if "network" in args.rows:
            rows += measure_network(args, predictor)
        if "scores" in args.rows:
            rows += measure_scores(args, predictor, side)
            if args.wide:
                rows += measure_scores(args, predictor, (side[0], 2 * side[1]))
    if "folder" in args.rows:
        rows += measure_folder(args, build_predictor(args, args.crops[0]))
    print("| row | against | seconds | peer's seconds | ratio |")
    print("|---|---|---|---|---|")
    for row in rows:
        figures = f"{row['seconds']:.3f} | {row['peer_seconds']:.3f} | {row['ratio']:.2f}"
        print(f"| {row['row']} | {row['against']} | {figures} |")
        if "queries_kept" in row:
            kept = row["queries_kept"]
            print(f"  queries kept of {row['queries']}: {kept}")
    if args.json:
        about = {"machine": platform.machine(), "torch": torch.__version__}
        write_json(args.json, {**about, "threads": args.threads, "rows": rows})


if __name__ == "__main__":
    main()
