"""More broken inputs: every config key with every wrong type, special files, damaged runs.

Where `corpus.py` breaks the content of files, this module mostly breaks what is around it: files
that are pipes, circles of links or devices, folders of a run that were changed behind its back,
tensors that do not fit each other, and images of a few pixels in every command.
"""

import copy
import json
import multiprocessing
import os
import shutil
import struct
import sys
from pathlib import Path

import corpus
import cv2
import numpy as np
import runs
import torch
from corpus import OUT, Case
from PIL import Image

from anoseg_d2.commands import train
from anoseg_d2.config import FIXED, KEYS, load_config
from anoseg_d2.utils.config_files import flat_items

NAN, INF = float("nan"), float("inf")


def build_corpus(folder: Path) -> list[Case]:
    """Write all files into `folder`; returns every call to try, those of `corpus.py` first."""
    cases = corpus.build_corpus(folder)
    world, broken = corpus.WORLDS[folder], folder / "more"
    broken.mkdir()
    parts = (
        special_files,
        damaged_runs,
        tensors,
        small_images,
        strange_names,
        label_kinds,
        occupied_outputs,
        safetensors_headers,
        hugging_face_folders,
        images_of_other_kinds,
        more_maps,
        more_annotations,
        videos,
        more_options,
        further_commands,
        damaged_reports,
        typed_yaml,
        extreme_values,
        every_key,
    )
    return cases + [case for part in parts for case in part(world, broken)]


# What is tried on every key: nothing of it can be meant for most keys.
WRONG = ("text", "-1", "0", "1.5", "1e30", "nan", "[]", "[1, 'a']", "{}", "None", "10**400", "''")


def every_key(world, broken):
    """Values of wrong types for every key: refused by name unless the key's range allows them."""
    cfg = load_config(str(world.config))
    for key, default in flat_items(cfg):
        if key not in KEYS or KEYS[key].rule is FIXED:
            continue
        for value in WRONG:
            if _may_be(default, value, key):
                continue
            argv = world.train(key, value)
            yield Case("train_net", f"{key} = {value!r}", argv, (key, key.split(".")[-1]))


def _may_be(default, value: str, key: str) -> bool:
    """Whether a value could be meant: text for text, a number for a number, a list for a list."""
    if isinstance(default, bool):
        return False
    if isinstance(default, str):
        if not default and value == "''":
            return True
        # Choices are refused; names of files and folders may be anything.
        free = key.endswith(("WEIGHTS", "DELTA_BASE", "COCO_JSON", "COCO_IMAGES", "CUTOUTS"))
        return free or key.endswith(("TEXTURES", "OUTPUT_DIR"))
    if isinstance(default, (list, tuple)):
        return value == "[]"
    if isinstance(default, int):
        return value == "0" or (key == "SEED" and value == "-1")
    return value in ("0", "1.5", "1e30") or (value == "-1" and key.endswith(("_UPPER", "_LOWER")))


# Allowed by the type of the key, absurd all the same: refused, or done; never a crash.
EXTREMES = (
    ("MODEL.EOMT.WIDTH", "99998"),
    ("MODEL.EOMT.WIDTH", "16384"),
    ("MODEL.EOMT.DEPTH", "1000"),
    ("MODEL.EOMT.NUM_QUERIES", "10000"),
    ("MODEL.EOMT.NUM_REGISTERS", "1000"),
    ("MODEL.EOMT.PATCH_SIZE", "1"),
    ("MODEL.EOMT.PATCH_SIZE", "32"),
    ("MODEL.EOMT.NORM_EPS", "1"),
    ("MODEL.EOMT.ANNEALING_POWER", "1e300"),
    ("MODEL.CRITERION.MATCH_POINTS", "10000000"),
    ("MODEL.CRITERION.LOSS_POINTS", "10000000"),
    ("MODEL.CRITERION.OVERSAMPLE_RATIO", "100"),
    ("MODEL.CRITERION.MASK_WEIGHT", "1e300"),
    ("MODEL.CRITERION.CLASS_WEIGHT", "0"),
    ("MODEL.CRITERION.MATCH_CLASS_COST", "1e300"),
    ("MODEL.CRITERION.NO_OBJECT_WEIGHT", "0"),
    ("MODEL.CRITERION.OUTLIER_WEIGHT", "1e38"),
    ("MODEL.HEAD.ARCFACE.SCALE", "1e300"),
    ("MODEL.HEAD.LOGIT_NORM.TAU", "1e-300"),
    ("MODEL.PIXEL_STD", "[1e-300, 1e-300, 1e-300]"),
    ("SOLVER.BASE_LR", "1e300"),
    ("SOLVER.BASE_LR", "1e30"),
    ("SOLVER.WEIGHT_DECAY", "1e300"),
    ("SOLVER.POLY_POWER", "1e300"),
    ("SOLVER.LAYER_DECAY", "1e-300"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "1e-300"),
    ("SOLVER.EMA.DECAY", "1"),
    ("SOLVER.IMS_PER_BATCH", "1000000000"),
    ("SOLVER.IMS_PER_BATCH", "1000000"),
    ("SOLVER.ACCUMULATION", "1000000000"),
    ("SOLVER.REFERENCE_WORLD_SIZE", "1000000"),
    ("SOLVER.CHECKPOINT_PERIOD", "100000000000000000000000"),
    ("SOLVER.KEEP_CHECKPOINTS", "100000000000000000000000"),
    ("DATALOADER.NUM_WORKERS", "1000000"),
    ("INPUT.CROP_SIZE", "(16384, 16384)"),
    ("INPUT.CROP_SIZE", "(16, 16384)"),
    ("INPUT.CROP_SIZE", "(16, 16)"),
    ("INPUT.SCALE_JITTER", "(16, 16)"),
    ("INPUT.SCALE_JITTER", "(1e-300, 1e-300)"),
    ("INPUT.SCALE_JITTER", "(0.001, 0.001)"),
    ("INPUT.WINDOW_BATCH", "10000"),
    ("TEST.ANOMALY.TEMPERATURE", "1e-300"),
    ("TEST.ANOMALY.TEMPERATURE", "1e300"),
    ("TEST.WINDOW_OVERLAP", "0.95"),
    ("TEST.QUERY_TOLERANCE", "0.1"),
    ("TEST.EVAL_PERIOD", "100000000000000000000000"),
    ("TEST.EXPECTED_RESULTS", "[1]"),
    ("TEST.EXPECTED_RESULTS", "[['a', 'b', 'c', 'd']]"),
    ("TEST.EXPECTED_RESULTS", "[['faults_anomaly', 'nothing', 1.0, 0.1]]"),
    ("DATASETS.TRAIN", "('faults', 'faults')"),
    ("DATASETS.TEST", "('faults_anomaly', 'faults_anomaly')"),
    ("DATASETS.TRAIN", "('faults_anomaly',)"),
    ("DATASETS.TRAIN", "('coco_2017_train',)"),
    ("DATASETS.TEST", "('coco_2017_val',)"),
    ("DATASETS.CARDS", "['../escaped.yaml']"),
    ("DATASETS.CARDS", "['a\\x00b']"),
    ("DATASETS.CARDS", "['" + "x" * 5000 + "']"),
    ("MODEL.WEIGHTS", "a\x00b"),
    ("MODEL.WEIGHTS", "x" * 5000),
    ("MODEL.WEIGHTS", "hf://"),
    ("MODEL.WEIGHTS", "hf://../../etc"),
    ("MODEL.WEIGHTS", "timm://"),
    ("MODEL.WEIGHTS", "timm://../../etc/passwd"),
    ("MODEL.WEIGHTS", "detectron2://nothing"),
    ("MODEL.WEIGHTS", "https://localhost:1/model.pth"),
    ("MODEL.WEIGHTS", "file:///etc/passwd"),
    ("MODEL.WEIGHTS", "."),
    ("MODEL.WEIGHTS", "/"),
    ("MODEL.DELTA_BASE", "nowhere.pth"),
    ("MODEL.ALLOW_UNUSED_WEIGHTS", "['[']"),
    ("MODEL.IMPORTS", "['']"),
    ("MODEL.IMPORTS", "['os;import sys']"),
    ("MODEL.IMPORTS", "['.']"),
    ("TEST.ANOMALY.SCORES", "['rba', 'rba']"),
    ("TEST.ANOMALY.SCORES", "['" + "rba+" * 500 + "rba']"),
    ("INPUT.CUT_PASTE.ENABLED", "'True'"),
    ("OUTPUT_DIR", "~nobody_of_this_name/x"),
)


def extreme_values(world, broken):
    """Values at the end of what a key's type allows."""
    for key, value in EXTREMES:
        shown = value.strip("()[]'\"")[:60].split("'")[0]
        names = (key, key.split(".")[-1], shown or key, "loss", "--import", "gradient")
        names += ("instances_val2017", "Expected Results")
        train_it = world.train(key, value)
        shown = f"{key} {value}"[:60]
        yield Case(
            "train_net",
            f"extreme: {shown}",
            train_it,
            names,
            (0, 1, 2) if "EXPECTED" in key else (0, 2),
        )
        if not key.startswith(("SOLVER", "DATALOADER", "DATASETS.TRAIN", "MODEL.CRITERION")):
            more = () if key == "MODEL.WEIGHTS" else ("MODEL.WEIGHTS", world.weights)
            command = ("--config-file", world.config, "--eval-only", "OUTPUT_DIR", OUT)
            argv = tuple(map(str, (*command, *more, key, value)))
            yield Case("--eval-only", f"extreme: {shown}", argv, (*names, "weights"), (0, 2))
    for first, second in (
        (("MODEL.EOMT.BACKBONE", "dinov3"), ("MODEL.EOMT.SIZE", "G")),
        (("MODEL.LORA.ENABLED", True), ("MODEL.LORA.TARGETS", "[]")),
        (("MODEL.EOMT.MASKED_ATTENTION", True), ("MODEL.EOMT.NUM_BLOCKS", 3)),
        (("MODEL.RATIO.ENABLED", True), ("MODEL.RATIO.THRESHOLD", 0.99)),
        (("MODEL.RATIO.ENABLED", True), ("MODEL.RATIO.CELLS", 5)),
        (("MODEL.RATIO.ALONE", True), ("MODEL.RATIO.ENABLED", False)),
        (("SOLVER.EMA.ENABLED", True), ("SOLVER.EMA.DECAY", 0)),
        (("SOLVER.AMP.ENABLED", True), ("SOLVER.AMP.PRECISION", "fp16")),
        (("SOLVER.WARMUP_NEW", 0.6), ("SOLVER.WARMUP_VIT", 0.6)),
        (("INPUT.CUT_PASTE.ENABLED", True), ("INPUT.CUT_PASTE.TEXTURES", "nowhere")),
        (("INPUT.CUT_PASTE.ENABLED", True), ("INPUT.CUT_PASTE.CUTOUTS", world.images)),
        (("INPUT.CUT_PASTE.ENABLED", True), ("INPUT.CUT_PASTE.COCO_JSON", world.coco)),
        (("MODEL.EOMT.ANOMALY_CLASS", False), ("MODEL.CRITERION.OUTLIER_WEIGHT", 1.0)),
        (("MODEL.HEAD.NAME", "arcface"), ("MODEL.HEAD.ARCFACE.MARGIN_RAMP", 1.0)),
        (("DATASETS.TRAIN", "('faults_anomaly',)"), ("DATASETS.TEST", "()")),
    ):
        argv = world.train(*first, *second)
        names = (first[0].split(".")[-1], second[0].split(".")[-1], str(second[1]))
        names += ("no object", "loss", "outlier", "anomaly")
        yield Case("train_net", f"together: {first} {second}", argv, names, (0, 2))


def typed_yaml(world, broken):
    """Configs whose values have types that only yaml can give."""
    for name, text in {
        "null": "MODEL: {EOMT: {NUM_QUERIES: null}}",
        "nan": "SOLVER: {BASE_LR: .nan}",
        "infinite": "SOLVER: {BASE_LR: .inf}",
        "date": "SOLVER: {MAX_ITER: 2020-01-01}",
        "time": "SOLVER: {MAX_ITER: 12:30:45}",
        "bytes": "OUTPUT_DIR: !!binary aGVsbG8=",
        "set": "DATASETS: {TRAIN: !!set {faults}}",
        "ordered": "DATASETS: {TRAIN: !!omap [a: 1]}",
        "yes": "MODEL: {EOMT: {NUM_QUERIES: yes}}",
        "table for a number": "MODEL: {EOMT: {NUM_QUERIES: {a: 1}}}",
        "number for a table": "MODEL: {EOMT: 5}",
        "null for a table": "MODEL: {EOMT: null}",
        "list for a table": "MODEL: []",
        "empty table": "MODEL: {EOMT: {}}",
        "dotted key": "MODEL.EOMT.NUM_QUERIES: 0",
        "key twice": "SEED: 1\nSEED: -5",
        "key of a method": "MODEL: {clone: 1}",
        "dunder key": "__class__: 1",
        "base in a branch": "MODEL: {_BASE_: nowhere.yaml}",
        "base of itself": "_BASE_: typed_base_of_itself.yaml",
        "version": "VERSION: 1",
        "nested list": f"DATASETS: {{CARDS: [[{world.card}]]}}",
        "numbers for names": "DATASETS: {TRAIN: [1, 2]}",
        "huge text": "OUTPUT_DIR: " + "x" * 9_000_000,
        "too large": "OUTPUT_DIR: " + "x" * 11_000_000,
        "very long list": "DATASETS: {TRAIN: [" + "a, " * 200_000 + "]}",
        "control characters": "OUTPUT_DIR: \x07bell",
        "BOM": "\ufeffVERSION: 1",
        "merge key": "<<: {VERSION: 1}",
        "merge of a list": "<<: [1, 2]",
        "looping merge": "&a <<: *a",
        "directive": "%YAML 9.9\n---\nSEED: x",
        "two documents": "SEED: 1\n---\nSEED: 2",
    }.items():
        path = broken / f"typed_{name.replace(' ', '_')}.yaml"
        path.write_text(text + "\n")
        fine = (0, 2) if name in ("empty table",) else (2,)
        names = (path.name, "key", "MODEL", "SOLVER", "DATASETS", "OUTPUT_DIR", "VERSION", "SEED")
        yield Case("configs", f"typed: {name}", world.train(config=path), names, fine)


def special_files(world, broken):
    """A pipe, circles of links, a device and a socket in the place of every kind of file."""
    pipe, circle, other = broken / "pipe", broken / "circle", broken / "other_circle"
    os.mkfifo(pipe)
    circle.symlink_to(other)
    other.symlink_to(circle)
    dangling = broken / "dangling"
    dangling.symlink_to(broken / "not_there")
    unreadable = Path("/proc/self/mem")
    for name, path in {
        "pipe": pipe,
        "circle of links": circle,
        "dangling link": dangling,
        "unreadable file": unreadable,
        "folder": world.folder / "data",
        "/dev/stdin": Path("/dev/stdin"),
    }.items():
        shown = path.name
        delta = ("MODEL.WEIGHTS", world.weights, "MODEL.DELTA_BASE")
        calls = {
            "config file": ("train_net", world.train(config=path)),
            "card": ("train_net", world.train("DATASETS.CARDS", [str(path)])),
            "weights": ("train_net", world.train("MODEL.WEIGHTS", path)),
            "delta base": ("train_net", world.train(*delta, path)),
            "evaluated weights": ("--eval-only", world.evaluate(weights=path)),
            "input": ("demo", world.demo(inputs=[path])),
            "demo weights": ("demo", world.demo(weights=path)),
            "demo config": ("demo", world.demo("--config-file", path)),
            "demo results": ("demo", world.demo("--tpr", 95, "--results", path)),
            "exported weights": ("export_model", world.export(weights=path)),
            "check image": ("export_model", world.export("--check-image", path)),
            "export results": ("export_model", world.export("--results", path)),
            "converted": (
                "convert_checkpoint",
                (path, "--to", "anoseg", "--output", f"{OUT}/x.pth"),
            ),
            "merge base": ("merge_lora", (world.lora, "--base", path, "--output", f"{OUT}/x.pth")),
            "memory weights": ("build_memory", world.memory(weights=path)),
            "memory images": ("build_memory", world.memory(images=path)),
            "maps": ("evaluate_maps", world.evaluate_maps("--name", "m", maps=path)),
            "maps card": ("evaluate_maps", world.evaluate_maps(card=path)),
            "maps root": ("evaluate_maps", world.evaluate_maps("--root", path)),
            "maps output": ("evaluate_maps", world.evaluate_maps(output=path)),
            "compared": ("compare", (path, "--output", OUT)),
            "plotted": ("plot_results", ("--run", f"arcface={path}", "--output", OUT)),
            "checked card": ("check", ("--card", path)),
            "check root": ("check", ("--root", path, "road_anomaly")),
            "scenes": ("prepare_cut_paste", world.paste(scenes=path)),
            "annotations": ("prepare_cut_paste", world.paste(coco=path)),
            "photographs": ("prepare_cut_paste", world.paste(objects=path)),
            "cutouts": ("prepare_cut_paste", world.paste("--cutouts", path)),
            "textures": ("prepare_cut_paste", world.paste("--textures", path)),
            "pasted output": ("prepare_cut_paste", world.paste(output=path)),
            "recipe": ("recipes", (path, "--list")),
            "recipe data": ("recipes", (world.recipe, "--list", "--data", path)),
        }
        for what, (door, argv) in calls.items():
            argv = tuple(map(str, argv))
            # A folder of images is an input; nothing is read from a root that a card does not use;
            # a link to nothing is a place where an output may be made.
            fine = {1, 2}
            if (what, name) in {("input", "folder"), ("memory images", "folder")}:
                continue
            if what in ("maps root", "recipe data", "maps output", "pasted output", "textures"):
                fine.add(0)
            yield Case(door, f"{what} is a {name}", argv, (shown, what.split()[-1]), tuple(fine))
    for name, path in (("pipe", pipe), ("circle of links", circle), ("dangling link", dangling)):
        folder = broken / f"files_{name.replace(' ', '_')}"
        folder.mkdir()
        for index in range(4):
            (folder / f"{index}.png").symlink_to(path)
            (folder / f"{index}.npy").symlink_to(path)
        good = world.images / "0.png"
        yield Case(
            "demo", f"images are a {name}", world.demo(inputs=[good, folder]), "files_", (1,)
        )
        argv = world.memory(images=folder)
        yield Case("build_memory", f"images are a {name}", argv, ("0.png", "files_"), (2,))
        argv = world.evaluate_maps(maps=folder)
        yield Case("evaluate_maps", f"maps are a {name}", argv, ("no map", "files_"), (2,))
        for part in ("images", "labels"):
            given = folder / f"set_{part}"
            (given / "images").mkdir(parents=True)
            (given / "labels").mkdir()
            for index in range(4):
                for kind in ("images", "labels"):
                    source = path if kind == part else world.folder / f"data/{kind}/{index}.png"
                    (given / kind / f"{index}.png").symlink_to(source)
            card = given / "card.yaml"
            card.write_text(runs.CARD.format(name="faults", root=given))
            shown = ("faults", "images", "0.png")
            yield Case("check", f"{part} are a {name}", ("--card", str(card)), shown, (1, 2))
            argv = world.train("DATASETS.CARDS", [str(card)], "DATASETS.TEST", "()")
            yield Case("train_net", f"{part} are a {name}", argv, shown)


def tensors(world, broken):
    """Checkpoints whose tensors or sizes do not fit each other."""
    good = torch.load(world.weights, weights_only=True)
    state = good["model"]
    changes = {}
    for name in (
        "backbone.cls_token",
        "backbone.pos_embed",
        "backbone.patch_embed.proj.weight",
        "backbone.blocks.0.attn.qkv.weight",
        "backbone.blocks.2.mlp.fc1.bias",
        "query.weight",
        "class_head.weight",
        "class_head.bias",
        "mask_head.0.weight",
        "upscale.0.conv1.weight",
    ):
        value = state[name]
        if value.ndim > 1 and len(set(value.shape)) > 1:
            changes[f"{name} transposed"] = {name: value.transpose(0, -1).contiguous()}
        changes[f"{name} of no entries"] = {name: value[:0]}
        changes[f"{name} of one number"] = {name: value.flatten()[0].clone()}
        changes[f"{name} one row more"] = {name: torch.cat([value, value[:1]])}
    first = "backbone.cls_token"
    for kind in (torch.int64, torch.bool, torch.float64, torch.bfloat16, torch.uint8):
        changes[f"in {kind}"] = {first: state[first].to(kind)}
    changes["on meta"] = {first: torch.empty(1, 1, 32, device="meta")}
    changes["infinite"] = {first: torch.full_like(state[first], INF)}
    changes["a strange name"] = {"../../escaped": torch.ones(1)}
    changes["a name of a number"] = {"5": torch.ones(1)}
    changes["a very long name"] = {"x" * 100_000: torch.ones(1)}
    changes["block 99"] = {"backbone.blocks.99.norm1.weight": torch.ones(32)}
    changes["adapters of another rank"] = {
        "backbone.blocks.0.attn.qkv.lora_A": torch.ones(2, 32),
        "backbone.blocks.0.attn.qkv.lora_B": torch.ones(96, 3),
    }
    metas = {
        "heads 0": {"heads": 0},
        "heads 5": {"heads": 5},
        "heads -2": {"heads": -2},
        "heads 10^9": {"heads": 10**9},
        "num_blocks 99": {"num_blocks": 99},
        "num_blocks text": {"num_blocks": "two"},
        "num_blocks true": {"num_blocks": True},
        "patch 0": {"patch_size": 0},
        "patch 17": {"patch_size": 17},
        "image 0": {"image_size": [0, 0]},
        "image of one number": {"image_size": 32},
        "image of 10^9": {"image_size": [10**9, 10**9]},
        "grid": {"grid": [7, 7]},
        "known 99": {"num_known": 99},
        "known -1": {"num_known": -1},
        "queries 99": {"num_queries": 99},
        "head unknown": {"head": "nothing"},
        "head a list": {"head": ["linear"]},
        "head options": {"head_options": {"scale": "much"}},
        "backbone unknown": {"backbone": "resnet"},
        "eps": {"norm_eps": -1.0},
        "eps nan": {"norm_eps": NAN},
        "std 0": {"pixel_std": [0, 0, 0]},
        "std short": {"pixel_std": [1.0]},
        "mean nan": {"pixel_mean": [NAN] * 3},
        "two class names": {"class_names": ["a", "b"]},
        "numbers as class names": {"class_names": [1, 2, 3]},
        "hostile class names": {
            "class_names": ["../../escaped", "<script>alert(1)</script>", "\x00"]
        },
        "lora text": {"lora": "yes"},
        "lora of numbers": {"lora": {"backbone.blocks.0.attn.qkv": 5}},
        "statistics text": {"score_statistics": {"rba": "half"}},
        "statistics short": {"score_statistics": {"rba": [1.0]}},
        "memory text": {"memory": "yes"},
        "version 99": {"version": 99},
        "version text": {"version": "one"},
        "format unknown": {"format": "other"},
        "adapter true": {"adapter": True},
        "no entries": dict.fromkeys(good["meta"]),
    }
    contents = {
        name: {"model": {**state, **change}, "meta": good["meta"]}
        for name, change in changes.items()
    }
    for name, change in metas.items():
        contents[f"meta: {name}"] = {"model": state, "meta": {**good["meta"], **change}}
    for index, (name, content) in enumerate(contents.items()):
        path = broken / f"tensors_{index}.pth"
        torch.save(content, path)
        # Numbers of another kind are converted; what the metadata say beyond sizes may be ignored,
        # or go with the weights unread; training may begin from weights that lack something.
        # The number of queries is read from the tensor itself.
        kinds = name.startswith(("in torch.", "query.weight one row more")) or name == "infinite"
        fine = (0, 2) if kinds or name.startswith("meta") else (2,)
        argv = (str(path), "--to", "anoseg", "--output", f"{OUT}/x.pth")
        extra = name in ("a strange name", "a name of a number", "a very long name", "block 99")
        shown = (path.name, "MODEL.", "INPUT.")
        yield Case("convert_checkpoint", f"tensors: {name}", argv, shown, (0, 2) if extra else fine)
        yield Case("--eval-only", f"tensors: {name}", world.evaluate(weights=path), shown, fine)
        yield Case("demo", f"tensors: {name}", world.demo(weights=path), shown, fine)
        if name.startswith("meta") or index % 4 == 0:
            argv = world.train("MODEL.WEIGHTS", path)
            yield Case("train_net", f"tensors: {name}", argv, shown, (0, 2))
            yield Case("build_memory", f"tensors: {name}", world.memory(weights=path), shown, fine)
    whole = torch.load(world.lora, weights_only=True)
    for name, part in (("A", "lora_A"), ("B", "lora_B")):
        chosen = next(key for key in whole["model"] if key.endswith(part))
        path = broken / f"lora_{name}.pth"
        torch.save({**whole, "model": {**whole["model"], chosen: torch.ones(5, 7)}}, path)
        argv = (str(path), "--output", f"{OUT}/x.pth")
        yield Case("merge_lora", f"{part} of another shape", argv, (path.name, part))
        yield Case("demo", f"{part} of another shape", world.demo(weights=path), (path.name, part))


def safetensors_headers(world, broken):
    """Headers of safetensors files that lie."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    headers = {
        "offsets past the end": {"x": {**entry, "data_offsets": [0, 800]}},
        "offsets backwards": {"x": {**entry, "data_offsets": [8, 0]}},
        "offsets negative": {"x": {**entry, "data_offsets": [-8, 0]}},
        "offsets overlap": {"x": entry, "y": entry},
        "a hole": {"x": {**entry, "data_offsets": [4, 12]}},
        "shape negative": {"x": {**entry, "shape": [-2]}},
        "shape text": {"x": {**entry, "shape": "two"}},
        "shape overflows": {"x": {**entry, "shape": [2**62, 4]}},
        "unknown type": {"x": {**entry, "dtype": "F99"}},
        "type missing": {"x": {"shape": [2], "data_offsets": [0, 8]}},
        "an entry is a list": {"x": [1]},
        "metadata of numbers": {"__metadata__": {"a": 1}, "x": entry},
        "metadata text": {"__metadata__": "a", "x": entry},
        "a strange name": {"../../escaped": entry},
        "empty": {},
    }
    texts = {name: json.dumps(header).encode() for name, header in headers.items()}
    texts["deep"] = b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    texts["not UTF-8"] = b'{"\xff\xfe": 1}'
    texts["the same name twice"] = b'{"x": %b, "x": %b}' % ((json.dumps(entry).encode(),) * 2)
    for name, text in texts.items():
        path = broken / f"header_{name.replace(' ', '_')}.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
        argv = (str(path), "--to", "anoseg", "--output", f"{OUT}/x.pth")
        yield Case("convert_checkpoint", f"header: {name}", argv, path.name)
        yield Case("demo", f"header: {name}", world.demo(weights=path), path.name)


def hugging_face_folders(world, broken):
    """Folders as the Hub has them, with broken configs and indices."""
    tensor = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(tensor).encode()
    weights = len(text).to_bytes(8, "little") + text + b"\0" * 8
    index = "model.safetensors.index.json"
    folders = {
        "config is a list": {"config.json": b"[1]", "model.safetensors": weights},
        "config is cut": {"config.json": b'{"a": ', "model.safetensors": weights},
        "config is deep": {"config.json": b"[" * 100_000, "model.safetensors": weights},
        "config of text": {
            "config.json": b'{"hidden_size": "wide", "image_size": [], "id2label": 5}',
            "model.safetensors": weights,
        },
        "index is a list": {index: b"[1]"},
        "index is empty": {index: b"{}"},
        "index without shards": {index: b'{"weight_map": {}}'},
        "index climbs": {index: b'{"weight_map": {"x": "../../escaped.safetensors"}}'},
        "index is absolute": {index: b'{"weight_map": {"x": "/etc/passwd"}}'},
        "index of itself": {index: b'{"weight_map": {"x": "%b"}}' % index.encode()},
        "index of numbers": {index: b'{"weight_map": {"x": 5}}'},
        "shard is missing": {index: b'{"weight_map": {"x": "model-1.safetensors"}}'},
        "shard is empty": {
            index: b'{"weight_map": {"x": "model-1.safetensors"}}',
            "model-1.safetensors": b"",
        },
        "preprocessor is a list": {
            "config.json": b'{"model_type": "eomt"}',
            "preprocessor_config.json": b"[1]",
            "model.safetensors": weights,
        },
        "last_checkpoint climbs": {"last_checkpoint": b"../../escaped.pth"},
        "last_checkpoint is binary": {"last_checkpoint": b"\xff\xfe\x00"},
        "last_checkpoint is empty": {"last_checkpoint": b""},
        "last_checkpoint is itself": {"last_checkpoint": b"last_checkpoint"},
        "last_checkpoint is .": {"last_checkpoint": b"."},
    }
    for name, files in folders.items():
        folder = broken / f"hub_{name.replace(' ', '_')}"
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        argv = (str(folder), "--to", "anoseg", "--output", f"{OUT}/x.pth")
        yield Case("convert_checkpoint", f"folder: {name}", argv, folder.name)
        yield Case("demo", f"folder: {name}", world.demo(weights=folder), folder.name)
        yield Case("--eval-only", f"folder: {name}", world.evaluate(weights=folder), folder.name)


def _run_once(world, broken) -> Path:
    """A finished run of two steps, made by the command itself."""
    output = broken / "finished"
    argv = world.train("OUTPUT_DIR", output)
    # In a process of its own: what a run leaves in this one would reach every call.
    child = multiprocessing.get_context("fork").Process(target=_silently, args=(argv,))
    child.start()
    child.join()
    assert child.exitcode == 0, "the run that is to be damaged failed"
    return output


def _silently(argv) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.exit(train.main(list(argv)))


DAMAGES = {
    "empty": b"",
    "text": b"no such thing",
    "null": b"null",
    "list": b"[1, 2]",
    "numbers": b'{"a": 5}',
    "binary": bytes(range(256)),
    "cut": None,
    "folder": None,
    "pipe": None,
}


def _damage(path: Path, kind: str) -> None:
    content = path.read_bytes() if path.is_file() else b""
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(content[: len(content) // 2] if kind == "cut" else DAMAGES[kind])


def damaged_runs(world, broken):
    """Runs whose files were changed, and that are resumed, evaluated, exported, compared."""
    finished = _run_once(world, broken)
    for name in ("last_checkpoint", "model_final.pth", "metrics.json", "log.txt", "config.yaml"):
        for kind in DAMAGES:
            output = broken / f"damaged_{name.replace('.', '_')}_{kind}"
            shutil.copytree(finished, output)
            _damage(output / name, kind)
            # What a run only adds to may hold anything.
            log = name in ("metrics.json", "log.txt", "config.yaml")
            fine = (0, 2) if log else (2,)
            shown = (output.name, name)
            argv = ("--resume", *world.train("OUTPUT_DIR", output, "SOLVER.MAX_ITER", 3))
            yield Case("train_net", f"resumed, {name} is {kind}", argv, shown, fine)
            if not log:
                argv = ("--resume", *world.evaluate("OUTPUT_DIR", output))
                yield Case("--eval-only", f"resumed, {name} is {kind}", argv, shown, (0, 2))
                argv = world.demo(weights=output)
                yield Case("demo", f"a run whose {name} is {kind}", argv, shown, (0, 2))
    for name in (".lock", "inference", "report", "model_0000001.pth"):
        output = broken / f"blocked_{name.replace('.', '_')}"
        shutil.copytree(finished, output)
        place = output / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        place.mkdir() if name in (".lock", "model_0000001.pth") else place.write_text("in the way")
        argv = ("--overwrite", *world.train("OUTPUT_DIR", output))
        yield Case("train_net", f"{name} is in the way", argv, (output.name, name), (0, 2))
        argv = world.evaluate("OUTPUT_DIR", output)
        yield Case("--eval-only", f"{name} is in the way", argv, (output.name, name), (0, 2))
    for name, more in {
        "another width": ("MODEL.EOMT.WIDTH", 64),
        "another head": ("MODEL.HEAD.NAME", "arcface"),
        "adapters": ("MODEL.LORA.ENABLED", True),
        "fewer steps": ("SOLVER.MAX_ITER", 1),
        "other classes": ("MODEL.EOMT.NUM_CLASSES", 7),
    }.items():
        output = broken / f"changed_{name.replace(' ', '_')}"
        shutil.copytree(finished, output)
        argv = ("--resume", *world.train("OUTPUT_DIR", output, *more))
        fine = (0, 2) if name == "fewer steps" else (2,)
        shown = (output.name, *map(str, more))
        yield Case("train_net", f"resumed with {name}", argv, shown, fine)


def further_commands(world, broken):
    """Broken input of `submit`, `card` and `app`."""
    folder = broken / "tracks"
    images = folder / "dataset_AnomalyTrack/images"
    shutil.copytree(world.images, images)
    smiyc = ("smiyc", "--method", "mine", "--root", str(folder), "--output", OUT)
    weights = ("--weights", str(world.weights))
    empty = broken / "no_images"
    empty.mkdir()
    for argv, names in (
        ((), "smiyc"),
        (("nothing",), "nothing"),
        (("smiyc", *weights), "--method"),
        ((*smiyc, *weights, "--method", "../../escaped"), "escaped"),
        ((*smiyc, *weights, "--method", ""), "method"),
        ((*smiyc, *weights, "--track", "night"), "night"),
        ((*smiyc, *weights, "--split", "night"), "night"),
        ((*smiyc, *weights), ("frames", "images")),
        ((*smiyc, *weights, "--root", "nowhere"), "nowhere"),
        ((*smiyc, *weights, "--output", "/dev/null"), ("/dev/null", "frames")),
        (smiyc, ("--weights", "--maps")),
        ((*smiyc, *weights, "--maps", str(world.maps)), ("--weights", "--maps")),
        ((*smiyc, "--maps", "nowhere"), ("nowhere", "frames")),
        ((*smiyc, "--maps", str(world.maps), "--pattern", "{nothing}"), ("pattern", "frames")),
        ((*smiyc, "--weights", "nowhere.pth"), ("nowhere.pth", "frames")),
        (("fishyscapes", *weights, "--input", "nowhere", "--output", OUT), "nowhere"),
        (("fishyscapes", *weights, "--input", str(empty), "--output", OUT), "no_images"),
        (("fishyscapes", "--input", str(images), "--output", OUT), "--weights"),
        (
            ("fishyscapes", "--weights", "nowhere", "--input", str(images), "--output", OUT),
            "nowhere",
        ),
    ):
        yield Case("submit", " ".join(argv)[-60:], argv, names)
    garbled = broken / "garbled"
    for kind in ("images", "masks"):
        (garbled / kind).mkdir(parents=True)
        (garbled / kind / "0.png").write_bytes(b"not an image")
    one = str(folder)
    for argv, names in (
        ((), "DIR"),
        (("nowhere",), "nowhere"),
        (("",), ("folder", "exist", "DIR")),
        (("/dev/zero",), "/dev/zero"),
        ((str(world.weights),), world.weights.name),
        ((str(empty), "--output", f"{OUT}/a.yaml"), "no_images"),
        ((one, "--output", f"{OUT}/a.yaml"), ("mask", "label")),
        ((str(garbled), "--output", f"{OUT}/a.yaml"), "0.png"),
        ((str(world.folder / "data"), "--kind", "both"), "both"),
        ((str(world.folder / "data"), "--sample", "-1", "--output", f"{OUT}/a.yaml"), "--sample"),
        ((str(world.folder / "data"), "--sample", "x"), "--sample"),
        (
            (str(world.folder / "data"), "--name", "../escaped", "--output", f"{OUT}/a.yaml"),
            "escaped",
        ),
        ((str(world.folder / "data"), "--output", "/dev/null"), "/dev/null"),
        ((str(world.folder / "data"), "--output", str(world.card)), world.card.name),
    ):
        yield Case("card", " ".join(argv)[-60:], argv, names)
    # gradio, which is optional, is asked for before the model is read.
    for argv, names in (
        ((), "--weights"),
        ((*weights, "--port", "0"), "--port"),
        ((*weights, "--port", "99999"), "--port"),
        ((*weights, "--port", "x"), "--port"),
        ((*weights, "--max-frames", "0"), "--max-frames"),
        (("--weights", "nowhere.pth"), ("nowhere.pth", "gradio")),
        ((*weights, "--results", "nowhere"), ("nowhere", "gradio")),
    ):
        yield Case("app", " ".join(argv)[-60:], argv, names)


def damaged_reports(world, broken):
    """Every file that an evaluation leaves for the report, damaged in turn."""
    finished = broken / "finished"
    files = [p.relative_to(finished) for p in sorted(finished.rglob("*")) if p.is_file()]
    for file in files:
        if file.parts[0] not in ("inference", "report") or file.suffix in (".html", ".md", ".tex"):
            continue
        for kind in ("empty", "text", "null", "list", "numbers", "cut", "folder", "pipe"):
            output = broken / f"report_{str(file).replace('/', '_').replace('.', '_')}_{kind}"
            shutil.copytree(finished, output)
            _damage(output / file, kind)
            shown = (output.name, file.name)
            argv = (str(output), "--output", OUT)
            # Pictures and curves are extras: a page without them is right.
            yield Case("compare", f"{file} is {kind}", argv, shown, (0, 2))
            argv = ("--run", f"arcface={output}", "--output", OUT)
            yield Case("plot_results", f"{file} is {kind}", argv, shown, (0, 2))
            if kind in ("null", "cut", "folder"):
                argv = world.evaluate("OUTPUT_DIR", output)
                yield Case("--eval-only", f"{file} is {kind}", argv, shown, (0, 2))


SMALL = ((1, 1), (2, 8), (8, 2), (1, 300), (300, 1), (3, 3))


def small_images(world, broken):
    """Images of a few pixels in every command: done, or named."""
    for height, width in SMALL:
        folder = broken / f"small_{height}x{width}"
        rng = np.random.default_rng(0)
        for index in range(4):
            for part, shape, top in (
                ("images", (height, width, 3), 256),
                ("labels", (height, width), 2),
            ):
                path = folder / part / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, top, shape, dtype=np.uint8)).save(path)
            path = folder / "maps" / f"{index}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, rng.random((height, width), np.float32))
        closed, anomaly = folder / "card.yaml", folder / "anomaly.yaml"
        closed.write_text(runs.CARD.format(name="faults", root=folder))
        text = world.anomaly_card.read_text().replace(str(world.folder), str(folder))
        text = text.replace("data/images", "images").replace("anomaly/labels", "labels")
        anomaly.write_text(text)
        cards = ("DATASETS.CARDS", [str(closed), str(anomaly)])
        size = f"{height}x{width}"
        shown = (folder.name, "elongated", "0.png", "1.png")
        photo = folder / "images/0.png"
        calls = {
            "train_net": world.train(*cards),
            "--eval-only": world.evaluate(*cards),
            "demo": world.demo(inputs=[folder / "images"]),
            "export_model": world.export("--check-image", photo, output=f"{OUT}/m.pt2"),
            "build_memory": world.memory(images=folder / "images"),
            "evaluate_maps": world.evaluate_maps(maps=folder / "maps", card=anomaly),
            "check": ("--card", str(closed), "faults", "--preview", OUT),
        }
        for door, argv in calls.items():
            yield Case(door, f"everything is {size}", argv, shown, (0, 1, 2))
        scenes = folder / "scenes"
        shutil.copytree(world.scenes, scenes)
        for path in scenes.rglob("*.png"):
            shape = (height, width, 3) if "leftImg" in path.name else (height, width)
            Image.fromarray(np.full(shape, 7, np.uint8)).save(path)
        argv = world.paste(scenes=scenes)
        yield Case("prepare_cut_paste", f"scenes of {size}", argv, ("scene", "place"), (0, 1))
        for option in ("--cutouts", "--textures"):
            argv = world.paste(option, folder / "images")
            yield Case("prepare_cut_paste", f"{option} of {size}", argv, "0.png", (0, 1, 2))


def label_kinds(world, broken):
    """Labels of scenes and sets in every kind of pixel that a png or tiff can hold."""
    kinds = {
        "16 bits": Image.fromarray(np.full((64, 96), 60_000, np.uint16)),
        "colours": Image.fromarray(np.full((64, 96, 3), 7, np.uint8)),
        "transparency": Image.fromarray(np.full((64, 96, 4), 7, np.uint8)),
        "one bit": Image.fromarray(np.ones((64, 96), bool)),
        "grey and alpha": Image.fromarray(np.full((64, 96), 7, np.uint8)).convert("LA"),
        "palette": Image.fromarray(np.full((64, 96), 7, np.uint8)).convert("P"),
        "other size": Image.fromarray(np.full((32, 32), 7, np.uint8)),
        "unknown value": Image.fromarray(np.full((64, 96), 200, np.uint8)),
    }
    for name, image in kinds.items():
        scenes = broken / f"scenes_{name.replace(' ', '_')}"
        shutil.copytree(world.scenes, scenes)
        first = sorted(scenes.rglob("*_labelIds.png"))[0]
        image.save(first)
        argv = world.paste(scenes=scenes)
        fine = (1, 2) if name in ("other size", "16 bits", "unknown value") else (0, 1, 2)
        yield Case("prepare_cut_paste", f"labels of {name}", argv, first.name[:12], fine)
    floats = broken / "floats.tiff"
    Image.fromarray(np.full((32, 32), 0.5, np.float32)).save(floats)
    for kind, door in (("closed", "train_net"), ("anomaly", "--eval-only")):
        card = corpus._card_with(world, broken, f"floats_{kind}", label=floats, kind=kind)
        more = ("DATASETS.CARDS", [str(card)])
        argv = (
            world.train(*more, "DATASETS.TEST", "()") if kind == "closed" else world.evaluate(*more)
        )
        yield Case(door, "label of fractions", argv, "0.png")
        yield Case("check", f"label of fractions, {kind}", ("--card", str(card)), "0.png", (1, 2))


def images_of_other_kinds(world, broken):
    """Formats that were not meant, and those whose header lies."""
    good = Image.open(world.images / "0.png")
    files = {}
    for kind in ("eps", "pcx", "tga", "gif", "ppm", "ico"):
        files[f"{kind}.png"] = broken / f"image_{kind}.png"
        good.save(files[f"{kind}.png"], kind)
    for name, content in {
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "huge.bmp": b"BM"
        + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24)
        + b"\0" * 24,
        "negative.bmp": b"BM"
        + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, -5, -5, 1, 24)
        + b"\0" * 24,
        "huge.ppm": b"P6 1000000000 1000000000 255\n",
        "huge.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0",
        "cut.jpg": None,
        "cut.webp": None,
        "cut.tif": None,
    }.items():
        path = broken / f"image_{name}"
        if content is None:
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
                path
            )
            content = path.read_bytes()[:-200]
        path.write_bytes(content)
        files[name] = path
    cmyk = broken / "image_cmyk.jpg"
    good.convert("CMYK").save(cmyk)
    fine = {
        "gif.png": (0,),
        "ppm.png": (0,),
        "cmyk.jpg": (0,),
        "cut.webp": (1, 0),
        "cut.tif": (1, 0),
    }
    for name, path in {**files, "cmyk.jpg": cmyk}.items():
        argv = world.demo(inputs=[world.images / "0.png", path])
        yield Case("demo", f"image {name}", argv, path.name, fine.get(name, (1,)))
    for name in ("huge.bmp", "eps.png", "cut.jpg"):
        folder = broken / f"kinds_{name.replace('.', '_')}"
        folder.mkdir()
        shutil.copy(files[name], folder)
        shutil.copy(world.images / "0.png", folder / "good.png")
        for option in ("--cutouts", "--textures"):
            argv = world.paste(option, folder)
            yield Case("prepare_cut_paste", f"{option} {name}", argv, files[name].name, (0, 1, 2))


def more_maps(world, broken):
    """Score maps in further ways of being wrong."""
    good = (world.maps / "0.npy").read_bytes()
    cases = {
        "version 9": good[:6] + b"\x09" + good[7:],
        "header of 4 GB": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{}",
        "bool": _npy(np.ones((32, 32), bool)),
        "half": _npy(np.ones((32, 32), np.float16)),
        "int64": _npy(np.ones((32, 32), np.int64)),
        "big endian": _npy(np.ones((32, 32), ">f4")),
        "fortran": _npy(np.asfortranarray(np.random.rand(32, 32).astype(np.float32))),
        "1e300": _npy(np.full((32, 32), 1e300)),
        "one nan": _npy(np.where(np.eye(32) > 0, NAN, 1.0)),
        "vector": _npy(np.ones(32, np.float32)),
        "leading one": _npy(np.ones((1, 32, 32), np.float32)),
        "transposed size": _npy(np.ones((32, 16), np.float32)),
    }
    for name, content in cases.items():
        folder = broken / f"more_maps_{name.replace(' ', '_')}"
        shutil.copytree(world.maps, folder)
        (folder / "0.npy").write_bytes(content)
        # Other kinds of numbers are read; of a constant map nothing is wrong but the figures.
        fine = (0,) if name in ("half", "int64", "big endian", "fortran") else (2,)
        fine = (0, 2) if name in ("bool", "1e300", "leading one") else fine
        yield Case("evaluate_maps", f"map: {name}", world.evaluate_maps(maps=folder), "0.npy", fine)
    folder = broken / "maps_twice"
    shutil.copytree(world.maps, folder)
    Image.fromarray(np.ones((32, 32), np.uint16)).save(folder / "0.png")
    yield Case("evaluate_maps", "two maps of one image", world.evaluate_maps(maps=folder), "0.")
    folder = broken / "maps_extra"
    shutil.copytree(world.maps, folder)
    shutil.copy(folder / "0.npy", folder / "stranger.npy")
    argv = world.evaluate_maps(maps=folder)
    yield Case("evaluate_maps", "a map of no image", argv, "stranger", (2,))
    output = broken / "maps_output"
    for name in ("checked.json", "progress.npz"):
        for kind in ("text", "list", "numbers", "folder", "pipe"):
            place = output / f"{name}_{kind}/inference/faults_anomaly/{name}"
            place.parent.mkdir(parents=True)
            _damage(place, kind)
            argv = world.evaluate_maps(output=output / f"{name}_{kind}")
            yield Case("evaluate_maps", f"{name} is {kind}", argv, name, (0, 2))


def _npy(array) -> bytes:
    stream = corpus.io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def more_annotations(world, broken):
    """COCO files in further ways of being wrong."""
    good = json.loads(world.coco.read_text())
    annotation, image = good["annotations"][0], good["images"][0]
    lists = {
        "ids of 10^30": {"annotations": [{**annotation, "id": 10**30}]},
        "ids of text": {"annotations": [{**annotation, "id": "a"}]},
        "ids that are true": {"annotations": [{**annotation, "id": True}]},
        "the same id twice": {"annotations": [annotation, annotation]},
        "the same image twice": {"images": [image, image]},
        "crowd of text": {"annotations": [{**annotation, "iscrowd": "yes"}]},
        "box is null": {"annotations": [{**annotation, "bbox": None}]},
        "box of text": {"annotations": [{**annotation, "bbox": "abcd"}]},
        "box not finite": {"annotations": [{**annotation, "bbox": [NAN, NAN, INF, 1]}]},
        "box negative": {"annotations": [{**annotation, "bbox": [0, 0, -50, -50]}]},
        "area negative": {"annotations": [{**annotation, "area": -5}]},
        "area infinite": {"annotations": [{**annotation, "area": INF}]},
        "size of a fraction": {"images": [{**image, "width": 80.5}]},
        "size of 0": {"images": [{**image, "width": 0, "height": 0}]},
        "size of another photograph": {"images": [{**image, "width": 800, "height": 600}]},
        "a name of a folder": {"images": [{**image, "file_name": "."}]},
        "a name that is empty": {"images": [{**image, "file_name": ""}]},
        "a name not UTF-8": {"images": [{**image, "file_name": "\udcff.png"}]},
        "a name of 5000": {"images": [{**image, "file_name": "x" * 5000}]},
        "a url": {"images": [{**image, "file_name": "http://localhost:1/a.png"}]},
        "a category climbs": {"categories": [{"id": 17, "name": "../../escaped"}]},
        "a category twice": {"categories": good["categories"] * 2},
        "no categories": {"categories": []},
        "a million corners": {
            "annotations": [{**annotation, "segmentation": [[10.0, 60.0] * 500_000]}]
        },
        "outlines in outlines": {
            "annotations": [{**annotation, "segmentation": [[[1, 2], [3, 4]]]}]
        },
        "an empty outline": {"annotations": [{**annotation, "segmentation": []}]},
        "runs too few": {"annotations": [_runs(annotation, [80, 80], [5])]},
        "runs of text": {"annotations": [_runs(annotation, [80, 80], ["a"])]},
        "runs of another size": {"annotations": [_runs(annotation, [8, 8], [10, 54])]},
        "runs without size": {"annotations": [{**annotation, "segmentation": {"counts": [1]}}]},
        "runs of size text": {"annotations": [_runs(annotation, "big", [1])]},
        "runs not ASCII": {"annotations": [_runs(annotation, [80, 80], "\xff\xfe")]},
        "runs of 10^6 letters": {"annotations": [_runs(annotation, [80, 80], "1" * 1_000_000)]},
    }
    for name, change in lists.items():
        path = broken / f"more_coco_{name.replace(' ', '_').replace('^', '')}.json"
        path.write_text(json.dumps({**copy.deepcopy(good), **change}))
        # The box and the flag of a single object are not read; ids only tell objects apart.
        shown = (path.name, "0.png", "annotation 1", "object")
        argv = world.paste(coco=path)
        yield Case("prepare_cut_paste", f"annotations: {name}", argv, shown, (0, 1, 2))


def _runs(annotation: dict, size, counts) -> dict:
    return {**annotation, "segmentation": {"size": size, "counts": counts}}


def videos(world, broken):
    """Videos that are cut, empty, playlists, or other files."""
    whole = broken / "whole.avi"
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter_fourcc(*"MJPG"), 5, (32, 32))
    for index in range(6):
        writer.write(np.full((32, 32, 3), 40 * index, np.uint8))
    writer.release()
    content = whole.read_bytes()
    files = {
        "cut.avi": content[: len(content) // 2],
        "header.avi": content[:200],
        "huge.avi": content.replace(struct.pack("<ii", 32, 32), struct.pack("<ii", 2**30, 2**30)),
        "empty.mp4": b"",
        "playlist.mp4": f"#EXTM3U\n#EXTINF:1,\n{whole}\n#EXT-X-ENDLIST\n".encode(),
        "concat.mkv": f"ffconcat version 1.0\nfile {whole}\n".encode(),
        "image.mp4": (world.images / "0.png").read_bytes(),
        "zeros.mp4": b"\0" * 100_000,
    }
    good = world.images / "0.png"
    for name, data in files.items():
        path = broken / name
        path.write_bytes(data)
        # The frames before the damage are kept.
        fine = (0, 1) if name in ("cut.avi", "huge.avi", "header.avi") else (1,)
        yield Case("demo", f"video {name}", world.demo(inputs=[good, path]), name, fine)
    folder = broken / "folder.mp4"
    folder.mkdir()
    yield Case("demo", "video is a folder", world.demo(inputs=[good, folder]), "folder.mp4", (1,))


STRANGE = (
    "with space",
    "üñí-日本",
    "-dash",
    "quote'\"",
    "new\nline",
    "percent%s",
    "{brace}",
    "$HOME",
    "..x",
)


def strange_names(world, broken):
    """Folders and files whose names are strange, but names: all of it works."""
    for index, name in enumerate((*STRANGE, corpus.NOT_UTF8)):
        folder = broken / f"names_{index}" / name
        folder.mkdir(parents=True)
        photo = folder / f"{name}.png"
        photo.write_bytes((world.images / "0.png").read_bytes())
        output = f"{OUT}/{name}"
        yield Case(
            "demo", f"name {name!r}", world.demo("--output", output, inputs=[photo]), "", (0,)
        )
        argv = world.paste(output=output)
        yield Case("prepare_cut_paste", f"output {name!r}", argv, "output", (0, 2))
        argv = world.evaluate_maps(output=output)
        yield Case("evaluate_maps", f"output {name!r}", argv, "output", (0, 2))
        argv = (str(world.results), "--output", output)
        yield Case("compare", f"output {name!r}", argv, "output", (0, 2))
        argv = (str(world.weights), "--to", "anoseg", "--output", f"{output}/x.pth")
        yield Case("convert_checkpoint", f"output {name!r}", argv, "output", (0, 2))
        argv = world.train("OUTPUT_DIR", output)
        fine = (2,) if name == corpus.NOT_UTF8 else (0,)
        yield Case("train_net", f"OUTPUT_DIR {name!r}", argv, "OUTPUT_DIR", fine)
        maps = folder / "maps"
        shutil.copytree(world.maps, maps)
        argv = world.evaluate_maps("--name", "m", maps=maps)
        yield Case("evaluate_maps", f"maps in {name!r}", argv, "", (0,))


def occupied_outputs(world, broken):
    """Outputs that are folders, pipes or links where a file is written."""
    for kind in ("folder", "pipe", "circle", "dangling"):
        for door, name, argv in (
            ("export_model", "x.onnx", lambda p: world.export("--overwrite", output=p)),
            ("export_model", "x.pt2", lambda p: world.export("--overwrite", output=p)),
            (
                "convert_checkpoint",
                "x.pth",
                lambda p: (str(world.weights), "--to", "anoseg", "--overwrite", "--output", str(p)),
            ),
            (
                "convert_checkpoint",
                "x.safetensors",
                lambda p: (str(world.weights), "--to", "anoseg", "--overwrite", "--output", str(p)),
            ),
            ("merge_lora", "x.pth", lambda p: (str(world.lora), "--overwrite", "--output", str(p))),
            ("build_memory", "x.pth", lambda p: world.memory("--overwrite", "--output", p)),
            ("check", "x.json", lambda p: ("--card", str(world.card), "faults", "--json", str(p))),
        ):
            place = (
                broken / f"occupied_{kind}_{door.replace('-', '')}_{name.replace('.', '_')}" / name
            )
            place.parent.mkdir()
            if kind == "folder":
                place.mkdir()
                (place / "kept.txt").write_text("kept")
            elif kind == "pipe":
                os.mkfifo(place)
            else:
                place.symlink_to(place.name if kind == "circle" else place.parent / "nothing")
            # A link is replaced by the file, as every whole write does.
            fine = (0, 2) if kind in ("circle", "dangling") else (2,)
            yield Case(door, f"output {name} is a {kind}", argv(place), name, fine)
    for name in ("results.json", "index.html", "results.md"):
        folder = broken / f"occupied_compare_{name.replace('.', '_')}"
        (folder / name).mkdir(parents=True)
        argv = (str(world.results), "--output", str(folder))
        yield Case("compare", f"{name} is a folder", argv, name)
    folder = broken / "occupied_hub"
    (folder / "config.json").mkdir(parents=True)
    argv = (str(world.weights), "--to", "huggingface", "--overwrite", "--output", str(folder))
    yield Case("convert_checkpoint", "config.json is a folder", argv, "config.json")


def more_options(world, broken):
    """Numbers that are none, or absurd, for every option that takes one."""
    numbers = {
        "demo": (
            world.demo,
            ("--webcam", "--temporal", "--max-frames", "--tpr", "--min-size", "--threshold"),
        ),
        "export_model": (world.export, ("--batch", "--tolerance")),
        "build_memory": (world.memory, ("--rows", "--seed")),
        "prepare_cut_paste": (
            world.paste,
            (
                "--min-area",
                "--seed",
                "--workers",
                "--shard",
                "--compress-level",
                "--preview",
                "--ratio",
            )
            + ("--max-fraction", "--min-side", "--perspective-side", "--perspective-min-side")
            + ("--rim", "--max-redraws", "--parts"),
        ),
    }
    for door, (call, given) in numbers.items():
        for option in given:
            names = (option, option.strip("-").replace("-", "_"), "no object", "preview", "camera")
            for value in ("", "x", "nan", "inf", "-inf", "-1", "1e999", "9" * 40, "0x10", "１"):
                if (option, value) == ("--threshold", "-1"):
                    continue
                # "１" is a digit of another script, which int() reads.
                fine = (0, 1, 2) if value in ("１", "9" * 40) else (2,)
                yield Case(door, f"{option} {value!r}", call(f"{option}={value}"), names, fine)
    pairs = {
        "export_model": (world.export, ("--image-size",)),
        "prepare_cut_paste": (
            world.paste,
            ("--count", "--controls", "--closed-set", "--scale", "--feather"),
        ),
        "demo": (world.demo, ("--range",)),
    }
    for door, (call, given) in pairs.items():
        for option in given:
            named = (option, option[2:].rstrip("s").replace("-", "_"))
            for values in (("x", "y"), ("nan", "nan"), ("-1", "-1"), ("1e999", "1"), ("5", "1")):
                if option in ("--feather", "--image-size", "--range") and values in (
                    ("5", "1"),
                    ("-1", "-1"),
                ):
                    continue
                yield Case(door, f"{option} {values}", call(option, *values), named)
    check = ("--card", str(world.card), "faults")
    for option in ("--sample", "--workers", "--preview-count"):
        for value in ("", "x", "-1", "1.5", "9" * 5000):
            fine = (0, 2) if option == "--sample" and value.startswith("9") else (2,)
            yield Case(
                "check", f"{option} {value[:9]!r}", (*check, f"{option}={value}"), option, fine
            )
    for option in ("--num-gpus", "--num-machines", "--machine-rank"):
        for value in ("", "x", "-1", "1.5", "1000000000"):
            argv = (f"{option}={value}", *world.train())
            yield Case("train_net", f"{option} {value!r}", argv, (option, "--num-machines"))
    for door, argv in {
        "evaluate_maps": world.evaluate_maps("--name", ""),
        "compare": ("", "--output", OUT),
        "plot_results": ("--run", "", "--output", OUT),
        "check": ("--card", ""),
        "recipes": ("",),
        "convert_checkpoint": ("", "--to", "anoseg", "--output", f"{OUT}/x.pth"),
        "export_model": world.export(weights=" "),
        "demo": world.demo(weights=" "),
    }.items():
        yield Case(
            door,
            "an empty argument",
            argv,
            ("exist", "name", "path", "recipe", "card", "no "),
            (0, 2),
        )
