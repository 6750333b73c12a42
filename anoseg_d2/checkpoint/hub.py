"""Fetch weights from Hugging Face (`hf://owner/name`) or timm (`timm://name`), and upload them.

Caches, offline mode and mirrors are huggingface_hub's own: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT.
"""

from pathlib import Path
from typing import Any

import timm
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import Tensor

from anoseg_d2.utils.files import read_json

try:  # what huggingface_hub 1.0 and later send requests with; its errors are not OSErrors
    from httpx import HTTPError as _NETWORK_ERROR
except ImportError:
    _NETWORK_ERROR = ConnectionError

__all__ = [
    "CONFIG_FILES",
    "WEIGHT_FILES",
    "fetch_hub_folder",
    "load_timm_weights",
    "push_folder",
    "shard_names",
]

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
    try:
        # Safetensors first: most models are on the hub in both formats, and one is enough.
        for pattern in ("model*.safetensors*", "pytorch_model*.bin*"):
            folder = Path(
                snapshot_download(
                    name, revision=revision or None, allow_patterns=[*CONFIG_FILES, pattern]
                )
            )
            if any((folder / file).is_file() for file in WEIGHT_FILES):
                return folder
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{source} is gated: accept its licence at its page on the Hugging Face hub, then log "
            "in here (`hf auth login`, or the environment variable HF_TOKEN)"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(f"{source}: no such model on the Hugging Face hub") from error
    except (LocalEntryNotFoundError, ConnectionError):
        pass  # offline, and not in the cache
    raise FileNotFoundError(
        f"{source}: none of {', '.join(WEIGHT_FILES)} is in the local cache, and the Hugging Face "
        "hub has none or cannot be reached. On a machine with network run "
        f"`hf download {name} --local-dir {name.split('/')[-1]}`, copy that folder here, and give "
        "its path instead"
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
        ValueError: timm has no such model.
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
            "that folder here, and give the path of the file instead"
        ) from error
    block = model.blocks[0] if hasattr(model, "blocks") else None
    heads = getattr(getattr(block, "attn", None), "num_heads", None)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return model.state_dict(), {"heads": heads, "grid": grid}


def push_folder(folder: Path, name: str, files: list[str], private: bool = False) -> str:
    """Upload files to a model repository on the Hugging Face hub, which is created if needed.

    Args:
        folder: where they are.
        name: OWNER/NAME.
        files: names of the files to upload; other files in the folder are ignored.
        private: whether a new repository is private.
    Returns:
        URL of the repository.
    Raises:
        ConnectionError: the hub cannot be reached, or refuses; the message says what to do.
    """
    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=files,
            commit_message="Upload with anoseg_d2",
        )
    except (OSError, HFValidationError, _NETWORK_ERROR) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConnectionError(
            f"{folder} was written, but not uploaded to {name}: {reason}. Log in with a token that "
            "may write there (`hf auth login`, or HF_TOKEN), check the network, HF_ENDPOINT and "
            f"HF_HUB_OFFLINE, then run `hf upload {name} {folder}`"
        ) from error
    return str(address)
