"""Try scores, memories and heads on a network that stays as it is, in minutes.

The network runs once over each window; what it gives is kept in a folder, and everything that is
tried afterwards is computed from there: a memory of other blocks or photographs, a ratio head
trained on other pastes, or a sum of scores. All figures are of every labelled pixel.

    python experiments/small/study.py WEIGHTS --cache output/study \\
        --sets road_anomaly21 road_obstacle21 cityscapes_anomaly_test \\
        --memory near=6,9@DIR --head pastes=6,9,12@configs/small/ratio.yaml \\
        --try log_odds "log_odds + near" "log_odds + 0.5 * pastes" \\
        --opts TEST.SCALES "(1, 2)"

Names in a formula are scores of the model and those of --memory and --head; `log_odds` is that of
the learned class, whose mean over scales is that of log odds, as in `joint`; `logit` is what it
says, of a probability cut to 0.001..0.999. A memory reads blocks that queries enter as plain
blocks, a ratio head as the network has them. DETECTRON2_DATASETS is where the sets are.
"""

import argparse
import csv
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from anoseg_d2.checkpoint import read_checkpoint
from anoseg_d2.commands.memory import find_photographs
from anoseg_d2.config import load_config
from anoseg_d2.data.builtin import register_cards
from anoseg_d2.data.image_io import read_image
from anoseg_d2.data.label_rules import load_label
from anoseg_d2.data.loader import build_train_loader
from anoseg_d2.engine.fit_memory import collect_tokens
from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.modeling.patch_heads import PATCH_HEADS, PatchMemory
from anoseg_d2.modeling.patch_heads.memory import choose_rows, leave_one_out, plain_blocks
from anoseg_d2.modeling.patch_heads.ratio import RatioHead
from anoseg_d2.modeling.scores import register_score
from anoseg_d2.prediction.predictor import AnomalyPredictor
from anoseg_d2.utils.constants import ANOMALY, VOID


class CachedNetwork:
    """Replace a model's `run_network` by one that computes each window only once.

    Args:
        model: in evaluation mode, not changed afterwards.
        folder: of the kept outputs; it belongs to these weights and blocks.
        blocks: ViT blocks, counted from 0, or other sources of patch heads, whose tokens are kept.
    """

    def __init__(self, model, folder: Path, blocks):
        self.run, self.folder, self.blocks = model.run_network, folder, sorted(blocks, key=str)
        folder.mkdir(parents=True, exist_ok=True)
        model.run_network = self

    def __call__(self, images, final_only=True, blocks=(), **_):
        found = [self._window(image) for image in images]
        with torch.autocast(images.device.type, enabled=False):
            masks, classes, tokens = (torch.stack(part) for part in zip(*found, strict=True))
        predictions, stacked = [(masks.float(), classes.float())], tokens.float()
        return predictions, {b: stacked[:, self.blocks.index(b)] for b in blocks}

    def _window(self, image):
        name = hashlib.sha256(image.numpy().tobytes()).hexdigest()
        path = self.folder / f"{name}.pt"
        if path.exists():
            return torch.load(path, weights_only=True)
        with torch.inference_mode():
            predictions, tokens = self.run(image[None], final_only=True, blocks=self.blocks)
        masks, classes = predictions[-1]
        kept = (
            masks[0].half(),
            classes[0],
            torch.stack([tokens[b][0] for b in self.blocks]).half(),
        )
        torch.save(kept, path)
        return kept


def log_odds(maps, num_known):
    learned = maps["probs"][:, num_known].clamp(1e-3, 1 - 1e-3)
    return (learned / (1 - learned)).log()


def add_head(model, name: str, head) -> None:
    """Give the model a patch head whose map is a score of the same name."""
    PATCH_HEADS.register(name)(type(f"Study_{name}", (type(head),), {}))
    register_score(name, maps=(name,))(lambda maps, known: maps[name][:, 0])
    model.patch_maps[name] = head.eval()


def empty_memory(model, blocks, state) -> PatchMemory:
    """Return a memory of one row with the plain blocks that it needs, of a checkpoint's tensors."""
    plain = plain_blocks(model.backbone, model.num_blocks, blocks, state)
    return PatchMemory(torch.ones(len(blocks), 1, model.backbone.embed_dim), blocks, plain=plain)


def fit_memory(model, blocks, folders, rows: int, seed: int, state) -> PatchMemory:
    """Return a memory of rows drawn from photographs, standardised per block."""
    records = find_photographs(folders)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(records), generator=generator)[:200]  # minutes, not hours
    empty = empty_memory(model, blocks, state)
    tokens, images = collect_tokens(
        model, empty.sources, [records[i] for i in order], rows, generator
    )
    kept = choose_rows(tokens[0], rows, generator, coreset=False)
    facts = leave_one_out(tokens[:, kept], images[kept])
    return PatchMemory(tokens[:, kept], blocks, *facts, plain=empty.plain)


def train_head(model, blocks, config: str, batches: int, epochs: int, seed: int, opts) -> RatioHead:
    """Return a ratio head trained on the tokens of pasted images, which are computed once."""
    cfg = load_config(config, ["SEED", seed, "MODEL.WEIGHTS", "", *opts])
    size = list(model.image_size)
    cfg.merge_from_list(["INPUT.CROP_SIZE", size])
    loader = iter(build_train_loader(cfg))
    kept = []
    for _ in range(batches):
        batch = next(loader)
        images = torch.stack([sample["image"] for sample in batch])
        _, tokens = model.run_network(images, blocks=blocks)
        kept.append((tokens, torch.stack([sample["sem_seg"] for sample in batch])))
    torch.manual_seed(seed)
    head = RatioHead(model.backbone.embed_dim, blocks)
    optimizer = torch.optim.AdamW(head.parameters(), 2e-3, weight_decay=0.05)
    steps = epochs * len(kept)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(kept), generator=generator):
            tokens, labels = kept[index]
            loss = head.loss(tokens, labels, cfg.MODEL.EOMT.NUM_CLASSES).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"head: epoch {epoch + 1} of {epochs}, loss {total / len(kept):.4f}", flush=True)
    return head.requires_grad_(False)


def score_pixels(model, name: str, scores, every: int) -> dict[str, np.ndarray]:
    """Return the scores of all labelled pixels of a set, and whether each is an anomaly."""
    rule = MetadataCatalog.get(name).label_rule
    found = {key: [] for key in ("label", *scores)}
    for entry in DatasetCatalog.get(name)[::every]:
        label = load_label(entry["sem_seg_file_name"], rule)
        image = torch.from_numpy(read_image(entry["file_name"])).permute(2, 0, 1)
        maps = model([{"image": image}], score_names=scores)[0]["scores"]
        inside = label != VOID
        found["label"].append(label[inside] == ANOMALY)
        for score in scores:
            found[score].append(maps[score].numpy()[inside])
    return {key: np.concatenate(values) for key, values in found.items()}


def logit(value: np.ndarray) -> np.ndarray:
    value = np.clip(value, 1e-3, 1 - 1e-3)
    return np.log(value / (1 - value))


def measure(formula: str, pixels: dict[str, np.ndarray]) -> tuple[float, float]:
    """Return AUPRC and FPR95 in percent of a formula over the pixels of a set."""
    names = {"logit": logit, "maximum": np.maximum, "minimum": np.minimum, "exp": np.exp}
    value = eval(formula, {"__builtins__": {}}, {**names, **pixels})  # noqa: S307 - the user's own
    metrics = PixelMetrics()
    labels = np.where(pixels["label"], ANOMALY, 0).astype(np.uint8)
    metrics.update(value.astype(np.float32)[None], labels[None])
    found = metrics.compute()
    return 100 * found["auprc"], 100 * found["fpr95"]


def parse(text: str) -> tuple[str, tuple[int, ...], str]:
    """Take NAME=BLOCKS@SOURCE apart; blocks count from 1 there, and from 0 here."""
    name, _, rest = text.partition("=")
    blocks, _, source = rest.partition("@")
    return name, tuple(int(block) - 1 for block in blocks.split(",")), source


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("weights")
    add("--cache", type=Path, required=True, help="folder of kept outputs")
    add("--sets", nargs="+", required=True)
    add("--cards", nargs="*", default=[], help="cards of data sets of one's own")
    add("--every", type=int, default=1, help="take every Nth image of a set")
    add("--memory", nargs="*", default=[], metavar="NAME=BLOCKS@DIR[,DIR]")
    add("--rows", type=int, default=4000)
    add("--head", nargs="*", default=[], metavar="NAME=BLOCKS@YAML")
    add("--batches", type=int, default=150, help="batches of pasted images of a head")
    add("--epochs", type=int, default=3)
    add("--head-opts", nargs="*", default=[], help="config keys and values of the pastes")
    add("--scores", nargs="*", default=[], help="scores of the model that formulas read")
    add("--try", dest="formulas", nargs="+", required=True)
    add("--seed", type=int, default=0)
    add("--csv", type=Path, help="file to which a line per formula is added")
    add("--opts", nargs="*", default=[])
    args = parser.parse_args()

    register_score("log_odds", needs_anomaly=True)(log_odds)
    memories, heads = list(map(parse, args.memory)), list(map(parse, args.head))
    register_cards(args.cards)
    checkpoint = read_checkpoint(args.weights)
    state = checkpoint.state_dict
    model = AnomalyPredictor.from_pretrained(checkpoint, args.opts).model
    wanted = {block for _, blocks, _ in heads for block in blocks}
    wanted |= {source for head in model.patch_maps.values() for source in head.sources}
    if memories:  # one of all blocks, whose plain blocks the network runs
        every_block = sorted({block for _, blocks, _ in memories for block in blocks})
        model.patch_maps["memory"] = empty_memory(model, every_block, state)
        wanted |= set(model.patch_maps["memory"].sources)
    facts = f"{Path(args.weights).stat()} {sorted(wanted, key=str)}"
    key = hashlib.sha256(facts.encode()).hexdigest()[:12]
    CachedNetwork(model, args.cache / key, wanted)
    for name, blocks, source in memories:
        facts = f"{blocks} {source} {args.rows} {args.seed}"
        path = args.cache / key / f"memory_{hashlib.sha256(facts.encode()).hexdigest()[:12]}.pt"
        if path.exists():
            kept = torch.load(path, weights_only=True)
            head = PatchMemory(**kept, plain=empty_memory(model, blocks, state).plain)
        else:
            head = fit_memory(model, blocks, source.split(","), args.rows, args.seed, state)
            kept = {name: getattr(head, name) for name in ("blocks", "rows", "mean", "spread")}
            torch.save(kept, path)
        add_head(model, name, head)
    for name, blocks, source in heads:
        options = (source, args.batches, args.epochs, args.seed, args.head_opts)
        add_head(model, name, train_head(model, blocks, *options))
    scores = [*args.scores, *(name for name, *_ in memories + heads)]
    sets = {name: score_pixels(model, name, scores, args.every) for name in args.sets}
    for formula in args.formulas:
        found = {name: measure(formula, pixels) for name, pixels in sets.items()}
        text = "  ".join(f"{name} {a:.1f}/{f:.1f}" for name, (a, f) in found.items())
        print(f"{formula:50s} {text}", flush=True)
        if args.csv:
            with args.csv.open("a", newline="") as file:
                row = [args.weights, args.seed, formula, " ".join(args.opts)]
                csv.writer(file).writerow(row + [x for pair in found.values() for x in pair])


if __name__ == "__main__":
    sys.exit(main())
