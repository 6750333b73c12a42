"""What the code computes and writes is what is on record in `tests/assets/golden/`.

A change that should not alter outputs proves it here. One that should shows what it alters in the
diff of the records, which this command writes again:

    python tests/test_golden_outputs.py --write
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import golden
import numpy as np
import pytest
import small_sets
import torch
import yaml
from PIL import Image
from tiny_models import tiny_batch, tiny_cfg

from anoseg_d2 import AnomalyPredictor, EoMT, Trainer, cli
from anoseg_d2.checkpoint import AnosegCheckpointer, read_checkpoint
from anoseg_d2.config import load_config
from anoseg_d2.data.builtin import register_cards
from anoseg_d2.data.cut_paste import CutPasteOptions, PasteObject, paste_objects

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(
    path.relative_to(ROOT / "configs").as_posix()
    for path in (ROOT / "configs").rglob("*.yaml")
    if "recipe" not in path.name  # stages and their order, for experiments/run.py
)
# Keys that the record has and that went with their feature; who removes a key lists it here.
REMOVED_KEYS = frozenset(
    {
        *("MODEL.CRITERION.ORDER_WEIGHT", "MODEL.CRITERION.ORDER_MARGINS"),
        "TEST.ANOMALY.MASK_POOLING",
        *("INPUT.CUT_PASTE.STUFF_JSON", "INPUT.CUT_PASTE.BLENDING", "INPUT.CUT_PASTE.BLUR"),
        *("INPUT.CUT_PASTE.NOISE", "INPUT.CUT_PASTE.COLOR_JITTER"),
        *("TEST.ANOMALY.POSTPROCESS", "TEST.ANOMALY.TEMPERATURE", "TEST.SEM_SEG_MAPS"),
    }
)
STATISTICS = {
    **{"rba": [-1.2, 0.3], "anomaly": [0.1, 0.2], "msp": [0.4, 0.1]},
    **{"ratio": [0.2, 0.1], "max_logit": [-2.0, 1.5]},
}
NAMES = ["road", "car", "sky"]
ARCFACE = ("MODEL.HEAD.NAME", "arcface", "MODEL.EOMT.ANOMALY_CLASS", True)
RATIO = ("MODEL.RATIO.ENABLED", True)
LORA = ("MODEL.LORA.ENABLED", True, "MODEL.LORA.RANK", 2)
# Name of a checkpoint to what its model differs in from `tiny_cfg`'s.
MODELS = {
    "linear": (),
    "linear_anomaly": ("MODEL.EOMT.ANOMALY_CLASS", True),
    "logit_norm": ("MODEL.HEAD.NAME", "logit_norm", "MODEL.EOMT.ANOMALY_CLASS", True),
    "logit_norm_tau": (
        *("MODEL.HEAD.NAME", "logit_norm", "MODEL.HEAD.LOGIT_NORM.TAU", 0.5),
        *("MODEL.HEAD.LOGIT_NORM.INFERENCE", "raw"),
    ),
    "arcface": (*ARCFACE, "MODEL.HEAD.ARCFACE.SCALE", 12.0),
    "arcface_learned_scale": (*ARCFACE, "MODEL.HEAD.ARCFACE.LEARN_SCALE", True),
    "arcface_lora": (*ARCFACE, *LORA),
    "arcface_ratio": (*ARCFACE, *RATIO),
    "dinov3": ("MODEL.EOMT.BACKBONE", "dinov3"),
    "wide": (*ARCFACE, *RATIO, "INPUT.CROP_SIZE", (32, 64)),
}


CARD = """
name: {name}
root: "{root}"
images: "images/{{id}}.png"
labels: "labels/{{id}}.png"
classes: [road, car, sky]
label_values: {{0: road, 1: car, 2: sky}}
void: [255]
"""


def run(*arguments) -> None:
    """Run `anoseg` in this process, as its users do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["anoseg"])  # a run notes its command there
        assert cli.main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folder of the saved `MODELS`, and of `arcface_ratio` with a memory as `memory.pth`."""
    folder = tmp_path_factory.mktemp("golden")
    for name, overrides in MODELS.items():
        model = golden.fill(EoMT(tiny_cfg(*overrides))).eval()
        AnosegCheckpointer(model, str(folder)).save(name)
        path = folder / f"{name}.pth"
        payload = torch.load(path, weights_only=True)
        payload["meta"] |= {"class_names": NAMES, "score_statistics": STATISTICS}
        torch.save(payload, path)
    photos = folder / "photos"
    photos.mkdir()
    for index in range(3):
        image = Image.fromarray(golden.photograph(40, 64, seed=index))
        image.save(photos / f"{index}.png")
    weights, output = folder / "arcface_ratio.pth", folder / "memory.pth"
    run("memory", weights, "--images", photos, "--output", output, "--rows", 12, "--blocks", 1)
    return folder


def write_closed_set(folder: Path, name: str) -> Path:
    """Write four photographs with labels of three classes, and return their card."""
    for part in ("images", "labels"):
        (folder / "closed" / part).mkdir(parents=True)
    for index in range(4):
        label = (np.add.outer(np.arange(40) // 14, np.arange(56) // 20) + index) % 3
        label[:, -4:] = 255
        image = golden.photograph(40, 56, index)
        Image.fromarray(image).save(folder / "closed" / "images" / f"{index}.png")
        Image.fromarray(label.astype(np.uint8)).save(folder / "closed" / "labels" / f"{index}.png")
    card = folder / "card.yaml"
    card.write_text(CARD.format(name=name, root=folder / "closed"))
    return card


# ---- inference ------------------------------------------------------------------------------


# Name: checkpoint, size (H, W) of the image, config overrides.
INFERENCE = {
    "one window": ("memory", (32, 32), ()),
    "windows along the width": ("memory", (40, 90), ()),
    "windows along the height": ("memory", (97, 40), ()),
    "an image smaller than the window": ("memory", (20, 24), ()),
    "windows that are not square": ("wide", (60, 50), ()),
    "overlap": ("memory", (40, 90), ("TEST.WINDOW_OVERLAP", 0.5)),
    "flip": ("memory", (40, 90), ("TEST.FLIP", True)),
    "scales": ("memory", (40, 50), ("TEST.SCALES", (1.0, 1.5))),
    "scales, flip and overlap": (
        *("memory", (50, 90)),
        ("TEST.SCALES", (1.0, 2.0), "TEST.FLIP", True, "TEST.WINDOW_OVERLAP", 0.4),
    ),
    "guided filter": ("memory", (60, 90), ("TEST.ANOMALY.GUIDED_FILTER", 0.5)),
    "guided filter, scales": (
        *("memory", (60, 90)),
        ("TEST.ANOMALY.GUIDED_FILTER", 1.0, "TEST.SCALES", (1.0, 2.0)),
    ),
    "every query": ("memory", (40, 50), ("TEST.QUERY_TOLERANCE", 0.0)),
    "few queries": ("memory", (40, 50), ("TEST.QUERY_TOLERANCE", 0.05)),
    "one window at a time": ("memory", (40, 90), ("INPUT.WINDOW_BATCH", 1)),
    "ensembles": (
        *("memory", (40, 50)),
        ("TEST.ANOMALY.SCORES", ("rba+anomaly", "msp+ratio+memory", "rba")),
    ),
    "linear": ("linear", (40, 50), ()),
    "linear with the anomaly class": ("linear_anomaly", (40, 50), ()),
    "LogitNorm": ("logit_norm", (40, 50), ()),
    "LogitNorm, raw": ("logit_norm_tau", (40, 50), ()),
    "ArcFace": ("arcface", (40, 50), ()),
    "ArcFace, learned scale": ("arcface_learned_scale", (40, 50), ()),
    "LoRA": ("arcface_lora", (40, 50), ()),
    "DINOv3": ("dinov3", (40, 50), ()),
}


def test_predictions_are_those_on_record(checkpoints):
    found = {}
    for name, (checkpoint, size, overrides) in INFERENCE.items():
        options = ["MODEL.DEVICE", "cpu", *overrides]
        predictor = AnomalyPredictor.from_pretrained(
            str(checkpoints / f"{checkpoint}.pth"), options
        )
        result = predictor(golden.photograph(*size)[..., ::-1])
        rows, columns = (np.linspace(0, n - 1, 6).astype(int) for n in size)
        found[name] = {
            "sem_seg": result["sem_seg"][np.ix_(rows, columns)].tolist(),
            "confidence": golden.figures(result["confidence"]),
            "scores": {k: golden.figures(v) for k, v in result["scores"].items()},
        }
    classes = [{value for row in case["sem_seg"] for value in row} for case in found.values()]
    assert sum(len(values) > 1 for values in classes) > len(classes) / 2
    golden.check("inference", found)


def test_the_models_own_call_and_its_requests_are_those_on_record(checkpoints):
    cfg = tiny_cfg(*MODELS["wide"], "MODEL.WEIGHTS", str(checkpoints / "wide.pth"))
    model = AnomalyPredictor(cfg).model
    samples = [
        {
            "image": torch.from_numpy(golden.photograph(*size, seed).transpose(2, 0, 1).copy()),
            **more,
        }
        for seed, (size, more) in enumerate(
            [((40, 50), {}), ((60, 50), {"height": 31, "width": 77})]
        )
    ]
    image = torch.from_numpy(golden.photograph(32, 64).transpose(2, 0, 1).copy())[None].float()
    everything = model(samples)
    asked = model(samples, score_names=["odds", "msp"])
    found = {
        "all": [{k: golden.figures(v) for k, v in r["scores"].items()} for r in everything],
        "asked": [{k: golden.figures(v) for k, v in r["scores"].items()} for r in asked],
        "sem_seg": [r["sem_seg"][::8, ::8].tolist() for r in everything],
        "layers": [
            [golden.figures(part.detach()) for part in layer]
            for layer in model.predict_masks(image)
        ],
    }
    golden.check("model", found)


# ---- training -------------------------------------------------------------------------------


TRAINING = {
    "recompute none": ("MODEL.EOMT.RECOMPUTE", "none"),
    "recompute heads": ("MODEL.EOMT.RECOMPUTE", "heads"),
    "recompute all": ("MODEL.EOMT.RECOMPUTE", "all"),
    "no masked attention": ("MODEL.EOMT.MASKED_ATTENTION", False),
    "drawn points": ("MODEL.CRITERION.MATCH_POINTS", 50, "MODEL.CRITERION.LOSS_POINTS", 60),
    "void excluded": (*ARCFACE, "MODEL.CRITERION.VOID", "exclude"),
    "outlier weight": (*ARCFACE, "MODEL.CRITERION.OUTLIER_WEIGHT", 1.0),
    "LogitNorm": ("MODEL.HEAD.NAME", "logit_norm"),
    "ratio": (*ARCFACE, *RATIO),
    "ratio, heads stored": (*ARCFACE, *RATIO, "MODEL.EOMT.RECOMPUTE", "none"),
    "ratio alone": (*ARCFACE, "MODEL.RATIO.ALONE", True),
    "LoRA": (*ARCFACE, *LORA, "MODEL.LORA.DROPOUT", 0.0),
}


def test_losses_and_gradients_are_those_on_record():
    found = {}
    for name, overrides in TRAINING.items():
        model = golden.fill(EoMT(tiny_cfg(*overrides))).train()
        model.set_progress(0.3)
        torch.manual_seed(1)
        losses = model(tiny_batch(num_classes=3 + ("arcface" in overrides)))
        sum(losses.values()).backward()
        norms: dict[str, float] = {}
        for parameter_name, parameter in model.named_parameters():
            if parameter.grad is not None:
                part = ".".join(parameter_name.split(".")[:3])
                norms[part] = norms.get(part, 0.0) + parameter.grad.double().square().sum().item()
        found[name] = {
            "losses": {key: value.item() for key, value in losses.items()},
            "squared gradient norms": norms,
        }
    golden.check("training", found)


# ---- export ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_exported_graph_is_the_one_on_record(checkpoints, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    output = tmp_path / "model.onnx"
    scores = "rba,anomaly,ratio,odds,memory,rba+anomaly"
    options = ["--scores", scores, "--confidence", "--image-size", 40, 60]
    run("export", checkpoints / "memory.pth", "--output", output, *options)
    session = runtime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    image = golden.photograph(40, 60)
    (given,) = session.get_inputs()
    layout = image[None] if given.shape[-1] == 3 else image.transpose(2, 0, 1)[None]
    values = session.run(None, {given.name: layout})
    names = [value.name for value in session.get_outputs()]
    found = {
        "inputs": [[v.name, v.type, list(v.shape)] for v in session.get_inputs()],
        "outputs": [[v.name, v.type, list(v.shape)] for v in session.get_outputs()],
        "metadata": {k: v for k, v in sorted(about.items()) if not volatile(k)},
        "metadata keys": sorted(about),
        "values": {
            name: value[0, ::8, ::10].tolist() if name == "sem_seg" else golden.figures(value)
            for name, value in zip(names, values, strict=True)
        },
    }
    golden.check("export", found)


def volatile(key: str) -> bool:
    """Return whether a key's value follows from the machine, the time or the files' bytes."""
    words = ("sha256", "version", "time", "command", "path", "file", "git", "seconds", "producer")
    return any(word in key.lower() for word in words)


# ---- results.json ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_results_of_an_evaluation_are_those_on_record(checkpoints, tmp_path):
    small_sets.anomaly_set(tmp_path, "golden_anomaly", count=3, shape=(32, 48))
    card = write_closed_set(tmp_path, "golden_closed")
    cfg = tiny_cfg(
        *(*MODELS["arcface_ratio"], "MODEL.WEIGHTS", str(checkpoints / "memory.pth")),
        *("OUTPUT_DIR", str(tmp_path / "run"), "DATASETS.CARDS", [str(card)]),
        *("DATASETS.TRAIN", (), "DATASETS.TEST", ("golden_closed", "golden_anomaly")),
        *("TEST.ANOMALY.SCORES", ("rba", "msp", "ratio", "odds", "memory", "rba+anomaly")),
        *("DATALOADER.NUM_WORKERS", 0, "TEST.ANOMALY.REPORT_IMAGES", False),
    )
    (tmp_path / "run.yaml").write_text(cfg.dump())
    run("eval", "--config-file", tmp_path / "run.yaml")
    results = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    results["config"] = sorted(results["config"]) if isinstance(results["config"], dict) else ""
    golden.check("results", constant(results), rtol=5e-3, atol=5e-3)


def constant(value, key: str = ""):
    """Return results without what differs between machines and runs; its keys stay."""
    if isinstance(value, dict):
        return {k: None if volatile(k) else constant(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [constant(item, key) for item in value]
    return "a path" if isinstance(value, str) and os.sep in value else value


# ---- configs --------------------------------------------------------------------------------


def flat(text: str) -> dict[str, str]:
    """Return {key: value as yaml shows it} of a dumped config."""
    found: dict[str, str] = {}

    def walk(node, prefix):
        for key, value in node.items():
            if isinstance(value, dict) and value:
                walk(value, f"{prefix}{key}.")
            else:
                found[prefix + key] = f"{type(value).__name__} {value!r}"

    walk(yaml.safe_load(text), "")
    return found


def test_the_values_of_every_shipped_config_are_those_on_record():
    defaults = flat(load_config("", ["MODEL.DEVICE", "cpu"]).dump())
    found = {"defaults": defaults}
    for name in CONFIGS:
        values = flat(load_config(str(ROOT / "configs" / name), ["MODEL.DEVICE", "cpu"]).dump())
        assert list(values) == list(defaults), name
        found[name] = {key: values[key] for key in values if values[key] != defaults[key]}
    assert not REMOVED_KEYS & defaults.keys(), "a key that is listed as removed is there"
    golden.check("configs", found, removed=REMOVED_KEYS)


# ---- checkpoints ----------------------------------------------------------------------------


def shown(path: Path) -> dict:
    """Return what a checkpoint says about itself, and its tensors' names, shapes and types."""
    payload = torch.load(path, weights_only=True)
    return {
        "parts": sorted(payload),
        "meta": {k: v for k, v in payload["meta"].items() if k not in ("memory", "base_hash")},
        "meta keys": sorted(payload["meta"]),
        "tensors": {
            name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            for name, value in payload["model"].items()
        },
    }


def without_shared(found: dict) -> dict:
    """Leave out of every model but the first the tensors that are as in the first."""
    first = next(iter(found.values()))["tensors"]
    for number, entry in enumerate(found.values()):
        if number:
            tensors = entry["tensors"]
            entry["gone"] = sorted(first.keys() - tensors.keys())
            entry["tensors"] = {k: v for k, v in tensors.items() if first.get(k) != v}
    return found


def test_checkpoints_hold_what_is_on_record(checkpoints):
    found = {name: shown(checkpoints / f"{name}.pth") for name in [*MODELS, "memory"]}
    memory = torch.load(checkpoints / "memory.pth", weights_only=True)["meta"]["memory"]
    assert set(memory) == {"block", "backbone_sha256"}
    found["memory"]["block"] = memory["block"]
    golden.check("checkpoints", without_shared(found))


def test_every_format_that_is_written_holds_what_is_on_record(checkpoints, tmp_path):
    run(
        "convert",
        checkpoints / "arcface_lora.pth",
        "--to",
        "adapter",
        "--output",
        tmp_path / "a.pth",
    )
    golden.check("formats", {"adapter": shown(tmp_path / "a.pth")})


def test_what_is_read_of_a_checkpoint_is_on_record(checkpoints):
    found = {}
    for name in [*MODELS, "memory"]:
        spec = read_checkpoint(checkpoints / f"{name}.pth").spec
        found[name] = spec.known()
    golden.check("specs", found)


# ---- pasting --------------------------------------------------------------------------------


def digest(array: np.ndarray) -> str:
    """Return the sha256 of an array's shape, type and bytes, shortened."""
    text = f"{array.shape} {array.dtype} ".encode()
    return hashlib.sha256(text + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def blob(side: int, seed: int, label=None) -> PasteObject:
    """An irregular object on a green photograph."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    mask = np.hypot(y, x * (1 + 0.3 * seed)) <= side * (0.35 + 0.1 * (seed % 2))
    image = np.full((side, side, 3), (0, 255, 0), np.uint8)
    image[mask] = golden.photograph(side, side, seed)[mask]
    return PasteObject(image, mask, label)


PASTING = {
    "paper": {"ratio": 1.0},
    "perspective": {"ratio": 1.0, "size": "perspective"},
    "hard": {"ratio": 1.0, "feather": (0.0, 0.0), "rim": 0},
    "opaque core": {"ratio": 1.0, "opaque_core": True},
    "parts": {"ratio": 1.0, "scale": (0.5, 2.0), "feather": (3.0, 0.02)},
}


def test_pasted_pixels_are_those_on_record():
    found = {}
    for name, options in PASTING.items():
        image = golden.photograph(120, 200)
        label = np.where(np.arange(120)[:, None] < 60, 11, 7).repeat(200, 1).astype(np.uint8)
        objects = [blob(30, 1), blob(61, 2), blob(45, 3, label=26)]
        out, out_label, records = paste_objects(
            image, label, objects, np.random.default_rng(5), CutPasteOptions(**options)
        )
        assert (out != image).any()
        found[name] = {
            "image": digest(out),
            "label": digest(out_label),
            "records": [record if isinstance(record, dict) else repr(record) for record in records],
        }
    golden.check("pasting", found)


def write_scenes(folder: Path) -> None:
    """Write six Cityscapes frames of road and building."""
    for index in range(6):
        city = ("aachen", "bonn")[index % 2]
        stem = f"{city}_{index:06d}_000019"
        ids = np.where(np.arange(96)[:, None] < 48, 11, 7).repeat(192, 1).astype(np.uint8)
        ids[40:70, 20 * index + 5 : 20 * index + 50] = 26  # a car, for the closed set
        for kind, suffix, pixels in (
            ("leftImg8bit", "leftImg8bit", golden.photograph(96, 192, index)),
            ("gtFine", "gtFine_labelIds", ids),
        ):
            path = folder / kind / "train" / city / f"{stem}_{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def write_objects(folder: Path) -> None:
    """Write two photographs with a person, a cat and a dog each, as COCO describes them."""
    categories = [{"id": i, "name": n} for i, n in ((1, "person"), (17, "cat"), (18, "dog"))]
    images, annotations = [], []
    folder.mkdir()
    for number in range(2):
        Image.fromarray(golden.photograph(120, 200, number)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 120, "width": 200})
        for place, category in enumerate(categories):
            x = 10 + 62 * place
            polygon = [x, 20, x + 50, 25, x + 45, 60 + 15 * number, x + 5, 90]
            annotations.append(
                {
                    **{"id": 10 * number + place, "image_id": number, "area": 2500},
                    **{"category_id": category["id"], "segmentation": [polygon]},
                }
            )
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


CUT_PASTE = {
    "plain": ("--ratio", 0.6),
    "controls on the road": ("--ratio", 1, "--controls", 1, 2, "--placement", "road"),
    "closed set and parts": ("--ratio", 1, "--closed-set", 1, 1, "--parts", 0.5, "--seed", 3),
    "benchmark": ("--as-benchmark", "--count", 2, 3, "--opaque-core"),
}


def test_cut_paste_sets_are_those_on_record(tmp_path, monkeypatch):
    write_scenes(tmp_path / "scenes")
    write_objects(tmp_path / "coco")
    found = {}
    for name, options in CUT_PASTE.items():
        output = tmp_path / name.replace(" ", "_")
        run(
            *("cut-paste", "--cityscapes", tmp_path / "scenes", "--output", output, *options),
            *("--coco-json", tmp_path / "coco" / "instances.json"),
            *("--coco-images", tmp_path / "coco"),
        )
        found[name] = {}
        for path in sorted(p for p in output.rglob("*") if p.is_file()):
            key = path.relative_to(output).as_posix()
            # Pixels, not the file's bytes, which are the compressor's choice.
            if path.suffix in (".png", ".jpg"):
                found[name][key] = digest(np.asarray(Image.open(path)))
            elif path.name in ("manifest.jsonl", "summary.json"):
                text = path.read_text().replace(str(tmp_path), "")
                found[name][key] = hashlib.sha256(text.encode()).hexdigest()[:16]
            else:
                found[name][key] = "a file"
    golden.check("cut_paste", found)


# ---- training data --------------------------------------------------------------------------


def test_training_samples_are_those_on_record(tmp_path):
    card = write_closed_set(tmp_path, "golden_train")
    write_objects(tmp_path / "coco")
    found = {}
    for name, overrides in {
        "plain": (),
        "cut-paste": (
            *("MODEL.EOMT.ANOMALY_CLASS", True, "INPUT.CUT_PASTE.ENABLED", True),
            *("INPUT.CUT_PASTE.COCO_JSON", str(tmp_path / "coco" / "instances.json")),
            *("INPUT.CUT_PASTE.COCO_IMAGES", str(tmp_path / "coco"), "INPUT.CUT_PASTE.RATIO", 1.0),
            *("INPUT.CUT_PASTE.MIN_SIDE", 4),
        ),
    }.items():
        cfg = tiny_cfg(
            *("DATASETS.CARDS", [str(card)], "DATASETS.TRAIN", ("golden_train",)),
            *("SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0, *overrides),
        )
        register_cards(str(card))
        batches = iter(Trainer.build_train_loader(cfg))
        found[name] = [
            {
                "image": golden.figures(sample["image"]),
                "sem_seg": golden.figures(sample["sem_seg"]),
            }
            for _ in range(3)
            for sample in next(batches)
        ]
    golden.check("samples", found, atol=1.0)


if __name__ == "__main__":
    if "--write" not in sys.argv:
        raise SystemExit(__doc__)
    os.environ[golden.WRITE] = "1"
    raise SystemExit(pytest.main([__file__, "-q"]))
