"""The files that the calls of `cases.yaml` read: a small valid world, and broken copies of it."""

import json
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import h5py
import numpy as np
import runs
import tiny_models
import torch
from PIL import Image, PngImagePlugin

from anoseg_d2.checkpoint import model_meta
from anoseg_d2.utils.files import write_json

TENSOR = b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'


def make_world(folder: Path) -> dict[str, Path]:
    """Write valid files of every kind; returns them by the names that `cases.yaml` uses."""
    card = runs.write_dataset(folder, "faults", 4)
    photos = folder / "data/images"
    label = np.zeros((32, 32), np.uint8)
    label[8:20, 8:20] = 1
    rng = np.random.default_rng(0)
    for index in range(4):
        save(folder / f"data/anomaly/{index}.png", label)
        save(folder / f"maps/{index}.npy", rng.random((32, 32), np.float32))
    anomaly_card = folder / "anomaly_card.yaml"
    anomaly_card.write_text(
        f'name: faults_anomaly\nkind: anomaly\nroot: "{folder}/data"\nimages: "images/{{id}}.png"\n'
        'labels: "anomaly/{id}.png"\nknown: 0\nanomaly: 1\nvoid: 255\n'
    )
    weights, lora = folder / "model_final.pth", folder / "lora.pth"
    for path, options in ((weights, {"has_anomaly": True}), (lora, {"lora": {"rank": 2}})):
        torch.manual_seed(0)
        model = tiny_models.tiny_eomt(**options)
        torch.save({"model": model.state_dict(), "meta": model_meta(model)}, path)
    cfg = runs.small_run(folder, "run", "MODEL.EOMT.ANOMALY_CLASS", True)
    runs.write_dataset(folder, "faults", 4)  # small_run has named it otherwise
    cfg.DATASETS.CARDS = [str(card), str(anomaly_card)]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("faults",), ("faults_anomaly",)
    cfg.SOLVER.MAX_ITER = 2
    config = folder / "good.yaml"
    config.write_text(cfg.dump())
    thresholds = {"80": 0.1, "90": 0.05, "95": 0.02, "99": 0.01}
    figures = {"auprc": 50.0, "fpr95": 20.0, "auroc": 80.0, "threshold_at_tpr": thresholds}
    results = {"road_obstacle21": {"scores": {"rba": figures, "max_logit_raw": figures}}}
    results = {"datasets": results, "closed_set": {"val": {"mIoU": 60.0}}, "model": {}}
    write_json(folder / "results/results.json", results)
    save(folder / "coco/0.png", rng.integers(0, 256, (80, 80, 3), dtype=np.uint8))
    outline = {"segmentation": [[10, 10, 60, 12, 58, 60, 12, 58]], "area": 2400, "iscrowd": 0}
    coco = {
        "images": [{"id": 0, "file_name": "0.png", "height": 80, "width": 80}],
        "categories": [{"id": 17, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 17, "bbox": [10, 10, 50, 50], **outline}
        ],
    }
    write_json(folder / "coco/instances.json", coco)
    ids = np.full((64, 96), 11, np.uint8)
    ids[32:] = 7
    for stem in ("aachen_000000_000019", "aachen_000001_000019"):
        image = folder / f"scenes/leftImg8bit/train/aachen/{stem}_leftImg8bit.png"
        save(image, rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
        save(folder / f"scenes/gtFine/train/aachen/{stem}_gtFine_labelIds.png", ids)
    film = cv2.VideoWriter(str(folder / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (32, 32))
    for index in range(6):
        film.write(np.full((32, 32, 3), 40 * index, np.uint8))
    film.release()
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        'title: "Faults"\noutput: output/faults\nsteps:\n'
        f"  - {{name: one, minutes: 1, config: {config}, weights: {weights}}}\n"
    )
    return {
        **{"card": card, "anomaly_card": anomaly_card, "config": config, "recipe": recipe},
        **{"weights": weights, "base": weights, "lora": lora, "maps": folder / "maps"},
        **{"results": folder / "results/results.json", "coco": folder / "coco/instances.json"},
        **{"objects": folder / "coco", "scenes": folder / "scenes", "video": folder / "film.avi"},
        **{"photos": photos, "photo": photos / "0.png"},
    }


def save(path: Path, content) -> Path:
    """Write an array as an image or .npy, bytes as they are, or an object by torch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray) and path.suffix == ".npy":
        np.save(path, content, allow_pickle=True)
    elif isinstance(content, np.ndarray):
        Image.fromarray(content).save(path)
    else:
        torch.save(content, path)
    return path


def broken_weights(good: Path) -> dict[str, object]:
    """Checkpoints that are cut, hold something else, or tensors that do not fit each other."""
    whole, checkpoint = good.read_bytes(), torch.load(good, weights_only=True)
    state, meta = checkpoint["model"], {"meta": checkpoint["meta"]}
    first = next(iter(state))
    found = {
        "truncated": whole[: len(whole) // 2],
        "last byte missing": whole[:-1],
        "flipped byte": whole[:500] + bytes([whole[500] ^ 255]) + whole[501:],
        "zip of nothing": packed({}),
        "zip of text": packed({"archive/data.pkl": b"text"}),
        "list": [1, 2, 3],
        "none": None,
        "empty table": {},
        "empty model": {"model": {}, **meta},
        "model of numbers": {"model": {first: 5}, **meta},
        "integer keys": {"model": {1: torch.ones(2), 2: torch.ones(2)}},
        "one tensor missing": {"model": {k: v for k, v in state.items() if k != first}, **meta},
        "not finite": {"model": {**state, first: state[first] * float("nan")}, **meta},
        "on meta": {"model": {**state, first: torch.empty(1, 1, 32, device="meta")}, **meta},
        "a strange name": {"model": {**state, "../../escaped": torch.ones(1)}, **meta},
        "meta is text": {"model": state, "meta": "text"},
        "stranger": {"model": {"conv1.weight": torch.ones(8, 3, 3, 3)}},
    }
    for kind in (torch.int64, torch.bool, torch.float64, torch.bfloat16, torch.complex64):
        found[f"fits in {kind}"] = {"model": {**state, first: state[first].to(kind)}, **meta}
    for name in ("backbone.pos_embed", "backbone.blocks.0.attn.qkv.weight", "query.weight"):
        value = state[name]
        for what, changed in {
            "transposed": value.transpose(0, -1).contiguous(),
            "of no entries": value[:0],
            "of one number": value.flatten()[0].clone(),
            "one row more": torch.cat([value, value[:1]]),
        }.items():
            found[f"tensor {name} {what}"] = {"model": {**state, name: changed}, **meta}
    return {f"{name}.pth": content for name, content in found.items()}


def packed(members: dict[str, bytes]) -> bytes:
    """A zip file."""
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def empty_png(width: int, height: int) -> bytes:
    """A png that states a size and holds nothing."""
    stream = BytesIO()
    Image.new("L", (1, 1)).save(stream, "png")
    content = bytearray(stream.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def broken_images(good: bytes) -> dict[str, object]:
    """Images that are cut, lie about their size, or are of a few pixels."""
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "x" * 10_000_000, zip=True)
    bomb, large = BytesIO(), BytesIO()
    Image.new("RGB", (32, 32)).save(bomb, "png", pnginfo=text)
    Image.new("L", (9000, 9000)).save(large, "png")  # 80 kB
    found = {
        "truncated": good[: len(good) // 2],
        "header only": good[:40],
        "declares 10^9": empty_png(10**9, 10**9),
        "declares 60000": empty_png(60_000, 60_000),
        "declares 0": empty_png(0, 0),
        "text bomb": bomb.getvalue(),
        "bomb": large.getvalue(),
        "random": np.random.default_rng(0).bytes(2000),
    }
    for shape in ((1, 1), (2, 8), (8, 2), (1, 300), (300, 1)):
        found[f"small {shape[0]}x{shape[1]}"] = np.zeros((*shape, 3), np.uint8)
    return {f"{name}.png": content for name, content in found.items()}


def broken_labels(good: bytes) -> dict[str, object]:
    """Labels as `broken_images`, and of other sizes, values and kinds of pixels."""
    found = {
        "other size": np.zeros((16, 16), np.uint8),
        "unknown value": np.full((32, 32), 77, np.uint8),
        "colours": np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8),
        "16 bits": np.full((32, 32), 1000, np.uint16),
        "transparency": np.full((32, 32, 4), 7, np.uint8),
    }
    found = {f"{name}.png": content for name, content in found.items()}
    return {**broken_images(good), **found}


def broken_maps(good: bytes) -> dict[str, object]:
    """Score maps of other shapes and types, that lie about their size, or are not finite."""

    def header(shape: str) -> bytes:
        head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
        head += b" " * (63 - (10 + len(head)) % 64) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head

    found = {
        "truncated.npy": good[:200],
        "version 9.npy": good[:6] + b"\x09" + good[7:],
        "huge.npy": header("(1000000, 1000000)"),
        "negative.npy": header("(-1, 32)"),
        "header code.npy": header("(__import__('os').system('touch /tmp/planted'),)"),
        "deep header.npy": header("(" * 3000 + ")" * 3000),
        "nothing.npz": packed({}),
        "two.npz": packed({"a.npy": good, "b.npy": good}),
        "bomb.npz": packed({"a.npy": header("(40000, 40000)") + b"\0" * 50_000_000}),
        "climbing.npz": packed({"../../escaped.npy": b"text"}),
        "huge.png": empty_png(60_000, 60_000),
        "other size.npy": np.zeros((16, 16), np.float32),
        "three channels.npy": np.zeros((32, 32, 3), np.float32),
        "not a number.npy": np.full((32, 32), np.nan, np.float32),
        "fits infinite.npy": np.full((32, 32), np.inf, np.float32),
        "complex.npy": np.zeros((32, 32), np.complex64),
        "text array.npy": np.full((32, 32), "a"),
        "record.npy": np.zeros((32, 32), [("a", "f4")]),
        "objects.npy": np.full((32, 32), None),
        "scalar.npy": np.float32(5) * np.ones(()),
        "fits half.npy": np.ones((32, 32), np.float16),
        "fits int64.npy": np.ones((32, 32), np.int64),
        "fits big endian.npy": np.ones((32, 32), ">f4"),
    }
    for name, fill in (
        ("bomb", lambda f: f.create_dataset("value", (10**5,) * 2, "f4", chunks=True)),
        ("group", lambda f: f.create_group("group")),
        ("link", lambda f: f.update(value=h5py.ExternalLink("/etc/passwd", "value"))),
    ):
        stream = BytesIO()
        with h5py.File(stream, "w") as file:
            fill(file)
        found[f"{name}.hdf5"] = stream.getvalue()
    return found


def broken_videos(good: bytes) -> dict[str, object]:
    """Videos that are cut or lie about their size."""
    size, huge = struct.pack("<ii", 32, 32), struct.pack("<ii", 2**30, 2**30)
    return {"cut.avi": good[: len(good) // 2], "huge.avi": good.replace(size, huge)}


def header_file(header: dict) -> bytes:
    """A safetensors file of two numbers with this header."""
    text = json.dumps(header).encode() if header != "stranger" else TENSOR
    return struct.pack("<Q", len(text)) + text + b"\0" * 8
