"""Broken inputs for every command: files, values and options that each must answer in one line.

`build_corpus` writes a small world (a dataset, checkpoints, score maps, results, objects to paste)
and broken copies of each of its files, and returns the calls to try. Every door that reads a kind
of file is tried with every broken file of that kind.
"""

import copy
import io
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import runs
import tiny_models
import torch
from PIL import Image, PngImagePlugin

from anoseg_d2.checkpoint import model_meta
from anoseg_d2.utils.files import write_json

ROOT = Path(__file__).resolve().parents[2]
OUT = "{out}"  # in a case's arguments: an output folder of its own
NOT_UTF8 = os.fsdecode(b"bad-\xff-name")


@dataclass(frozen=True)
class Case:
    """One call that must end in one message.

    Args:
        door: name of the command.
        name: what is broken.
        argv: its arguments.
        names: text that the message must contain, without regard to case; or several, of which
            one must be in it.
        status: exit statuses that are right. 2: a mistake that stops the command; 1: one bad
            input among many was skipped; 0: unusual, but allowed.
    """

    door: str
    name: str
    argv: tuple[str, ...]
    names: str | tuple[str, ...]
    status: tuple[int, ...] = (2,)


class World:
    """Valid files of every kind, in `folder`, and the calls that use them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.card = runs.write_dataset(folder, "faults", 4)
        self.images, self.labels = folder / "data/images", folder / "data/labels"
        self.anomaly_card = self._anomaly_set()
        self.weights = self._checkpoint("model_final.pth", has_anomaly=True)
        self.lora = self._checkpoint("lora.pth", lora={"rank": 2})
        self.config = self._config()
        self.maps = self._maps()
        self.results = self._results()
        self.coco, self.objects = self._objects()
        self.scenes = self._scenes()
        self.recipe = self._recipe()

    def _anomaly_set(self) -> Path:
        folder = self.folder / "anomaly"
        (folder / "labels").mkdir(parents=True)
        label = np.zeros((32, 32), np.uint8)
        label[8:20, 8:20] = 1
        for index in range(4):
            Image.fromarray(label).save(folder / f"labels/{index}.png")
        card = self.folder / "anomaly_card.yaml"
        card.write_text(
            f'name: faults_anomaly\nkind: anomaly\nroot: "{self.folder}"\n'
            'images: "data/images/{id}.png"\nlabels: "anomaly/labels/{id}.png"\n'
            "known: 0\nanomaly: 1\nvoid: 255\n"
        )
        return card

    def _checkpoint(self, name: str, **options) -> Path:
        torch.manual_seed(0)
        model = tiny_models.tiny_eomt(**options)
        path = self.folder / name
        torch.save({"model": model.state_dict(), "meta": model_meta(model)}, path)
        return path

    def _config(self) -> Path:
        cfg = runs.small_run(self.folder, "run", "MODEL.EOMT.ANOMALY_CLASS", True)
        runs.write_dataset(self.folder, "faults", 4)  # small_run has named it otherwise
        cfg.DATASETS.CARDS = [str(self.card), str(self.anomaly_card)]
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("faults",), ("faults_anomaly",)
        cfg.SOLVER.MAX_ITER = 2
        path = self.folder / "good.yaml"
        path.write_text(cfg.dump())
        return path

    def _maps(self) -> Path:
        folder = self.folder / "maps"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for index in range(4):
            np.save(folder / f"{index}.npy", rng.random((32, 32), np.float32))
        return folder

    def _results(self) -> Path:
        thresholds = {"80": 0.1, "90": 0.05, "95": 0.02, "99": 0.01}
        figures = {"auprc": 50.0, "fpr95": 20.0, "auroc": 80.0, "threshold_at_tpr": thresholds}
        scores = {"rba": figures, "max_logit_raw": figures}
        results = {
            "datasets": {"road_obstacle21": {"scores": scores}},
            "closed_set": {"val": {"mIoU": 60.0}},
            "model": {},
        }
        path = self.folder / "results" / "results.json"
        write_json(path, results)
        return path

    def _objects(self) -> tuple[Path, Path]:
        folder = self.folder / "coco"
        folder.mkdir()
        pixels = np.random.default_rng(1).integers(0, 256, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "0.png")
        content = {
            "images": [{"id": 0, "file_name": "0.png", "height": 80, "width": 80}],
            "categories": [{"id": 17, "name": "cat"}],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 0,
                    "category_id": 17,
                    "segmentation": [[10, 10, 60, 12, 58, 60, 12, 58]],
                    "area": 2400,
                    "bbox": [10, 10, 50, 50],
                    "iscrowd": 0,
                }
            ],
        }
        path = folder / "instances.json"
        write_json(path, content)
        return path, folder

    def _scenes(self) -> Path:
        folder = self.folder / "scenes"
        rng = np.random.default_rng(2)
        for index in range(2):
            stem = f"aachen_{index:06d}_000019"
            image = folder / f"leftImg8bit/train/aachen/{stem}_leftImg8bit.png"
            label = folder / f"gtFine/train/aachen/{stem}_gtFine_labelIds.png"
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(image)
            ids = np.full((64, 96), 11, np.uint8)
            ids[32:] = 7
            Image.fromarray(ids).save(label)
        return folder

    def _recipe(self) -> Path:
        path = self.folder / "recipe.yaml"
        path.write_text(
            'title: "Faults"\noutput: output/faults\nsteps:\n'
            f"  - {{name: one, minutes: 1, config: {self.config}, weights: {self.weights}}}\n"
        )
        return path

    def train(self, *more, config=None) -> tuple[str, ...]:
        return ("--config-file", str(config or self.config), "OUTPUT_DIR", OUT, *map(str, more))

    def evaluate(self, *more, weights=None) -> tuple[str, ...]:
        given = ("MODEL.WEIGHTS", weights or self.weights)
        command = ("--config-file", self.config, "--eval-only", "OUTPUT_DIR", OUT, *given, *more)
        return tuple(map(str, command))

    def demo(self, *more, inputs=None, weights=None) -> tuple[str, ...]:
        given = [self.images / "0.png"] if inputs is None else inputs
        command = (*given, "--weights", weights or self.weights, "--output", OUT, *more)
        return tuple(map(str, command))

    def export(self, *more, weights=None, output=f"{OUT}/model.onnx") -> tuple[str, ...]:
        return tuple(map(str, (weights or self.weights, "--output", output, *more)))

    def evaluate_maps(self, *more, maps=None, card=None, output=OUT) -> tuple[str, ...]:
        command = ("--dataset", "faults_anomaly", "--maps", maps or self.maps, "--output", output)
        return tuple(map(str, (*command, "--card", card or self.anomaly_card, *more)))

    def paste(self, *more, coco=None, objects=None, scenes=None, output=OUT) -> tuple[str, ...]:
        command = ("--cityscapes", scenes or self.scenes, "--coco-json", coco or self.coco)
        command += ("--coco-images", objects or self.objects, "--output", output)
        return tuple(map(str, (*command, "--workers", "0", *more)))

    def memory(self, *more, weights=None, images=None) -> tuple[str, ...]:
        command = (weights or self.weights, "--images", images or self.images)
        return tuple(map(str, (*command, "--output", f"{OUT}/memory.pth", "--rows", 8, *more)))


# The worlds that were built, by their folder; `more_corpus.py` adds to them.
WORLDS: dict[Path, World] = {}


def build_corpus(folder: Path) -> list[Case]:
    """Write the valid and the broken files into `folder`; returns every call to try."""
    world = WORLDS[folder] = World(folder)
    broken = folder / "broken"
    broken.mkdir()
    parts = (
        config_values,
        yaml_files,
        checkpoint_files,
        image_files,
        label_files,
        map_files,
        results_files,
        coco_files,
        outputs,
        options,
    )
    return [case for part in parts for case in part(world, broken)]


# Every entry must be refused: (key, value).
VALUES = (
    *(("MODEL.EOMT.NUM_QUERIES", v) for v in ("0", "-1", "1.5", "many", "10**9", "None", "[5]")),
    *(("MODEL.EOMT.WIDTH", v) for v in ("47", "-32", "1e9", "10000000000")),
    *(("MODEL.EOMT.PATCH_SIZE", v) for v in ("0", "-16", "7", "1000", "(16, 16)")),
    *(("INPUT.CROP_SIZE", v) for v in ("(64,)", "64", "(0, 0)", "(33, 32)", "(10**9, 10**9)")),
    *(("INPUT.CROP_SIZE", v) for v in ("()", "(-32, 32)", "('a', 'b')", "(1000000000, 32)")),
    *(("MODEL.DEVICE", v) for v in ("cuda", "cuda:99", "gpu", "", "5", "cpu:x")),
    *(("SOLVER.CHECKPOINT_PERIOD", v) for v in ("0", "-5", "2.5")),
    *(("MODEL.CRITERION.MATCH_POINTS", v) for v in ("-1", "10000000000", "x")),
    ("MODEL.CRITERION.LOSS_POINTS", "-1"),
    *(("INPUT.WINDOW_BATCH", v) for v in ("-1", "0.5", "x")),
    *(("MODEL.LORA.BLOCKS", v) for v in ("[1]", "[2, 1]", "[0, 99]", "[0, 1, 2]", "['a', 'b']")),
    *(("INPUT.SCALE_JITTER", v) for v in ("(1,)", "500", "(500, 500)", "(2, 1)", "(0, 1)")),
    ("INPUT.SCALE_JITTER", "(nan, 1)"),
    *(("TEST.ANOMALY.TEMPERATURE", v) for v in ("0", "-1", "nan", "inf", "1e999", "hot")),
    *(("MODEL.PIXEL_STD", v) for v in ("[0, 0, 0]", "[1, 1]", "[-1, 1, 1]", "0", "[]")),
    *(("MODEL.PIXEL_MEAN", v) for v in ("[1]", "['a', 'b', 'c']", "[1e300, 0, 0]")),
    *(("MODEL.LORA.RANK", v) for v in ("33", "0", "-4", "2.5")),
    *(("MODEL.EOMT.DROP_PATH", v) for v in ("-0.1", "1", "2", "x")),
    *(("MODEL.LORA.DROPOUT", v) for v in ("-0.1", "1.5")),
    *(("MODEL.LORA.TARGETS", v) for v in ("['nothing']", "q", "[1]")),
    *(("MODEL.EOMT.DEPTH", v) for v in ("-1", "1", "100000")),
    *(("MODEL.EOMT.HEADS", v) for v in ("3", "-2")),
    ("MODEL.EOMT.NUM_BLOCKS", "4"),
    *(("MODEL.EOMT.NUM_CLASSES", v) for v in ("0", "254", "1000000")),
    ("MODEL.EOMT.BACKBONE", "resnet"),
    ("MODEL.EOMT.SIZE", "XL"),
    ("MODEL.EOMT.NORM_EPS", "-1"),
    ("MODEL.EOMT.RECOMPUTE", "some"),
    ("MODEL.EOMT.MASKED_ATTENTION", "maybe"),
    ("MODEL.EOMT.NUM_REGISTERS", "-1"),
    *(("MODEL.HEAD.NAME", v) for v in ("", "softmax", "../head", "5")),
    *(("MODEL.HEAD.ARCFACE.SCALE", v) for v in ("0", "-1", "nan")),
    ("MODEL.HEAD.ARCFACE.MARGIN", "4"),
    ("MODEL.HEAD.LOGIT_NORM.TAU", "0"),
    ("MODEL.CRITERION.MASK_WEIGHT", "nan"),
    ("MODEL.CRITERION.VOID", "drop"),
    ("MODEL.CRITERION.OUTLIER_UPPER", "5"),
    ("MODEL.META_ARCHITECTURE", "MaskFormer"),
    ("MODEL.IMPORTS", "['no.such.module']"),
    ("MODEL.WEIGHTS", "no/such/file.pth"),
    ("MODEL.WEIGHTS", "hf://no-such-owner-here/none"),
    ("MODEL.NOT_A_KEY", "1"),
    ("MODEL", "1"),
    ("MODEL.EOMT", "{}"),
    *(("SOLVER.MAX_ITER", v) for v in ("0", "-1", "many")),
    *(("SOLVER.BASE_LR", v) for v in ("-1", "nan", "inf", "high")),
    *(("SOLVER.IMS_PER_BATCH", v) for v in ("0", "-2", "1.5")),
    *(("SOLVER.ACCUMULATION", v) for v in ("0", "3")),
    ("SOLVER.OPTIMIZER", "MAGIC"),
    ("SOLVER.LAYER_DECAY", "0"),
    ("SOLVER.WARMUP_NEW", "2"),
    ("SOLVER.AMP.PRECISION", "fp8"),
    ("SOLVER.EMA.DECAY", "1.5"),
    ("SOLVER.BEST_FIGURE", "nothing"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0"),
    ("SOLVER.STEPS", "(1, 2)"),
    ("DATALOADER.NUM_WORKERS", "-1"),
    *(("DATASETS.TRAIN", v) for v in ("('nowhere',)", "nowhere", "()", "('../escaped',)", "5")),
    ("DATASETS.TEST", "('nowhere',)"),
    *(("DATASETS.CARDS", v) for v in ("['no/such/card.yaml']", "card", "['/dev/zero']")),
    *(("TEST.ANOMALY.SCORES", v) for v in ("['nothing']", "['rba+nothing']", "['../rba']")),
    ("TEST.ANOMALY.SCORES", "['rba+']"),
    ("TEST.ANOMALY.POSTPROCESS", "['nothing']"),
    ("TEST.WINDOW_OVERLAP", "1"),
    ("TEST.EVAL_PERIOD", "-1"),
    ("TEST.QUERY_TOLERANCE", "-1"),
    ("OUTPUT_DIR", ""),
    ("SEED", "-2"),
    ("VERSION", "1"),
    ("INPUT.FORMAT", "BGR"),
    ("INPUT.CUT_PASTE.RATIO", "2"),
    ("INPUT.CUT_PASTE.COUNT", "(3, 1)"),
    ("INPUT.CUT_PASTE.ENABLED", "yes"),
    ("INPUT.CUT_PASTE.ENABLED", "True"),
)


def config_values(world, broken):
    """Values out of range, in turn by the training and by the evaluation."""
    for index, (key, value) in enumerate(VALUES):
        if key == "TEST.ANOMALY.SCORES":
            yield Case("train_net", f"{key} {value}", world.train(key, value), "score")
            continue
        if key == "MODEL.EOMT.DEPTH":
            yield Case("train_net", f"{key} {value}", world.train(key, value), "MODEL.EOMT")
            continue
        names = key if key.startswith(("MODEL", "INPUT", "SOLVER.")) else key.split(".")[-1]
        if value.startswith(("no/", "hf://")) or "no.such" in value or "/dev/zero" in value:
            names = value.strip("[']")
        command = world.train if index % 3 else world.evaluate
        door = "train_net" if index % 3 else "--eval-only"
        if key == "MODEL.LORA.RANK" and value == "33":
            yield Case(
                door, "rank over width", command("MODEL.LORA.ENABLED", True, key, value), key
            )
            continue
        # What is only read in training is no mistake of an evaluation, and the other way around.
        if key.startswith(("SOLVER", "DATASETS.TRAIN", "INPUT.CUT_PASTE")):
            command, door = world.train, "train_net"
        if key == "DATASETS.TRAIN":
            names = "DATASETS.TRAIN" if value in ("()", "5", "nowhere") else value.strip("(',)")
        elif key == "DATASETS.TEST":
            names = "nowhere"
        yield Case(door, f"{key} {value}", command(key, value), names)


def _deep(opening: str, closing: str, count: int = 100_000) -> bytes:
    return (opening * count + closing * count).encode()


YAMLS = {
    "list": b"- 1\n- 2\n",
    "text": b"only words",
    "number": b"5",
    "looping alias": b"a: &a [*a]\nMODEL: *a\nname: *a\nsteps: *a\n",
    "looping table": b"a: &a {b: *a}\nMODEL: *a\n",
    "deep lists": b"MODEL: " + _deep("[", "]"),
    "deep tables": b"MODEL: " + b"{a: " * 5000 + b"1" + b"}" * 5000,
    "many aliases": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n".encode()
        for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    ),
    "not UTF-8": b"name: caf\xe9\n\xff\xfe\x00",
    "UTF-16": "name: x\n".encode("utf-16"),
    "tab": b"MODEL:\n\tEOMT: 1\n",
    "open quote": b'name: "abc\n',
    "code tag": b"a: !!python/object/apply:os.system ['touch /tmp/planted']\n",
    "unknown tag": b"a: !thing 5\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "zero bytes": b"\x00" * 4096,
    "binary": bytes(range(256)) * 20,
    "integer keys": b"1: 2\n3: 4\n",
    "null key": b"~: 1\n",
    "list key": b"? [1, 2]\n: 3\n",
    "date": b"2020-01-01: 2020-13-45\n",
    "huge number": b"SEED: 1" + b"0" * 5000 + b"\n",
    "truncated": b"MODEL: {EOMT: {SIZE",
    "duplicate groups": b"MODEL: 5\nname: {a: 1}\nsteps: {a: 1}\n",
}


def yaml_files(world, broken):
    """Config files, cards and recipes that are not what they should be."""
    files = {}
    for name, content in YAMLS.items():
        path = broken / f"yaml_{name.replace(' ', '_')}.yaml"
        path.write_bytes(content)
        files[name] = path
    files["empty"] = broken / "yaml_empty.yaml"
    files["empty"].write_bytes(b"")
    files["a folder"] = broken / "folder.yaml"
    files["a folder"].mkdir()
    files["missing"] = broken / "missing.yaml"
    files["device"] = Path("/dev/zero")
    loop, other = broken / "loop_a.yaml", broken / "loop_b.yaml"
    loop.write_text("_BASE_: loop_b.yaml\n")
    other.write_text("_BASE_: loop_a.yaml\n")
    for name, text in {
        "missing": "_BASE_: nowhere.yaml",
        "table": "_BASE_: {a: 1}",
        "number": "_BASE_: 5",
        "null": "_BASE_:",
        "device": "_BASE_: /dev/zero",
        "folder": "_BASE_: .",
        "empty text": '_BASE_: ""',
    }.items():
        path = broken / f"base_{name.replace(' ', '_')}.yaml"
        path.write_text(text + "\n")
        command = world.train(config=path)
        yield Case(
            "configs", f"_BASE_ is {name}", command, "_base_" if name != "device" else "/dev"
        )
    yield Case("configs", "_BASE_ loops", world.train(config=loop), "loop_")
    for name, path in files.items():
        # An empty config is the defaults; its datasets are then missing.
        names = "DATASETS.TRAIN" if name == "empty" else str(path)
        config = world.train("MODEL.DEVICE", "cpu", config=path)
        # Some are yaml, and refused by key.
        names = {"integer keys": "key 1", "null key": "key None"}.get(name, names)
        names = {"duplicate groups": "MODEL"}.get(name, names)
        yield Case("configs", f"yaml: {name}", config, names)
        yield Case("cards", f"yaml: {name}", ("--card", str(path)), str(path))
        yield Case("recipes", f"yaml: {name}", (str(path), "--list"), str(path))
    good = world.card.read_text()
    anomaly = world.anomaly_card.read_text()
    changes = {
        "name climbs": good.replace("name: faults", "name: ../../../../escaped"),
        "name is absolute": good.replace("name: faults", "name: /tmp/escaped"),
        "name is a number": good.replace("name: faults", "name: 5"),
        "name is missing": good.replace("name: faults", ""),
        "name not ASCII": good.replace("name: faults", 'name: "caf\\u0000e"'),
        "root is missing": good.replace(str(world.folder / "data"), str(world.folder / "nowhere")),
        "root is a number": good.replace(f'"{world.folder / "data"}"', "5"),
        "root is a device": good.replace(str(world.folder / "data"), "/dev/zero"),
        "no images found": good.replace("images/{id}.png", "images/{id}.nothing"),
        "images climb": good.replace("images/{id}.png", "../../../../{id}.png"),
        "too many wildcards": good.replace("images/{id}.png", "*/" * 40 + "{id}.png"),
        "unbalanced braces": good.replace("images/{id}.png", "images/{id.png"),
        "format fields": good.replace("images/{id}.png", "images/{id.__class__}.png"),
        "no id": good.replace("images/{id}.png", "images/0.png"),
        "classes are text": good.replace("[road, car, sky]", "road"),
        "classes are numbers": good.replace("[road, car, sky]", "[1, 2, 3]"),
        "no classes": good.replace("[road, car, sky]", "[]"),
        "twice a class": good.replace("[road, car, sky]", "[road, road, sky]"),
        "too many classes": good.replace("[road, car, sky]", str([f"c{i}" for i in range(400)])),
        "unknown class": good.replace("2: sky", "2: moon"),
        "value of 300": good.replace("2: sky", "300: sky"),
        "value is text": good.replace("2: sky", "two: sky"),
        "void is text": good.replace("[255]", "nothing"),
        "void is a class": good.replace("[255]", "[0]"),
        "unknown key": good + "colour: red\n",
        "unknown kind": good + "kind: video\n",
        "splits are a list": good + "splits: [train, val]\n",
        "split climbs": "name: a\nroot: .\nsplits: {../../b: {images: 'i/{id}.png', labels: 'x'}}",
        "frames is no pattern": good + 'frames: "(((("\n',
        "frames takes forever": good + 'frames: "(a+)+$"\nexpected_images: 4\n',
        "frames is a number": good + "frames: 5\n",
        "expects text": good + "expected_images: many\n",
        "expects other count": good + "expected_images: 99\n",
        "anomaly = known": anomaly.replace("anomaly: 1", "anomaly: 0"),
        "known is a table": anomaly.replace("known: 0", "known: {a: 1}"),
        "unknown track": anomaly + "component_track: planes\n",
    }
    for name, text in changes.items():
        path = broken / f"card_{name.replace(' ', '_').replace('=', '_')}.yaml"
        path.write_text(text)
        # 1: the card is read, and the check finds that the data do not fit it.
        shown = (path.name, "faults: ", "faults_anomaly: ")
        yield Case("cards", name, ("--card", str(path)), shown, (1, 2))
        train = world.train("DATASETS.CARDS", [str(path)], "DATASETS.TEST", "()")
        if text.startswith(anomaly[:20]) or "anomaly" in text:
            train = world.evaluate("DATASETS.CARDS", [str(path)])
        if name not in ("unknown track",):
            shown = (path.name, "no dataset named", "'faults", "faults: ", "faults_anomaly: ")
            shown += ("faults is not complete",) if name == "expects other count" else ()
            yield Case("train_net", f"card: {name}", train, shown)
    recipe = world.recipe.read_text()
    for name, text in {
        "no title": recipe.replace("title:", "titel:"),
        "steps are text": recipe.split("steps:")[0] + "steps: all\n",
        "steps of numbers": recipe.split("steps:")[0] + "steps: [1, 2]\n",
        "step without name": recipe.replace("name: one, ", ""),
        "step named ..": recipe.replace("name: one", "name: ../../escaped"),
        "minutes are text": recipe.replace("minutes: 1", "minutes: long"),
        "minutes negative": recipe.replace("minutes: 1", "minutes: -1"),
        "missing config": recipe.replace(str(world.config), "nowhere.yaml"),
        "unknown placeholder": recipe.replace(str(world.weights), "{nowhere}/x"),
        "attribute placeholder": recipe.replace(str(world.weights), "{output.__class__}/x"),
        "from nothing": recipe.replace(f"weights: {world.weights}", "from: nothing"),
        "output is a number": recipe.replace("output: output/faults", "output: 5"),
        "output is a list": recipe.replace("output: output/faults", "output: [1]"),
        "unknown key": recipe + "speed: high\n",
        "same step twice": recipe + recipe.splitlines()[-1] + "\n",
        "set is text": recipe + "set: all\n",
        "set unknown key": recipe + "set: {NOT.A.KEY: 1}\n",
        "needs is a number": recipe + "needs: 5\n",
        "links are a list": recipe + "links: [1]\n",
        "studies are text": recipe + "studies: many\n",
        "base is missing": recipe + "studies: []\nbase: nowhere.yaml\n",
    }.items():
        path = broken / f"recipe_{name.replace(' ', '_').replace('.', '_')}.yaml"
        path.write_text(text)
        yield Case("recipes", name, (str(path), "--list"), (path.name, "NOT.A.KEY", "nowhere.yaml"))


def _checkpoints(world, broken) -> dict[str, Path]:
    """Broken copies of the checkpoint, by what is wrong with them."""
    whole = world.weights.read_bytes()
    good = torch.load(world.weights, weights_only=True)
    state = good["model"]
    first = next(iter(state))
    files = {
        "empty": b"",
        "one byte": b"\x80",
        "truncated": whole[: len(whole) // 2],
        "last byte missing": whole[:-1],
        "zeros": b"\x00" * 10_000,
        "text": b"not a checkpoint",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "zip of nothing": _zip({}),
        "zip of text": _zip({"archive/data.pkl": b"text"}),
        "code in pickle": b"cos\nsystem\n(S'touch /tmp/planted'\ntR.",
        "flipped byte": whole[:500] + bytes([whole[500] ^ 255]) + whole[501:],
    }
    found = {}
    for name, content in files.items():
        found[name] = broken / f"weights_{name.replace(' ', '_')}.pth"
        found[name].write_bytes(content)
    objects = {
        "list": [1, 2, 3],
        "number": 5,
        "none": None,
        "empty table": {},
        "empty model": {"model": {}, "meta": good["meta"]},
        "model is a list": {"model": [1], "meta": good["meta"]},
        "model of numbers": {"model": {first: 5}, "meta": good["meta"]},
        "integer keys": {"model": {1: torch.ones(2), 2: torch.ones(2)}},
        "integer keys on top": {1: torch.ones(2), 2: torch.ones(2)},
        "some integer keys": {"model": {**state, 7: torch.ones(2)}, "meta": good["meta"]},
        "not finite": {"model": {**state, first: state[first] * float("nan")}, **_rest(good)},
        "one tensor missing": {"model": {k: v for k, v in state.items() if k != first}}
        | _rest(good),
        "one shape wrong": {"model": {**state, first: torch.ones(3, 5, 7)}, **_rest(good)},
        "other dtype": {"model": {**state, first: state[first].to(torch.complex64)}, **_rest(good)},
        "meta is text": {"model": state, "meta": "text"},
        "meta of wrong types": {"model": state, "meta": dict.fromkeys(good["meta"], [1])},
        "meta of huge sizes": {"model": state, "meta": _huge(good["meta"])},
        "stranger": {"model": {"conv1.weight": torch.ones(8, 3, 3, 3)}},
    }
    for name, value in objects.items():
        found[name] = broken / f"weights_{name.replace(' ', '_')}.pth"
        torch.save(value, found[name])
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}})
    tensors = {
        "safetensors: empty": b"",
        "safetensors: text": b"not a checkpoint at all",
        "safetensors: huge header": (2**60).to_bytes(8, "little") + b"{}",
        "safetensors: huge tensor": len(header).to_bytes(8, "little") + header.encode() + b"0000",
        "safetensors: bad json": (4).to_bytes(8, "little") + b"{{{{",
    }
    for name, content in tensors.items():
        found[name] = broken / f"{name.replace(': ', '_').replace(' ', '_')}.safetensors"
        found[name].write_bytes(content)
    folder = broken / "empty_folder"
    folder.mkdir()
    folded = broken / "hf_folder"
    folded.mkdir()
    (folded / "config.json").write_text('{"model_type": 5, "hidden_size": "wide"}')
    (folded / "model.safetensors").write_bytes(b"")
    return found | {
        "empty folder": folder,
        "folder of broken files": folded,
        "missing": broken / "no_such_weights.pth",
        "device": Path("/dev/zero"),
        "unknown scheme": Path("ftp://somewhere/model.pth"),
    }


def _rest(checkpoint: dict) -> dict:
    return {key: value for key, value in checkpoint.items() if key != "model"}


def _huge(meta):
    if isinstance(meta, dict):
        return {key: _huge(value) for key, value in meta.items()}
    if isinstance(meta, (list, tuple)):
        return [_huge(value) for value in meta]
    return 10**9 if type(meta) is int else meta


def _zip(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def checkpoint_files(world, broken):
    """Broken weights, by every door that reads weights."""
    for name, path in _checkpoints(world, broken).items():
        shown = path.name if "ftp" not in str(path) else "somewhere"
        convert = (str(path), "--to", "anoseg", "--output", f"{OUT}/x.pth")
        calls = {
            "train_net": world.train("MODEL.WEIGHTS", path),
            "--eval-only": world.evaluate(weights=path),
            "demo": world.demo(weights=path),
            "export_model": world.export(weights=path),
            "convert_checkpoint": convert,
            "merge_lora": (str(path), "--output", f"{OUT}/x.pth"),
            "build_memory": world.memory(weights=path),
        }
        for door, argv in calls.items():
            # Weights that lack or change a tensor may start a training, and be converted as such.
            partial = name in ("one tensor missing", "meta is text", "not finite")
            fits = partial and door in ("train_net", "convert_checkpoint")
            # A config describes the model where a foreign file's own "meta" does not.
            fits |= name.startswith("meta") and door in ("train_net", "--eval-only")
            yield Case(door, f"weights: {name}", argv, shown, (0, 2) if fits else (2,))
    for name, path in (("with itself", world.lora), ("with other weights", world.weights)):
        argv = (str(world.lora), "--base", str(path), "--output", f"{OUT}/x.pth")
        yield Case("merge_lora", f"base: {name}", argv, "base")


def _png(width: int, height: int) -> bytes:
    """A png that states a size and holds nothing."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "png")
    content = bytearray(stream.getvalue())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    crc = __import__("zlib").crc32(bytes(content[12:29]))
    content[29:33] = crc.to_bytes(4, "big")
    return bytes(content)


def _images(world, broken) -> dict[str, Path]:
    good = (world.images / "0.png").read_bytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "x" * 10_000_000, zip=True)
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "png", pnginfo=text)
    files = {
        "empty": b"",
        "text": b"not an image",
        "truncated": good[: len(good) // 2],
        "header only": good[:40],
        "declares 10^9": _png(10**9, 10**9),
        "declares 60000": _png(60_000, 60_000),
        "declares 0": _png(0, 0),
        "text bomb": stream.getvalue(),
        "random": np.random.default_rng(0).bytes(2000),
    }
    found = {}
    for name, content in files.items():
        found[name] = broken / f"image_{name.replace(' ', '_').replace('^', '')}.png"
        found[name].write_bytes(content)
    bomb = broken / "image_bomb.png"
    Image.new("L", (9000, 9000)).save(bomb)  # 80 kB that unpack to more than is allowed
    return found | {"bomb": bomb}


def image_files(world, broken):
    """Broken photographs, alone and among good ones; small ones, which must be done."""
    for name, path in _images(world, broken).items():
        # A text chunk that cannot be read leaves the pixels as they are.
        fine = (0,) if name == "text bomb" else ()
        yield Case("demo", f"image: {name}", world.demo(inputs=[path]), path.name, (1, 2, *fine))
        many = world.demo(inputs=[world.images / "0.png", path, world.images / "1.png"])
        yield Case("demo", f"image among good ones: {name}", many, path.name, (1, *fine))
        folder = broken / f"photos_{path.stem}"
        folder.mkdir()
        (folder / path.name).write_bytes(path.read_bytes())
        argv = world.memory(images=folder)
        yield Case("build_memory", f"image: {name}", argv, path.name, (2, *fine))
        card = _card_with(world, broken, f"image_{path.stem}", image=path)
        yield Case("check", f"image: {name}", ("--card", str(card)), "0.png", (1, 2, *fine))
        train = world.train("DATASETS.CARDS", [str(card)], "DATASETS.TEST", "()")
        yield Case("train_net", f"image: {name}", train, "0.png", (2, *fine))
        objects = broken / f"objects_{path.stem}"
        objects.mkdir()
        (objects / "0.png").write_bytes(path.read_bytes())
        argv = world.paste(objects=objects)
        yield Case("prepare_cut_paste", f"image: {name}", argv, "0.png", (1, 2))
    for height, width in ((1, 1), (2, 8), (8, 2), (1, 300), (300, 1)):
        path = broken / f"small_{height}x{width}.png"
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
        argv = world.demo(inputs=[path, world.images / "0.png"])
        yield Case("demo", f"image of {height}x{width}", argv, path.name, (0, 1))
        folder = broken / f"photos_{path.stem}"
        folder.mkdir()
        path.rename(folder / path.name)
        argv = world.memory(images=folder)
        yield Case("build_memory", f"image of {height}x{width}", argv, path.name, (0, 2))
    named = broken / f"{NOT_UTF8}.png"
    named.write_bytes((world.images / "0.png").read_bytes())
    yield Case("demo", "name that is not UTF-8", world.demo(inputs=[named]), "bad-", (0,))
    for name in ("/dev/zero", "/dev/null", "/proc/self/mem", "no/such/*.png", "a\x00b", "", "["):
        yield Case("demo", f"input {name!r}", world.demo(inputs=[name]), name or "no input", (1, 2))
    video = broken / "video.mp4"
    video.write_bytes(b"not a video")
    yield Case("demo", "video of text", world.demo(inputs=[video]), "video.mp4", (1, 2))
    mixed = world.demo(inputs=[video, world.images / "0.png"])
    yield Case("demo", "video of text and an image", mixed, "video.mp4", (1,))


def _card_with(world, broken, name, image=None, label=None, kind="closed") -> Path:
    """A copy of a dataset whose first image or label is another file."""
    folder = broken / f"set_{name}"
    labels = world.labels if kind == "closed" else world.folder / "anomaly/labels"
    for part, source, replaced in (("images", world.images, image), ("labels", labels, label)):
        (folder / part).mkdir(parents=True)
        for path in source.iterdir():
            path = replaced if replaced and path.name == "0.png" else path
            name = "0.png" if path == replaced else path.name
            (folder / part / name).write_bytes(path.read_bytes())
    card = folder / "card.yaml"
    if kind == "closed":
        card.write_text(runs.CARD.format(name="faults", root=folder))
    else:
        text = world.anomaly_card.read_text().replace(str(world.folder), str(folder))
        text = text.replace("data/images", "images").replace("anomaly/labels", "labels")
        card.write_text(text)
    return card


def label_files(world, broken):
    """Labels that are broken, of another size, or hold values that the card does not know."""
    images = dict(_images(world, _made(broken / "labels")))
    pixels = {
        "other size": np.zeros((16, 16), np.uint8),
        "one pixel": np.zeros((1, 1), np.uint8),
        "unknown value": np.full((32, 32), 77, np.uint8),
        "colours": np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8),
        "16 bits": np.full((32, 32), 1000, np.uint16),
    }
    for name, array in pixels.items():
        images[name] = broken / "labels" / f"label_{name.replace(' ', '_')}.png"
        Image.fromarray(array).save(images[name])
    for name, path in images.items():
        fine = (0,) if name == "text bomb" else ()
        card = _card_with(world, broken, f"closed_{path.stem}", label=path)
        yield Case("check", f"label: {name}", ("--card", str(card)), "0.png", (1, 2, *fine))
        train = world.train("DATASETS.CARDS", [str(card)], "DATASETS.TEST", "()")
        yield Case("train_net", f"label: {name}", train, "0.png", (2, *fine))
        card = _card_with(world, broken, f"anomaly_{path.stem}", label=path, kind="anomaly")
        fine = (0, 2) if name == "text bomb" else ()
        argv = world.evaluate("DATASETS.CARDS", [str(card)])
        yield Case("--eval-only", f"label: {name}", argv, "0.png", (2, *fine))
        argv = world.evaluate_maps(card=card)
        yield Case("evaluate_maps", f"label: {name}", argv, "/0.", (2, *fine))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _npy_header(shape: str, dtype: str = "'<f4'") -> bytes:
    head = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (63 - (10 + len(head)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head


def map_files(world, broken):
    """Score maps that are broken, too large, of other shapes or not finite."""
    good = (world.maps / "0.npy").read_bytes()
    arrays = {
        "other size": np.zeros((16, 16), np.float32),
        "three channels": np.zeros((32, 32, 3), np.float32),
        "not a number": np.full((32, 32), np.nan, np.float32),
        "infinite": np.full((32, 32), np.inf, np.float32),
        "complex": np.zeros((32, 32), np.complex64),
        "text": np.full((32, 32), "a"),
        "dates": np.zeros((32, 32), "datetime64[s]"),
        "record": np.zeros((32, 32), [("a", "f4")]),
        "empty array": np.zeros((0, 32), np.float32),
        "scalar": np.float32(5),
        "objects": np.full((32, 32), None),
    }
    files = {
        "empty.npy": b"",
        "truncated.npy": good[:200],
        "text.npy": b"not an array",
        "huge.npy": _npy_header("(1000000, 1000000)"),
        "negative.npy": _npy_header("(-1, 32)"),
        "header code.npy": _npy_header("(__import__('os').system('touch /tmp/planted'),)"),
        "deep header.npy": _npy_header("(" * 3000 + ")" * 3000),
        "pickle.npy": b"cos\nsystem\n(S'touch /tmp/planted'\ntR.",
        "empty.npz": b"",
        "nothing.npz": _zip({}),
        "two.npz": _zip({"a.npy": good, "b.npy": good}),
        "bomb.npz": _zip({"a.npy": _npy_header("(40000, 40000)") + b"\0" * 50_000_000}),
        "lying.npz": _zip({"a.npy": _npy_header("(32, 32)") + b"\0" * 50_000_000}),
        "text.npz": _zip({"a.npy": b"text"}),
        "climbing.npz": _zip({"../../escaped.npy": b"text"}),
        "empty.png": b"",
        "huge.png": _png(60_000, 60_000),
        "eight bits.png": (world.labels / "0.png").read_bytes(),
        "text.tiff": b"II*\x00text",
        "text.hdf5": b"not hdf5",
    }
    found = {}
    for name, content in files.items():
        stem, suffix = name.split(".")
        found[name] = (suffix, content)
    for name, array in arrays.items():
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=True)
        found[f"array: {name}"] = ("npy", stream.getvalue())
    for name, shape in (("bomb", (100_000, 100_000)), ("other size", (5, 5)), ("volume", (9,) * 4)):
        path = broken / "map.hdf5"
        with h5py.File(path, "w") as file:
            options = {"chunks": True, "compression": "gzip"}
            file.create_dataset("value", shape, "f4", **options)
        found[f"{name} hdf5"] = ("hdf5", path.read_bytes())
    with h5py.File(broken / "map.hdf5", "w") as file:
        file.create_group("group")
    found["group hdf5"] = ("hdf5", (broken / "map.hdf5").read_bytes())
    with h5py.File(broken / "map.hdf5", "w") as file:
        file["value"] = h5py.ExternalLink("/etc/passwd", "value")
    found["external link hdf5"] = ("hdf5", (broken / "map.hdf5").read_bytes())
    for name, (suffix, content) in found.items():
        folder = broken / f"maps_{name.replace(' ', '_').replace('.', '_').replace(':', '')}"
        folder.mkdir()
        for index in range(1, 4):
            (folder / f"{index}.npy").write_bytes((world.maps / f"{index}.npy").read_bytes())
        (folder / f"0.{suffix}").write_bytes(content)
        # Infinite scores have an order, and eight bits are read as they are.
        fine = (0, 2) if name in ("array: infinite", "eight bits.png") else (2,)
        argv = world.evaluate_maps(maps=folder)
        yield Case("evaluate_maps", f"map: {name}", argv, f"0.{suffix}", fine)
    device = broken / "maps_device"
    device.mkdir()
    for index in range(4):
        (device / f"{index}.npy").symlink_to("/dev/zero")
    yield Case("evaluate_maps", "map: /dev/zero", world.evaluate_maps(maps=device), "no map")
    empty = _made(broken / "maps_none")
    yield Case("evaluate_maps", "no maps", world.evaluate_maps(maps=empty), "no map")
    pickled = broken / "planted_output"
    pickled.mkdir()
    for name in ("inference/faults_anomaly", "."):
        (pickled / name).mkdir(parents=True, exist_ok=True)
        (pickled / name / "progress.pkl").write_bytes(files["pickle.npy"])
        (pickled / name / "progress.npz").write_bytes(_zip({"a.npy": files["pickle.npy"]}))
    argv = world.evaluate_maps(output=pickled)
    yield Case("evaluate_maps", "planted progress files", argv, "progress.npz", (0, 2))


def results_files(world, broken):
    """Results of wrong types, read by tables, pages, thresholds and exports."""
    good = json.loads(world.results.read_text())
    entries = {"list": [1], "text": "a", "number": 5, "null": None, "true": True, "empty": {}}
    values = {}
    for name, value in entries.items():
        values[f"is {name}"] = value
        for path in (
            ("datasets",),
            ("datasets", "road_obstacle21"),
            ("datasets", "road_obstacle21", "scores"),
            ("datasets", "road_obstacle21", "scores", "rba"),
        ):
            content = copy.deepcopy(good)
            node = content
            for part in path[:-1]:
                node = node[part]
            node[path[-1]] = value
            values[f"{path[-1]} is {name}"] = content
    for name, value in (("a list", [1]), ("text", "half"), ("true", True), ("huge", 1e300)):
        content = copy.deepcopy(good)
        for figures in content["datasets"]["road_obstacle21"]["scores"].values():
            figures["auprc"] = figures["fpr95"] = value
            figures["threshold_at_tpr"] = value
        values[f"figures are {name}"] = content
    texts = {
        "empty file": b"",
        "cut": b'{"datasets": {',
        "not UTF-8": b'{"a": "\xff"}',
        "deep": _deep("[", "]"),
        "NaN only": b"NaN",
        "huge number": b"1" * 10_000,
        "zeros": b"\0" * 100,
    }
    stored = {}
    for name, value in values.items():
        stored[name] = json.dumps(value).encode()
    for name, content in (stored | texts).items():
        folder = _made(broken / f"results_{name.replace(' ', '_')}")
        (folder / "results.json").write_bytes(content)
        path = str(folder / "results.json")
        # Some doors do not read what is broken; then they do their work.
        fine = (0, 2) if name not in texts and "is" in name.split() else (2,)
        fine = (0, 2) if "are" in name.split() else fine
        fine = (2,) if name in ("is list", "is text", "is number", "is null", "is true") else fine
        yield Case("compare", f"results: {name}", (path, "--output", OUT), folder.name, fine)
        run = f"arcface={folder}"
        argv = ("--run", run, "--output", OUT)
        yield Case("plot_results", f"results: {name}", argv, folder.name, fine)
        if name in (*texts, *list(values)[:20]):
            argv = world.demo("--tpr", "95", "--results", path)
            yield Case("demo", f"results: {name}", argv, folder.name, fine)
    for door, call in (
        ("compare", lambda p: (p, "--output", OUT)),
        ("plot_results", lambda p: ("--run", f"arcface={p}", "--output", OUT)),
    ):
        for path in ("/dev/zero", str(broken / "nowhere"), str(broken / "empty_folder"), ""):
            yield Case(
                door, f"results from {path!r}", call(path), path or ("no results.json", "path")
            )


def coco_files(world, broken):
    """Annotations of wrong types, of absurd sizes, and of files outside the folder."""
    good = json.loads(world.coco.read_text())

    def changed(part: str, **entries):
        content = copy.deepcopy(good)
        content[part][0].update(entries)
        return json.dumps(content).encode()

    def without(part: str, key: str):
        content = copy.deepcopy(good)
        del content[part][0][key]
        return json.dumps(content).encode()

    files = {
        "empty file": b"",
        "cut": world.coco.read_bytes()[:100],
        "list": b"[1, 2]",
        "number": b"5",
        "null": b"null",
        "empty table": b"{}",
        "not UTF-8": b'{"images": "\xff"}',
        "deep": _deep("[", "]"),
        "images are text": json.dumps({**good, "images": "all"}).encode(),
        "images of numbers": json.dumps({**good, "images": [1]}).encode(),
        "annotations are null": json.dumps({**good, "annotations": None}).encode(),
        "annotations of text": json.dumps({**good, "annotations": ["a"]}).encode(),
        "no annotations": json.dumps({**good, "annotations": []}).encode(),
        "categories are a table": json.dumps({**good, "categories": {"a": 1}}).encode(),
        "sizes of 10^9": changed("images", width=10**9, height=10**9),
        "negative size": changed("images", width=-5),
        "size is text": changed("images", width="wide"),
        "file climbs": changed("images", file_name="../../../escaped.png"),
        "file is absolute": changed("images", file_name="/etc/passwd"),
        "file is a number": changed("images", file_name=5),
        "file is missing": changed("images", file_name="nowhere.png"),
        "file has a zero": changed("images", file_name="a\x00b.png"),
        "no file name": without("images", "file_name"),
        "no image id": without("annotations", "image_id"),
        "no category": without("annotations", "category_id"),
        "no segmentation": without("annotations", "segmentation"),
        "other image": changed("annotations", image_id=99),
        "other category": changed("annotations", category_id=99),
        "list as id": changed("images", id=[1]),
        "category name is a list": changed("categories", name=[1]),
        "segmentation is text": changed("annotations", segmentation="abc"),
        "segmentation of text": changed("annotations", segmentation=[["a", "b"]]),
        "segmentation too short": changed("annotations", segmentation=[[1, 2]]),
        "segmentation odd": changed("annotations", segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        "segmentation far out": changed("annotations", segmentation=[[1e18, 0, 1e18, 9, 0, 9]]),
        "segmentation not finite": changed("annotations", segmentation=[[float("nan")] * 8]),
        "huge run lengths": changed(
            "annotations", segmentation={"size": [10**9, 10**9], "counts": [10**18]}
        ),
        "wrong run lengths": changed(
            "annotations", segmentation={"size": [80, 80], "counts": [-5, 10**12]}
        ),
        "bad compressed runs": changed(
            "annotations", segmentation={"size": [80, 80], "counts": "\x7f~~~"}
        ),
        "area is text": changed("annotations", area="big"),
        "area is nan": changed("annotations", area=float("nan")),
    }
    for name, content in files.items():
        path = broken / f"coco_{name.replace(' ', '_').replace('^', '')}.json"
        path.write_bytes(content)
        # What an area says is read from the outline where it is not a number.
        fine = (0, 1, 2) if name.startswith("area") else (1, 2)  # 1: the only object cannot be read
        argv = world.paste(coco=path)
        shown = (path.name, "0.png", "annotation 1")
        yield Case("prepare_cut_paste", f"annotations: {name}", argv, shown, fine)
        if name in ("sizes of 10^9", "file climbs", "deep", "list", "segmentation is text"):
            more = ("INPUT.CUT_PASTE.ENABLED", True, "INPUT.CUT_PASTE.COCO_JSON", path)
            more += ("INPUT.CUT_PASTE.COCO_IMAGES", world.objects, "INPUT.CUT_PASTE.RATIO", 1.0)
            yield Case("train_net", f"annotations: {name}", world.train(*more), shown)
    for path in ("/dev/zero", str(broken / "nowhere.json"), str(world.folder)):
        yield Case("prepare_cut_paste", f"annotations from {path}", world.paste(coco=path), path)


def outputs(world, broken):
    """Outputs that are files, not writable, or not names."""
    file = broken / "a_file"
    file.write_text("in the way")
    pipe = broken / "a_pipe"
    os.mkfifo(pipe)
    for name, place in (
        ("is a file", str(file)),
        ("is in a file", str(file / "inside")),
        ("is in /proc", "/proc/nowhere"),
        ("is a pipe", str(pipe)),
        ("is too long", "/tmp/" + "x" * 5000),
    ):
        shown = "/tmp/xxxx" if "long" in name else place
        calls = {
            "train_net": world.train("OUTPUT_DIR", place),
            "--eval-only": world.evaluate("OUTPUT_DIR", place),
            "demo": world.demo("--output", place),
            "export_model": world.export(output=f"{place}/m.onnx"),
            "convert_checkpoint": (
                str(world.weights),
                "--to",
                "anoseg",
                "--output",
                f"{place}/x.pth",
            ),
            "merge_lora": (str(world.lora), "--output", f"{place}/x.pth"),
            "build_memory": world.memory("--output", f"{place}/x.pth"),
            "evaluate_maps": world.evaluate_maps(output=place),
            "compare": (str(world.results), "--output", place),
            "plot_results": ("--run", f"arcface={world.results}", "--output", place),
            "prepare_cut_paste": world.paste(output=place),
            "check": ("--card", str(world.card), "faults", "--preview", place),
        }
        for door, argv in calls.items():
            yield Case(door, f"output {name}", argv, shown)
        argv = ("--card", str(world.card), "faults", "--json", place)
        yield Case("check", f"--json {name}", argv, shown, (0,) if name == "is a file" else (2,))
    for door, argv in (
        ("train_net", world.train("OUTPUT_DIR", f"{broken}/{NOT_UTF8}")),
        ("--eval-only", world.evaluate("OUTPUT_DIR", f"{broken}/{NOT_UTF8}")),
    ):
        yield Case(door, "OUTPUT_DIR that is not UTF-8", argv, "OUTPUT_DIR")
    for ending in ("x", "x.jpg", "x.pt", ".", ".."):
        place = f"{OUT}/{ending}"
        yield Case("export_model", f"output {ending}", world.export(output=place), "output")
        argv = (str(world.weights), "--to", "anoseg", "--output", place)
        fine = (0, 2) if ending == "x.pt" else (2,)
        yield Case("convert_checkpoint", f"output {ending}", argv, "output", fine)
        argv = (str(world.lora), "--output", place)
        yield Case("merge_lora", f"output {ending}", argv, "output", fine)


# Options that change nothing for these inputs, or whose amount is limited by what there is.
HARMLESS = {
    "evaluate_maps": ("--key", "--root"),
    "build_memory": ("1000000000000",),
}


def options(world, broken):
    """Options that mean nothing, contradict each other, or ask for absurd amounts."""
    demo, maps, paste = world.demo, world.evaluate_maps, world.paste
    cases = {
        "demo": [
            (demo("--webcam", -1), "webcam"),
            (demo("--webcam", "x"), "webcam"),
            (("--webcam", "99", "--weights", str(world.weights), "--output", OUT), "webcam 99"),
            (demo("--score", "nothing"), "nothing"),
            (demo("--score", ""), "score"),
            (demo("--score", "../rba"), "../rba"),
            (demo("--outputs", "nothing"), "nothing"),
            (demo("--outputs", ""), "output"),
            (demo("--range", "1", "0"), "range"),
            (demo("--range", "nan", "nan"), "range"),
            (demo("--range", "0", "inf"), "range"),
            (demo("--temporal", "2"), "temporal"),
            (demo("--temporal", "nan"), "temporal"),
            (demo("--max-frames", "0"), "max-frames"),
            (demo("--min-size", "-1"), "min-size"),
            (demo("--threshold", "abc"), "threshold"),
            (demo("--threshold", "nan"), "threshold"),
            (demo("--threshold", "rba=1,msp=2"), "threshold"),
            (demo("--tpr", "50"), "tpr"),
            (demo("--tpr", "nan"), "tpr"),
            (demo("--import", "nowhere"), "nowhere"),
            (demo("--import", ""), "import"),
            (demo("--opts", "MODEL.EOMT.NUM_QUERIES"), "MODEL.EOMT.NUM_QUERIES"),
            (demo("--opts", "TEST.ANOMALY.TEMPERATURE", "0"), "TEMPERATURE"),
            (demo("--opts", "INPUT.WINDOW_BATCH", "-1"), "WINDOW_BATCH"),
            (("--weights", str(world.weights)), "input"),
            (demo("--config-file", "nowhere.yaml"), "nowhere.yaml"),
            (demo("--nothing"), "--nothing"),
        ],
        "export_model": [
            (world.export("--image-size", 1, 100000), "image-size"),
            (world.export("--image-size", 0, 0), "image-size"),
            (world.export("--image-size", -5, 32), "image-size"),
            (world.export("--image-size", 32), "image-size"),
            (world.export("--batch", 0), "batch"),
            (world.export("--batch", "many"), "batch"),
            (world.export("--batch", 10**9), "batch"),
            (world.export("--scores", "nothing"), "nothing"),
            (world.export("--scores", ""), "score"),
            (world.export("--tolerance", "-1"), "tolerance"),
            (world.export("--tolerance", "nan"), "tolerance"),
            (world.export("--check-image", "nowhere.png"), "nowhere.png"),
            (world.export("--check-image", world.card), "card.yaml"),
            (world.export("--format", "tensorrt"), "format"),
            (world.export("--results", "nowhere"), "nowhere"),
            (world.export("--fp16", "--int8"), "int8"),
            (world.export("MODEL.EOMT.NOTHING", "1"), "MODEL.EOMT.NOTHING"),
        ],
        "convert_checkpoint": [
            ((str(world.weights), "--to", "nothing", "--output", OUT), "--to"),
            ((str(world.weights), "--to", "adapter", "--output", f"{OUT}/x.pth"), "adapter"),
            ((str(world.weights), "--to", "official", "--output", OUT), "output"),
            (
                (
                    str(world.weights),
                    "--to",
                    "anoseg",
                    "--output",
                    f"{OUT}/x.pth",
                    "--base",
                    str(world.weights),
                ),
                "base",
            ),
            (
                (
                    str(world.weights),
                    "--to",
                    "anoseg",
                    "--output",
                    f"{OUT}/x.pth",
                    "--num-blocks",
                    "-1",
                ),
                "num-blocks",
            ),
            (
                (
                    str(world.weights),
                    "--to",
                    "anoseg",
                    "--output",
                    f"{OUT}/x.pth",
                    "--image-size",
                    "0",
                    "0",
                ),
                "image-size",
            ),
            (
                (
                    str(world.weights),
                    "--to",
                    "anoseg",
                    "--output",
                    f"{OUT}/x.pth",
                    "--delta-base",
                    "nowhere.pth",
                ),
                "nowhere.pth",
            ),
        ],
        "merge_lora": [
            ((str(world.weights), "--output", f"{OUT}/x.pth"), "adapter"),
            ((str(world.lora), "--base", "nowhere.pth", "--output", f"{OUT}/x.pth"), "nowhere.pth"),
            ((str(world.lora),), "output"),
        ],
        "build_memory": [
            (world.memory("--rows", "0"), "rows"),
            (world.memory("--rows", "-5"), "rows"),
            (world.memory("--rows", "1000000000000"), "rows"),
            (world.memory("--seed", "-1"), "seed"),
            (world.memory("--seed", "100000000000000000000000"), "seed"),
            (world.memory(images="/dev"), "/dev"),
            (world.memory(images="nowhere"), "nowhere"),
            (world.memory(images=_made(broken / "no_photos")), "no_photos"),
            ((str(world.weights), "--dataset", "nowhere", "--output", f"{OUT}/x.pth"), "nowhere"),
        ],
        "evaluate_maps": [
            (maps("--dataset", "nowhere"), "nowhere"),
            (maps("--dataset", "../escaped"), "escaped"),
            (maps("--name", "../../escaped"), "escaped"),
            (maps("--score", "../../escaped"), "escaped"),
            (maps("--score", ""), "score"),
            (maps("--pattern", "{nothing}"), "pattern"),
            (maps("--pattern", "{id.__class__}"), "pattern"),
            (maps("--pattern", "{"), "pattern"),
            (maps("--pattern", ""), "pattern"),
            (maps("--pattern", "{id:9999999999}"), "pattern"),
            (maps("--pattern", "../../{id}"), "no map"),
            (maps("--key", "nothing"), "key"),
            (maps(maps="nowhere"), "nowhere"),
            (maps(maps="/dev/zero"), "zero"),
            (maps("--root", "/dev/zero"), "/dev/zero"),
            (maps("--card", "nowhere.yaml"), "nowhere.yaml"),
        ],
        "compare": [
            ((f"=={world.results}", "--output", OUT), "results.json"),
            (("a=", "--output", OUT), "a="),
            ((str(world.results), str(world.results), "--output", OUT), "results"),
            (("--output", OUT), "PATH"),
        ],
        "plot_results": [
            (("--run", "nothing", "--output", OUT), "nothing"),
            (("--run", f"unknown={world.results}", "--output", OUT), "unknown"),
            (
                (
                    "--run",
                    f"arcface={world.results}",
                    "--run",
                    f"arcface={world.results}",
                    "--output",
                    OUT,
                ),
                "arcface",
            ),
            (("--run", f"arcface={world.results}", "--score", "nothing", "--output", OUT), "score"),
            (("--run", f"arcface={world.results}", "--score", "RbA=", "--output", OUT), "RbA"),
        ],
        "check": [
            (("nowhere",), "nowhere"),
            (("../escaped",), "escaped"),
            (("--card", str(world.card), "faults", "--sample", "-1"), "sample"),
            (("--card", str(world.card), "faults", "--workers", "-1"), "workers"),
            (("--card", str(world.card), "faults", "--workers", "1000000"), "workers"),
            (
                ("--card", str(world.card), "faults", "--preview", OUT, "--preview-count", "-1"),
                "preview",
            ),
            (("--root", "/dev/zero", "cityscapes_train"), "cityscapes_train"),
        ],
        "prepare_cut_paste": [
            (paste("--workers", "-1"), "workers"),
            (paste("--workers", "100000"), "workers"),
            (paste("--seed", "-1"), "seed"),
            (paste("--shard", "5/2"), "shard"),
            (paste("--shard", "a/b"), "shard"),
            (paste("--shard", "0/0"), "shard"),
            (paste("--ratio", "2"), "ratio"),
            (paste("--ratio", "nan"), "ratio"),
            (paste("--count", "3", "1"), "count"),
            (paste("--count", "-1", "1"), "count"),
            (paste("--count", "0", "1000000000"), "count"),
            (paste("--scale", "0", "0"), "scale"),
            (paste("--scale", "1", "1e9"), "scale"),
            (paste("--scale", "nan", "nan"), "scale"),
            (paste("--max-fraction", "5"), "fraction"),
            (paste("--min-side", "0"), "side"),
            (paste("--feather", "-1", "0"), "feather"),
            (paste("--rim", "-1"), "rim"),
            (paste("--compress-level", "11"), "compress"),
            (paste("--split", "../../escaped"), "escaped"),
            (paste("--split", "nowhere"), "nowhere"),
            (paste("--drop-category", "nothing"), "nothing"),
            (paste("--min-area", "nan"), "area"),
            (paste("--min-area", "1e12"), "area"),
            (paste("--max-redraws", "-1"), "redraws"),
            (paste("--cutouts", "nowhere"), "nowhere"),
            (paste("--textures", "/dev/zero"), "zero"),
            (paste(scenes="nowhere"), "nowhere"),
            (paste(scenes="/dev/zero"), "zero"),
            (paste(output=world.scenes), str(world.scenes)),
        ],
        "train_net": [
            (world.train("--num-gpus", "0"), "num-gpus"),
            (("--num-gpus", "0", *world.train()), "num-gpus"),
            (("--num-gpus", "x", *world.train()), "num-gpus"),
            (("--num-gpus", "-1", *world.train()), "num-gpus"),
            (("--num-machines", "0", *world.train()), "num-machines"),
            (("--machine-rank", "5", *world.train()), "machine-rank"),
            (("--machine-rank", "-1", *world.train()), "machine-rank"),
            (("--num-gpus", "2", "--dist-url", "nonsense", *world.train()), "dist-url"),
            (("--import", "nowhere", *world.train()), "nowhere"),
            (("--import", "os.nowhere", *world.train()), "os.nowhere"),
            (world.train("SEED"), "SEED"),
            (("--resume", "--overwrite", *world.train()), "overwrite"),
        ],
        "recipes": [
            ((str(world.recipe), "--only", "nothing"), "nothing"),
            ((str(world.recipe), "--from", "nothing"), "nothing"),
            ((str(world.recipe), "--seed", "x"), "seed"),
            ((str(world.recipe), "--list", "NOT.A.KEY", "1"), "NOT.A.KEY"),
            ((str(world.recipe), "--list", "SEED"), "SEED"),
            ((str(world.recipe), "--output", str(world.card)), "card.yaml"),
            ((str(ROOT / "configs/camvid/recipe.yaml"), "--list", "--data", "nowhere"), "nowhere"),
        ],
        "--eval-only": [
            (world.evaluate("--resume"), "--resume"),
            (
                ("--config-file", str(world.config), "--eval-only", "--resume", "OUTPUT_DIR", OUT),
                "resume",
            ),
            (world.evaluate("DATASETS.TEST", "()"), "DATASETS.TEST"),
            (world.evaluate("MODEL.WEIGHTS", ""), "WEIGHTS"),
            (world.evaluate("MODEL.EOMT.NUM_CLASSES", "7"), "class"),
        ],
    }
    for door, calls in cases.items():
        for argv, names in calls:
            fine = (1, 2) if "99" in argv else (2,)
            fine = (0, 2) if any(part in argv for part in HARMLESS.get(door, ())) else fine
            shown = [a.replace(str(world.folder), "").replace(OUT, "OUT") for a in argv]
            yield Case(door, "options: " + " ".join(shown[-4:]), argv, names, fine)
