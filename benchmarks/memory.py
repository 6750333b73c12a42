r"""Measure what the rows of a memory are worth, and what `memory` and `ratio` cost.

    python benchmarks/memory.py --weights output/with_ratio.pth --dataset camvid_drives_train \
        --test camvid_drives_anomaly camvid_drives_anomaly_known --json memory.json
    python benchmarks/memory.py --config-file camvid/eomt_baseline --weights dinov2.safetensors ...
    python benchmarks/memory.py --groups inference training

Three groups of figures:
    rows       AUPRC and FPR95 of `memory` with every known patch of --dataset, with random rows and
               with coresets, all from the same pass over the images of --test
    inference  seconds that a memory of each size, and the ratio head, add to one forward pass of
               one window; also a whole image with and without them
    training   seconds of a training step with and without the ratio head, and of the head by itself

Sides take turns in one run; seconds are medians. Without --weights the model is a random ViT of
--size, whose costs are those of a trained one. With --config-file, tensors that the weights lack,
such as the queries, stay random: `memory` does not depend on them.
"""

import argparse
import dataclasses
import platform

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from inference import take_turns
from training import Row, draw_batch

from anoseg_d2.commands.memory import find_photographs
from anoseg_d2.config import load_config
from anoseg_d2.data.builtin import register_cards
from anoseg_d2.data.image_io import read_image
from anoseg_d2.data.label_rules import load_label
from anoseg_d2.engine.fit_memory import HELD_OUT, collect_tokens, default_blocks, labelled_records
from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.export.check import draw_image
from anoseg_d2.modeling import scores
from anoseg_d2.modeling.criterion import targets_from_sem_seg
from anoseg_d2.modeling.eomt import EoMT
from anoseg_d2.modeling.filters import GuidedFilter
from anoseg_d2.modeling.patch_heads import PATCH_HEADS, PatchMemory, RatioHead, free_block
from anoseg_d2.modeling.patch_heads.memory import choose_rows, plain_blocks
from anoseg_d2.prediction.predictor import AnomalyPredictor
from anoseg_d2.utils.cli import Progress
from anoseg_d2.utils.files import write_json


def build_model(args: argparse.Namespace) -> EoMT:
    """Build the model to measure, on the CPU."""
    overrides = ["MODEL.DEVICE", "cpu", *args.opts]
    if args.weights and not args.config_file:
        return AnomalyPredictor.from_pretrained(args.weights, overrides).model
    if not args.weights:
        sizes = ["MODEL.EOMT.SIZE", args.size, "INPUT.CROP_SIZE", (args.crop, args.crop)]
        overrides = [*sizes, "MODEL.EOMT.ANOMALY_CLASS", True, *overrides]
    weights = ["MODEL.WEIGHTS", args.weights or "", "MODEL.ALLOW_UNTRAINED", True]
    return AnomalyPredictor(load_config(args.config_file or "", [*weights, *overrides])).model


def add_memory(model: EoMT, name: str, rows: torch.Tensor, block: int) -> None:
    """Add a memory, and a score that reads it."""
    model.patch_maps[name] = PatchMemory(rows, block)
    PATCH_HEADS.register(name)(type("Memory", (PatchMemory,), {}))
    scores.register_score(name, maps=(name,))(lambda maps, num_known: maps[name][:, 0])


def measure_rows(args, model: EoMT) -> list[dict]:
    """Compare memories of the same images by their figures on the same test images."""
    register_cards(args.cards)
    records = labelled_records(args.dataset) if args.dataset else find_photographs(args.images)
    records = records[: args.limit]
    records = [r for index, r in enumerate(records) if index % HELD_OUT] or records
    block = free_block(len(model.backbone.blocks), model.num_blocks)
    generator = torch.Generator().manual_seed(args.seed)
    tokens = collect_tokens(model, [block], records, 10**9, generator)[0][0]
    add_memory(model, f"all {len(tokens)}", tokens, block)
    names = [f"all {len(tokens)}"]
    for kind, counts in (("random", args.random), ("coreset", args.coreset)):
        for count in counts:
            # A coreset chooses among three times as many candidates, as `anoseg memory` does.
            most = count * (3 if kind == "coreset" else 1)
            drawn = tokens[choose_rows(tokens, most, generator, False)]
            names.append(f"{kind} {count}")
            rows = drawn[choose_rows(drawn, count, generator, kind == "coreset")]
            add_memory(model, names[-1], rows, block)
    found = [{"rows": name, "kept": len(model.patch_maps[name].rows)} for name in names]
    for dataset in args.test:
        figures = evaluate_scores(model, names, dataset, args.limit)
        for row in found:
            row[dataset] = figures[row["rows"]]
    return found


def evaluate_scores(model: EoMT, names: list[str], dataset: str, limit: int | None) -> dict:
    """Evaluate scores on the first images of a set; returns {score: {"auprc %", "fpr95 %"}}."""
    metrics = {name: PixelMetrics() for name in names}
    rule = MetadataCatalog.get(dataset).label_rule
    entries = DatasetCatalog.get(dataset)[:limit]
    with Progress(dataset, len(entries)) as progress:
        for entry in entries:
            image = torch.from_numpy(read_image(entry["file_name"])).permute(2, 0, 1)
            maps = model([{"image": image}], score_names=names)[0]["scores"]
            label = load_label(entry["sem_seg_file_name"], rule)
            for name in names:
                metrics[name].update(maps[name].numpy(), label)
            progress.update()
    found = {name: metric.compute() for name, metric in metrics.items()}
    if any(figures["auprc"] is None for figures in found.values()):
        raise ValueError(f"{dataset}: nothing in its first {len(entries)} images is unknown")
    return {
        name: {f"{key} %": 100 * figures[key] for key in ("auprc", "fpr95")}
        for name, figures in found.items()
    }


def measure_inference(args, model: EoMT) -> list[dict]:
    """Time what can be added to a model against one forward pass of a window.

    That is: memories of random rows, of one block and of the default ones with their plain blocks,
    the ratio head, and the guided filter of one score.
    """
    vit = model.backbone
    width, depth = vit.embed_dim, len(vit.blocks)
    block = free_block(depth, model.num_blocks)
    blocks = RatioHead.choose_blocks(depth, model.num_blocks)
    parts = {f"memory {n}": PatchMemory(torch.randn(n, width), block) for n in args.random}
    several = default_blocks(model)
    ones = torch.ones(len(several))
    parts["memory of several blocks"] = PatchMemory(
        torch.randn(len(several), 2000, width),
        *(several, ones, ones),
        plain=plain_blocks(vit, model.num_blocks, several),
    )
    parts["ratio"] = RatioHead(width, blocks)
    grid = model.backbone.patch_embed.grid_size
    image = draw_image(*model.image_size)
    with torch.inference_mode():
        _, tokens = model.run_network(image[None], final_only=True, blocks=blocks)
        x, rope = model.embed(image[None])
        for layer in vit.blocks[: depth - model.num_blocks]:
            x = layer(x) if rope is None else layer(x, rope=rope)

        def apply(part):
            plain = getattr(part, "plain_tokens", lambda *_: {})
            return part(tokens | plain(x, rope, vit.num_prefix_tokens), grid)

        sides = {"forward": lambda: model.predict_masks(image[None], final_only=True)}
        # Bound as a default, because the loop variable changes.
        sides |= {name: lambda part=part: apply(part) for name, part in parts.items()}
        score = torch.rand(1, *model.image_size)
        sides["guided filter"] = lambda: GuidedFilter(image[None], model.patch_size / 2)(score)
        seconds = take_turns(sides, args.repeat)
    own = model.patch_maps

    def filtered():
        model.inference = dataclasses.replace(model.inference, guided_filter=0.5)
        model([{"image": image}], score_names=["rba"])
        model.inference = dataclasses.replace(model.inference, guided_filter=0.0)

    def unfiltered():
        model([{"image": image}], score_names=["rba"])

    whole = take_turns({"without": unfiltered, "with": filtered}, args.repeat)
    seconds["guided filter, image"] = whole["with"]
    seconds["guided filter, image without"] = whole["without"]
    for name, part in parts.items():
        model.patch_maps = torch.nn.ModuleDict({name.split()[0]: part})
        with_it = ["rba", name.split()[0]]
        whole = take_turns(
            {
                "without": unfiltered,
                "with": lambda names=with_it: model([{"image": image}], score_names=names),
            },
            args.repeat,
        )
        seconds[f"{name}, image"] = whole["with"]
        seconds[f"{name}, image without"] = whole["without"]
    model.patch_maps = own
    return [
        {
            "part": name,
            "seconds": seconds[name],
            "forward_seconds": seconds["forward"],
            "of_forward": seconds[name] / seconds["forward"],
            "image_seconds": seconds[f"{name}, image"],
            "image_seconds_without": seconds[f"{name}, image without"],
        }
        for name in (*parts, "guided filter")
    ]


class Step(EoMT):
    """A training step of the model, with or without the ratio head."""

    def predict(self, images):
        blocks = self.patch_maps["ratio"].blocks if "ratio" in self.patch_maps else ()
        return self.run_network(images, blocks=blocks)

    def score(self, outputs, labels):
        predictions, tokens = outputs
        targets = [targets_from_sem_seg(label, self.criterion.num_classes) for label in labels]
        loss = sum(self.criterion(predictions, targets, self.class_head).values())
        if tokens:
            loss = loss + self.patch_maps["ratio"].loss(tokens, labels, self.num_known).mean()
        return loss


def measure_training(args) -> list[dict]:
    """Time a training step with and without the ratio head, and the head by itself."""
    base = ["MODEL.DEVICE", "cpu", "MODEL.EOMT.SIZE", args.size, "MODEL.EOMT.ANOMALY_CLASS", True]
    base += ["INPUT.CROP_SIZE", (args.crop, args.crop), "MODEL.HEAD.NAME", "arcface"]
    rows = {}
    for name, enabled in (("without", False), ("with", True)):
        torch.manual_seed(0)
        cfg = load_config("", [*base, "MODEL.RATIO.ENABLED", enabled, *args.opts])
        rows[name] = Row(Step(cfg), "float32")
    images, labels = draw_batch(args.batch, args.crop)
    model = rows["with"].model
    with torch.no_grad():
        tokens = model.predict(images)[1]
    head = model.patch_maps["ratio"]
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-6)

    def alone():
        head.loss(tokens, labels, model.num_known).mean().backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    sides = {name: lambda row=row: row.step(images, labels) for name, row in rows.items()}
    seconds = take_turns({**sides, "head": alone}, args.repeat)
    return [
        {
            "step_seconds": seconds["without"],
            "step_seconds_with_ratio": seconds["with"],
            "ratio_of_steps": seconds["with"] / seconds["without"],
            "head_seconds": seconds["head"],
            "of_step": seconds["head"] / seconds["without"],
        }
    ]


def print_table(name: str, rows: list[dict]) -> None:
    """Print the rows of a group; nested figures become columns of their own."""
    flat = []
    for row in rows:
        cells = {}
        for key, value in row.items():
            pairs = value.items() if isinstance(value, dict) else [("", value)]
            cells |= {f"{key} {k}".strip(): v for k, v in pairs}
        flat.append({k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in cells.items()})
    print(f"\n{name}\n\n| " + " | ".join(flat[0]) + " |")
    print("|---" * len(flat[0]) + "|")
    for cells in flat:
        print("| " + " | ".join(cells.values()) + " |")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    groups = ("rows", "inference", "training")
    add("--groups", nargs="+", choices=groups, help="default: all; without --test no rows")
    add("--weights", help="checkpoint, or weights of a ViT with --config-file")
    add("--config-file", help="build the model from this config")
    add("--dataset", default="camvid_drives_train", help="normal images with labels")
    add("--images", nargs="+", metavar="DIR", help="folders of normal photographs instead")
    add("--test", nargs="+", default=[], metavar="NAME", help="anomaly sets to evaluate on")
    add("--cards", nargs="+", default=[], help="dataset cards to register besides the shipped ones")
    add("--limit", type=int, help="use only the first images of every set")
    add("--random", nargs="*", type=int, default=[20000, 8000, 5000], help="sizes of memories")
    add("--coreset", nargs="*", type=int, default=[8000, 5000], help="sizes of coresets")
    add("--size", default="S", choices=["S", "B", "L"])
    add("--crop", type=int, default=352)
    add("--batch", type=int, default=4)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--repeat", type=int, default=7)
    add("--json", help="write the figures to this file")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config, last")
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    groups = args.groups or ["rows", "inference", "training"][0 if args.test else 1 :]
    if "rows" in groups and not args.test:
        parser.error("group rows needs --test: anomaly sets to evaluate on")
    args.dataset = None if args.images else args.dataset
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = build_model(args) if {"rows", "inference"} & set(groups) else None
    measure = {
        "rows": lambda: measure_rows(args, model),
        "inference": lambda: measure_inference(args, model),
        "training": lambda: measure_training(args),
    }
    found = {}
    for name in groups:
        found[name] = measure[name]()
        print_table(name, found[name])
    if args.json:
        about = {"machine": platform.machine(), "torch": torch.__version__, "options": vars(args)}
        write_json(args.json, {**about, **found})


if __name__ == "__main__":
    main()
