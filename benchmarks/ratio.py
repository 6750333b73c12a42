r"""Compare ratio heads: all train on the same steps of a finished network, and share its passes.

    python benchmarks/ratio.py --config-file configs/camvid/ratio.yaml --cells 1 2 4 --seeds 3 \
        --weights output/camvid_unseen/arcface_lora/model_final.pth \
        --cards camvid camvid_anomaly camvid_drives_anomaly camvid_drives_anomaly_known \
        --dataset camvid_drives_train --test camvid_drives_anomaly camvid_drives_anomaly_known \
        --output output/ratio_heads --json ratio_heads.json

The config says how the head of the `ratio` score is trained (configs/ratio.yaml). Instead of one
head, several are: with as many cells per side of a patch as each --cells says, and --seeds of each.
The network is frozen, so they cannot influence each other, except that one norm clips the gradient
of all (AdamW is indifferent to a factor that all steps have in common). The same command continues
an interrupted run.

Figures are AUPRC and FPR95 in percent on the images of each --test: of `ratio` and, where the model
has the anomaly class, of `odds`. `anomaly` is the same for all heads.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Iterable

import torch
from memory import evaluate_scores
from torch import nn

from anoseg_d2.config import load_config
from anoseg_d2.data.builtin import register_cards
from anoseg_d2.engine import Trainer, set_up_run
from anoseg_d2.modeling import scores
from anoseg_d2.modeling.eomt import EoMT
from anoseg_d2.modeling.patch_heads import PATCH_HEADS, PatchHead, RatioHead
from anoseg_d2.utils.files import write_json


class SideBySide(PatchHead):
    """Several heads in the place of one, whose loss is the sum of theirs.

    Args:
        heads: {name: head}, all reading the same blocks.
    """

    def __init__(self, heads: dict[str, RatioHead]):
        first = next(iter(heads.values()))
        super().__init__(first.width, first.blocks)
        self.heads = nn.ModuleDict(heads)

    def loss(self, *args) -> torch.Tensor:
        return sum(head.loss(*args) for head in self.heads.values())


class HeadsTrainer(Trainer):
    """The trainer of a run whose model has several heads: `variants` are (cells, seed)."""

    variants: Iterable[tuple[int, int]]

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        own, heads = model.patch_maps["ratio"], {}
        for cells, seed in cls.variants:
            torch.manual_seed(seed)
            options = dataclasses.replace(own.options, cells=cells)
            head = RatioHead(model.backbone.embed_dim, own.blocks, options)
            heads[f"cells{cells}_seed{seed}"] = head.to(model.device)
        model.patch_maps["ratio"] = SideBySide(heads)
        return model


def train(args: argparse.Namespace) -> EoMT:
    """Train the heads, or continue to."""
    overrides = ["MODEL.WEIGHTS", args.weights, "MODEL.RATIO.ALONE", True, *args.opts]
    overrides += ["DATASETS.TRAIN", (args.dataset,), "DATASETS.TEST", ()]
    overrides += ["DATASETS.CARDS", args.cards, "OUTPUT_DIR", args.output]
    cfg = load_config(args.config_file, overrides)
    cfg.freeze()
    register_cards(cfg)
    set_up_run(cfg, verbosity=0, training=True)
    HeadsTrainer.variants = [(c, s) for c in args.cells for s in range(args.seeds)]
    trainer = HeadsTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    return trainer.model.eval()


def add_scores(model: EoMT) -> list[str]:
    """Make a patch map and two scores of every head; returns the names of the scores."""
    names = ["anomaly"] if model.has_anomaly else []
    for name, head in model.patch_maps.pop("ratio").heads.items():
        model.patch_maps[name] = head
        PATCH_HEADS.register(name)(type("Head", (RatioHead,), {}))
        for score in ("ratio", "odds") if model.has_anomaly else ("ratio",):
            parts = scores.SCORES[score]
            maps = tuple(name if m == "ratio" else m for m in parts.maps)
            scores.register_score(f"{score}_{name}", maps, parts.needs_anomaly, True)(
                # Bound as defaults, because the loop variables change.
                lambda maps, num_known, parts=parts, name=name: parts.formula(
                    {**maps, "ratio": maps[name]}, num_known
                )
            )
            names.append(f"{score}_{name}")
    return names


def summarize(found: dict[str, dict], args: argparse.Namespace) -> list[str]:
    """Return a table with one row per score and number of cells: means, lowest, and highest."""
    lines = ["| score | cells | " + " | ".join(f"{name} AUPRC / FPR95" for name in found) + " |"]
    lines.append("|---" * (2 + len(found)) + "|")
    for score in ("anomaly", "ratio", "odds"):
        for cells in args.cells if score != "anomaly" else ["-"]:
            names = [f"{score}_cells{cells}_seed{seed}" for seed in range(args.seeds)]
            names = names if score != "anomaly" else [score]
            if names[0] not in next(iter(found.values())):
                continue  # Without the anomaly class, a model has neither `anomaly` nor `odds`.
            row = [score, str(cells)]
            for figures in found.values():
                parts = []
                for key, digits in (("auprc %", 1), ("fpr95 %", 2)):
                    values = [figures[name][key] for name in names]
                    words = f"{statistics.mean(values):.{digits}f}"
                    if len(values) > 1:
                        words += f" ({min(values):.{digits}f}..{max(values):.{digits}f})"
                    parts.append(words)
                row.append(" / ".join(parts))
            lines.append(f"| {' | '.join(row)} |")
    return lines


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--weights", required=True, help="checkpoint of the network")
    add("--config-file", default="ratio", help="how heads are trained (default: %(default)s)")
    add("--cells", nargs="+", type=int, default=[1, 4], help="per side of a patch")
    add("--seeds", type=int, default=3, help="heads of each kind (default: %(default)s)")
    add("--dataset", default="camvid_drives_train", help="to train on (default: %(default)s)")
    add("--test", nargs="+", required=True, metavar="NAME", help="anomaly sets to evaluate on")
    add("--cards", nargs="+", default=[], help="dataset cards to register besides the shipped ones")
    add("--limit", type=int, help="evaluate only on the first images of every set")
    add("--threads", type=int, default=1)
    add("--output", default="output/ratio_heads", help="default: %(default)s")
    add("--json", help="write the figures to this file")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config, last")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    model = train(args)
    names = add_scores(model)
    found = {name: evaluate_scores(model, names, name, args.limit) for name in args.test}
    print("\n".join(summarize(found, args)))
    if args.json:
        write_json(args.json, {"torch": torch.__version__, "options": vars(args), **found})


if __name__ == "__main__":
    main()
