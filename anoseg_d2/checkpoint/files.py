"""Read checkpoints of any known format without running code from them, and write atomically.

A broken file ends in a ValueError that names it. Damage is found where the format allows: torch's
zip files carry a CRC of each entry; safetensors files, and torch files from before version 1.6,
have no checksum of their tensors.
"""

import errno
import json
import logging
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anoseg_d2.checkpoint.adapters import join_adapter
from anoseg_d2.checkpoint.fetch_backbone import NAME as BACKBONE_NAME
from anoseg_d2.checkpoint.fetch_backbone import backbone_file
from anoseg_d2.checkpoint.formats import (
    clean_names,
    facts_of_file,
    pixel_statistics,
    recognise,
    to_anoseg,
)
from anoseg_d2.checkpoint.hub import (
    CONFIG_FILES,
    WEIGHT_FILES,
    fetch_hub_folder,
    load_timm_weights,
    shard_names,
)
from anoseg_d2.checkpoint.spec import ARCHITECTURE_VERSION, FORMAT_NAME, Checkpoint, ModelSpec
from anoseg_d2.utils.constants import SHIPPED_NAME
from anoseg_d2.utils.files import atomic_path, read_json

logger = logging.getLogger(__name__)

SHIPPED_FILE = Path(__file__).parents[1] / "weights" / "road_s.safetensors"

EXPECTED = (
    "a file (.pth, .pt, .ckpt, .bin, .safetensors), a folder with config.json and "
    "model.safetensors, hf://owner/name, or timm://model_name"
)
# Other exceptions that torch's unpickler and zipfile raise on bytes that are not theirs.
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError)
_BROKEN += (struct.error, MemoryError, zlib.error)
# Keys under which published checkpoints keep their weights.
_NESTED = ("state_dict", "model", "model_state_dict")


def read_checkpoint(source, *, allow_pickle: bool = False) -> Checkpoint:
    """Read weights of any known format.

    Args:
        source: path of a file, a Hugging Face folder or one of our output folders (its last
            checkpoint), `hf://owner/name` (optionally `@revision`), `timm://name`, or `road-s`, the
            model that ships with this package, or `dinov2-s`, its ViT, which is downloaded once.
        allow_pickle: unpickle whatever the file holds. That may run code from the file, so use
            it only for files that you trust.
    Returns:
        Checkpoint on CPU; tensors of large files are memory-mapped.
    Raises:
        FileNotFoundError: it does not exist, or a hub cannot be reached; says what to do then.
        ValueError: unreadable, in an unknown format, or not safe to unpickle.
    """
    source = str(source)
    if source == SHIPPED_NAME:
        return replace(read_checkpoint(SHIPPED_FILE), source=source)
    if source == BACKBONE_NAME:
        return replace(read_checkpoint(backbone_file(source)), source=source)
    if source.startswith("timm://"):
        state, facts = load_timm_weights(source)
        fmt = recognise(state)
        state, ignored = to_anoseg(state, fmt)
        return Checkpoint(state, fmt, ModelSpec.from_state(state, facts), source, ignored)
    path = fetch_hub_folder(source) if source.startswith("hf://") else Path(source)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {source} does not exist; expected {EXPECTED}")
    if path.is_dir():
        path = _file_in_folder(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {source} is not a regular file; expected {EXPECTED}")
    payload = _read_payload(path, allow_pickle)
    try:
        checkpoint = _interpret(payload, path, source)
        # Only this name, or a file could make its reader open any other file.
        if checkpoint.meta.get("base_name") == BACKBONE_NAME:
            checkpoint = join_adapter(checkpoint, read_checkpoint(BACKBONE_NAME))
    except _BROKEN as error:  # names or metadata of another form than they have in any format
        raise ValueError(f"checkpoint {source}: {error}") from error
    checkpoint.file = path
    return checkpoint


def write_checkpoint(payload: Mapping[str, Any], path) -> None:
    """Write a payload of tensors and plain values atomically.

    Args:
        payload: anything that `torch.load(weights_only=True)` reads back; for `.safetensors` the
            entries "model" and "meta" only.
        path: target; the file appears under its name only when it is complete.
    Raises:
        OSError: it cannot be written.
    """
    with atomic_path(path) as partial:
        try:
            if Path(path).suffix == ".safetensors":
                # Each tensor gets memory of its own: the format refuses views of one storage.
                state = payload["model"].items()
                tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state}
                meta = {"format": "pt", FORMAT_NAME: json.dumps(payload["meta"])}
                save_file(tensors, partial, meta)
            else:
                torch.save(dict(payload), partial)
        except (RuntimeError, SafetensorError) as error:  # of their own, on a full disk
            raise OSError(errno.EIO, " ".join(str(error).split())[:200]) from error


def update_meta(path, **entries: Any) -> None:
    """Set entries of the metadata of one of our files in place; what else it holds stays.

    Raises:
        ValueError: it is not one of our files.
    """
    payload = _read_payload(Path(path), allow_pickle=False)
    meta = payload.get("meta")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT_NAME:
        raise ValueError(f"{path} is not a file of this project, whose metadata could be changed")
    write_checkpoint({**payload, "meta": {**meta, **entries}}, path)


# ---- what a file holds ----------------------------------------------------------------------


def _interpret(payload: dict[str, Any], path: Path, source: str) -> Checkpoint:
    meta = payload.get("meta")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT_NAME:
        meta = {}  # entries of strangers would be taken for ours
    nested = next((key for key in _NESTED if isinstance(payload.get(key), Mapping)), None)
    weights = payload if nested is None else payload[nested]
    extra = {} if nested is None else {k: v for k, v in payload.items() if k != nested}
    extra.pop("meta", None)
    state = clean_names(weights)
    _check_tensors(state)
    version = meta.get("version", 0)
    if not isinstance(version, int):
        raise ValueError(f"its metadata gives the version of our format as {repr(version)[:80]}")
    if version > ARCHITECTURE_VERSION:
        raise ValueError(
            f"written in version {version} of our format, this package reads up to "
            f"{ARCHITECTURE_VERSION}: update it"
        )
    if meta.get("adapter"):
        frozen = meta.get("frozen")
        if not isinstance(meta.get("base_hash"), str) or not isinstance(frozen, list):
            raise ValueError("is an adapter file that does not say which base it belongs to")
        spec = ModelSpec.from_state(state, facts_of_file("anoseg", state, meta))
        return Checkpoint(state, "anoseg_adapter", spec, source, [], meta, extra)
    fmt = recognise(state)
    transformers = fmt == "huggingface" or fmt.endswith("_transformers")
    config, preprocessor = (
        _sibling_json(path, name) if transformers else {} for name in CONFIG_FILES
    )
    facts = facts_of_file(fmt, state, meta, config, extra.get("hyper_parameters"))
    facts |= pixel_statistics(preprocessor) if preprocessor else {}
    state, ignored = to_anoseg(state, fmt)
    spec = ModelSpec.from_state(state, facts)
    # Nor is an optimiser of strangers of any use.
    return Checkpoint(state, fmt, spec, source, ignored, meta, extra if meta else {})


def _check_tensors(state: Mapping[str, Any]) -> None:
    if not state:
        raise ValueError("holds no tensor")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"entry {name!r} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.is_quantized or value.dtype.is_complex:
            raise ValueError(f"tensor {name} is not dense and real: {value.layout}, {value.dtype}")
        # A view with stride 0 can claim any size out of a small file.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"tensor {name} claims {tuple(value.shape)} but stores less")


# ---- files ----------------------------------------------------------------------------------


def last_checkpoint(folder: Path) -> Path | None:
    """Return the file that a run folder's `last_checkpoint` names, or None; it may not exist.

    Raises:
        ValueError: `last_checkpoint` does not hold a file name.
    """
    last = folder / "last_checkpoint"
    if not last.is_file():
        return None
    name = last.read_bytes().decode("utf-8", "replace").strip()
    if not name.isprintable() or Path(name).name != name or "\ufffd" in name or len(name) > 255:
        raise ValueError(
            f"{last} must hold the name of a checkpoint in its folder, but holds {name[:80]!r}; "
            "write the name of one into it, or delete it"
        )
    return folder / name


def _file_in_folder(folder: Path) -> Path:
    last = last_checkpoint(folder)
    for path in (last, *(folder / name for name in WEIGHT_FILES)):
        if path is not None and path.is_file():
            return path
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(
        f"folder {folder} holds no weights: expected one of {', '.join(WEIGHT_FILES)}, or "
        f"last_checkpoint of a training run; found {found}"
    )


def _sibling_json(path: Path, name: str) -> dict[str, Any]:
    config = path.parent / name
    value = read_json(config) if config.is_file() else {}
    if not isinstance(value, dict):
        raise ValueError(f"{config} holds a {type(value).__name__}, not an object")
    return value


def _read_payload(path: Path, allow_pickle: bool) -> dict[str, Any]:
    """Read what a file holds; the files of an index are read as one."""
    if path.name.endswith(".index.json"):
        merged: dict[str, Any] = {}
        for name in shard_names(path):
            shard = path.parent / name
            if not shard.is_file():
                raise FileNotFoundError(f"{path} names {name}, which is not next to it")
            merged |= _read_payload(shard, allow_pickle)
        return merged
    # By its content: a file of any ending may hold either format.
    with open(path, "rb") as stream:
        head = stream.read(16)
    try:
        if len(head) > 8 and head[8:9] == b"{":
            return _read_safetensors(path)
        return _read_torch(path, allow_pickle)
    except (SafetensorError, RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"checkpoint {path} cannot be read ({reason}); it is broken or cut short: "
            f"copy or download it again. Expected {EXPECTED}"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt", device="cpu") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        metadata = stream.metadata() or {}
    if FORMAT_NAME not in metadata:
        return tensors
    try:
        meta = json.loads(metadata[FORMAT_NAME])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"checkpoint {path}: broken metadata ({error})") from error
    return {"model": tensors, "meta": meta}


def _read_torch(path: Path, allow_pickle: bool) -> dict[str, Any]:
    if allow_pickle:
        logger.warning("unpickling %s, which may run code from the file", path)
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_archive(path)
        payload = torch.load(path, map_location="cpu", weights_only=not allow_pickle, mmap=is_zip)
    except pickle.UnpicklingError as error:
        lines = str(error).strip().splitlines()
        told = (line for line in lines if "GLOBAL" in line or "Unsupported" in line)
        raise ValueError(
            f"checkpoint {path} is refused: it holds more than tensors and plain values, and "
            f"unpickling that can run code ({next(told, lines[0]).strip()[:200]}). If the file is "
            f"whole and you trust its origin, convert it once: anoseg convert {path} "
            "--allow-pickle --to anoseg --output weights.safetensors"
        ) from error
    except _BROKEN as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    if not isinstance(payload, Mapping):
        raise ValueError(f"checkpoint {path} holds a {type(payload).__name__}, not a state dict")
    return dict(payload)


def _check_archive(path: Path) -> None:
    """Check the sizes and CRCs of a torch zip file, which torch ignores when it maps the file.

    Raises:
        zipfile.BadZipFile: an entry is damaged, compressed, or larger than the file.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise zipfile.BadZipFile("an entry is compressed, which torch never writes")
        if sum(entry.file_size for entry in entries) > size:
            raise zipfile.BadZipFile("its entries claim more bytes than the file has")
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the CRC of its entry {damaged} is wrong")
