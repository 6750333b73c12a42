"""Run an exported file and compare its outputs with those of the original model.

The model runs as usual (`EoMT.forward` in float32, one image at a time, adapters not merged, images
resized by torchvision), so the comparison covers everything that the export reimplements.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from anoseg_d2.evaluation.alarm_rate import to_unit
from anoseg_d2.export.spec import Difference, ExportCheckError
from anoseg_d2.modeling.inference import infer_images

# Largest difference of a score, and fraction of pixels whose class may differ.
TOLERANCES = {
    "float32": (1e-3, 1e-3),
    # 11 bits of precision: errors of 1e-3 in a logit become errors of about 1e-2 in a probability;
    # the errors of other scores scale with their largest value.
    "float16": (3e-2, 1e-2),
    # Eight bits keep the order of most pixels but not their values. What this costs in AUPRC
    # depends on the model: evaluate the raw maps of both.
    "int8": (0.3, 0.1),
}


def check_file(
    path: Path, model: nn.Module, spec, image: Tensor | None, tolerance: float | None
) -> list[Difference]:
    """Compare a file with its model on every kind of shape that the spec allows.

    Args:
        path: of the file.
        model: EoMT in eval mode.
        spec: `ExportSpec`.
        image: (3, H, W) uint8 RGB, resized to what the file takes; None for a drawn image.
        tolerance: see `export_model`.
    Returns:
        differences in the order of the outputs, run by run.
    Raises:
        ExportCheckError: a difference is too large.
    """
    differences = []
    for images in _check_images(model, spec, image):
        expected = _reference(model, spec, images)
        found = run_file(path, images.to(getattr(torch, spec.input)), spec.outputs)
        differences += [
            compare_output(name, found[name], expected[name], spec, tolerance)
            for name in spec.outputs
        ]
    if not all(difference.passed for difference in differences):
        raise ExportCheckError(differences)
    return differences


def draw_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Draw a meaningless scene: a gradient, soft spots, boxes with hard edges and some noise.

    Returns:
        (3, H, W) uint8, always the same for the same seed.
    """
    generator = np.random.default_rng(seed)
    spots = torch.from_numpy(generator.uniform(-60, 60, (1, 3, 6, 9)))
    scene = F.interpolate(spots, size=(height, width), mode="bicubic")[0].numpy()
    scene += np.linspace(190, 70, height)[:, None]
    for _ in range(12):
        y, x = generator.integers(0, height), generator.integers(0, width)
        box = np.s_[:, y : y + height // 5 + 1, x : x + width // 6 + 1]
        scene[box] = 0.3 * scene[box] + generator.uniform(0, 180, (3, 1, 1))
    scene += generator.normal(0, 4, scene.shape)
    return torch.from_numpy(scene.round().clip(0, 255).astype(np.uint8))


def run_file(path: Path, images: Tensor, outputs: list[str]) -> dict[str, np.ndarray]:
    """Run an exported file on the CPU with torch's number of threads; returns outputs by name."""
    session = open_session(path)
    return dict(zip(outputs, session.run(outputs, {"image": images.numpy()}), strict=True))


def open_session(path: Path):
    """Open an `onnxruntime.InferenceSession` on the CPU with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _check_images(model: nn.Module, spec, image: Tensor | None) -> list[Tensor]:
    """Return batches (B, 3, H, W) uint8; two batch sizes and image sizes where these are open."""
    height, width = spec.image_size or model.image_size
    sizes = [(height, width)] * (1 if spec.batch else 2)
    if spec.any_size:
        sizes = [(height + height // 4, 2 * width), (2 * height, width + width // 8)]
    batches = []
    for index, size in enumerate(sizes):
        picture = draw_image(*size) if image is None else TF.resize(image, list(size))
        count = spec.batch or 1 + index
        # Shifted copies, so that no image of a batch can stand for another.
        batches.append(torch.stack([picture.roll(i * size[1] // count, -1) for i in range(count)]))
    return batches


@torch.no_grad()
def _reference(model: nn.Module, spec, images: Tensor) -> dict[str, np.ndarray]:
    """Return the outputs of the model itself by name, each (B, H, W)."""
    results = infer_images(model, [{"image": image} for image in images], list(spec.scores))
    flat = [
        {"sem_seg": r["sem_seg"], **r["scores"], "confidence": r["confidence"]} for r in results
    ]
    found = {name: np.stack([values[name].numpy() for values in flat]) for name in flat[0]}
    for name in spec.scores if spec.unit_scale or spec.one_byte else ():
        record = model.info.thresholds[name]
        unit = to_unit(found[name], record["threshold"], record["median"])
        found[f"{name}_byte"] = np.minimum(unit * 256, 255).astype(np.uint8)
        found[name] = unit if spec.unit_scale else found[name]
    return found


def compare_output(name: str, found, expected, spec, tolerance: float | None) -> Difference:
    """Compare one output (B, H, W) of the file with the model's; see `check_file`."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise AssertionError((name, found.shape, found.dtype, expected.shape, expected.dtype))
    low, high = float(expected.min()), float(expected.max())
    allowed, pixels = TOLERANCES[spec.precision]
    if name == "sem_seg" or found.dtype == np.uint8:
        levels = 0 if name == "sem_seg" else 1  # rounding may take a byte to the next one
        others = np.abs(found.astype(int) - expected) > levels
        return Difference(name, found.shape, low, high, float(others.mean()), pixels)
    if spec.precision != "float32":
        allowed *= max(1.0, abs(low), abs(high))
    allowed = allowed if tolerance is None else tolerance
    largest = float(np.abs(found.astype(np.float64) - expected).max())
    return Difference(name, found.shape, low, high, largest, allowed)
