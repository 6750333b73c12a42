"""A model as one file for other runtimes: ONNX, or torch.export's `.pt2`.

The graph takes images as they are decoded and gives finished maps: normalisation, resizing,
windows, linear maps and score formulas are those of `EoMT`, traced, with adapters merged and the
statistics of ensembles as constants.

Shape letters: B images, n windows per image, Q queries, M channels of the linear maps, (H, W) sizes
in pixels.
"""

import copy
import importlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.nn import functional as F

from anoseg_d2 import __version__
from anoseg_d2.checkpoint.lora_state import weights_hash
from anoseg_d2.export_check import Difference, check_file
from anoseg_d2.modeling import scores, windows
from anoseg_d2.modeling.fixed_resize import FixedResize
from anoseg_d2.modeling.lora import merge_lora

__all__ = ["FORMATS", "OPSET", "ExportModel", "ExportSpec", "describe", "export_model"]

logger = logging.getLogger(__name__)

# The first opset with an antialiased Resize; onnxruntime knows it since 1.14.
OPSET = 18
INPUTS = {"uint8": torch.uint8, "float32": torch.float32}
FORMATS = ("onnx", "pt2")
# A protobuf message ends at 2 GiB; beyond this much weights lie in a file beside the graph.
EXTERNAL_BYTES = 1_800_000_000


@dataclass(frozen=True)
class ExportSpec:
    """What an exported file takes and gives.

    Args:
        scores: names in `SCORES`, or ensembles.
        input: "uint8" or "float32": images (B, 3, H, W), RGB 0..255 in both cases.
        batch: B; None leaves it open.
        image_size: native (H, W). The graph resizes to the model's input, lays the windows of
            `plan_windows`, merges them, and brings the maps back: it equals `AnomalyPredictor`
            for images of this size.
        any_size: H and W stay open. The graph stretches the image to one window, whatever its
            aspect ratio, and brings the maps back: faster and coarser than `AnomalyPredictor`.
            Neither this nor `image_size`: images have the size that the model sees.
        confidence: also give the confidence of the segmentation.
        half: weights and network in float16; the formulas and what they give stay float32.
    """

    scores: tuple[str, ...]
    input: str = "uint8"
    batch: int | None = 1
    image_size: tuple[int, int] | None = None
    any_size: bool = False
    confidence: bool = False
    half: bool = False

    def __post_init__(self):
        if self.input not in INPUTS:
            raise ValueError(f"input is {self.input!r}; allowed: {', '.join(INPUTS)}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"the batch must be at least 1, is {self.batch}")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"the image size must be positive, is {self.image_size}")
        if self.image_size is not None and self.any_size:
            raise ValueError("an export is for one image size or for any size, not for both")

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs in order."""
        return ["sem_seg", *self.scores, *(["confidence"] if self.confidence else [])]


class ExportModel(nn.Module):
    """Images in, `(sem_seg, *scores, confidence)` out, all tensors.

    Args:
        model: EoMT; it is copied.
        spec: what to take and give.
    Raises:
        ValueError: scores that the model cannot give, ensembles without statistics, or filters
            together with an open batch.
    """

    def __init__(self, model: nn.Module, spec: ExportSpec):
        super().__init__()
        names = scores.available_scores(model.has_anomaly, spec.scores)
        scores.check_statistics(names, model.score_statistics)
        if model.postprocess and spec.batch is None:
            raise ValueError(
                "TEST.ANOMALY.POSTPROCESS works image by image and needs a batch of a fixed size"
            )
        self.spec = spec
        self.model = merge_lora(copy.deepcopy(model)).eval().requires_grad_(False)
        self.model.score_names = names
        self.weights_sha256 = weights_hash(self.model.state_dict())
        size = tuple(spec.image_size or model.image_size)
        self.plan = windows.plan_windows(size, model.image_size, model.window_overlap)
        self.resize = FixedResize(size, self.plan.resized) if size != self.plan.resized else None
        if spec.half:
            _halve(self.model)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Args: image: (B, 3, H, W) RGB 0..255, of the type that the spec names."""
        crops = self._cut(image.float())
        mask_logits, coefficients, channels = self.model.predict_coefficients(crops)
        maps = self._merge(mask_logits, coefficients)
        if self.spec.any_size:
            maps = F.interpolate(maps, size=image.shape[-2:], mode="bilinear", align_corners=False)
        elif self.resize is not None:
            size = self.spec.image_size
            native = windows.resize_rows(maps.flatten(0, 1), size, 0, size[0])
            maps = native.unflatten(0, (-1, maps.shape[1]))
        values = self.model.read_scores(maps, channels)
        filtered = self._filter(values["scores"], values["sem_seg"])
        last = (values["confidence"],) if self.spec.confidence else ()
        return (values["sem_seg"], *filtered.values(), *last)

    def _cut(self, image: Tensor) -> Tensor:
        """Windows of all images, (B n, 3, h, w) float32."""
        if self.spec.any_size:
            return F.interpolate(image, size=self.plan.window, mode="bilinear", antialias=True)
        if self.resize is not None:
            image = self.resize(image)
        height, width = self.plan.window
        crops = [image[..., y : y + height, x : x + width] for y, x in self.plan.origins]
        return torch.stack(crops, dim=1).flatten(0, 1)

    def _merge(self, mask_logits: Tensor, coefficients: Tensor) -> Tensor:
        """Linear maps (B, M, H, W) of the resized images."""
        count = len(self.plan.origins)
        mask_logits = mask_logits.unflatten(0, (-1, count))
        coefficients = coefficients.unflatten(0, (-1, count))
        merger = windows.WindowMerger(self.plan)
        for index in range(count):
            logits = F.interpolate(
                mask_logits[:, index].float(), size=self.plan.window, mode="bilinear"
            )
            maps = scores.combine_masks(coefficients[:, index], logits)
            if count == 1:
                return maps
            merger.add(maps, index)
        return merger.mean()

    def _filter(self, score_maps: dict[str, Tensor], sem_seg: Tensor) -> dict[str, Tensor]:
        for function in self.model.postprocess:
            score_maps = {
                name: torch.stack([function(*pair) for pair in zip(value, sem_seg, strict=True)])
                for name, value in score_maps.items()
            }
        return score_maps


def _halve(model: nn.Module) -> None:
    """Network in float16; normalisation of pixels and the class head stay float32."""
    mean, std, head = model.pixel_mean, model.pixel_std, model.class_head
    model.class_head = None
    model.half()
    model.class_head, model.pixel_mean, model.pixel_std = head, mean, std
    model.backbone.patch_embed.register_forward_pre_hook(lambda _, args: (args[0].half(),))


def describe(model: ExportModel, class_names: Iterable[str] | None = None) -> dict[str, str]:
    """What a consumer must know, as it is stored in the file: names to plain text or JSON."""
    inner, spec = model.model, model.spec
    parts = {part for name in spec.scores for part in scores.ensemble_parts(name) if "+" in name}
    height, width = ("height", "width") if spec.any_size else spec.image_size or inner.image_size
    values = {
        "producer": f"anoseg_d2 {__version__}",
        "input": "image, NCHW, RGB, 0..255; normalised inside",
        "input_type": spec.input,
        "input_shape": [spec.batch or "batch", 3, height, width],
        "outputs": spec.outputs,
        "score_names": list(spec.scores),
        "class_names": list(class_names) if class_names else None,
        "num_known": inner.num_known,
        "has_anomaly": inner.has_anomaly,
        "window": list(inner.image_size),
        "resized": list(inner.image_size if spec.any_size else model.plan.resized),
        "origins": [list(origin) for origin in model.plan.origins],
        "score_statistics": {name: list(inner.score_statistics[name]) for name in sorted(parts)},
        "temperature": inner.temperature,
        "precision": "float16" if spec.half else "float32",
        "weights_sha256": model.weights_sha256,
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }


def export_model(
    model: nn.Module,
    output,
    spec: ExportSpec,
    *,
    file_format: str = "onnx",
    class_names: Iterable[str] | None = None,
    check_image: Tensor | None = None,
    tolerance: float | None = None,
    external_bytes: int = EXTERNAL_BYTES,
) -> list[Difference]:
    """Write a model, run the file, compare it with the model, and only then give it its name.

    Args:
        model: EoMT in eval mode on the CPU.
        output: file; ONNX weights of more than `external_bytes` lie in `<output>.data` beside it.
        spec: what the file takes and gives.
        file_format: "onnx" or "pt2".
        class_names: K names, stored in the file.
        check_image: (3, H, W) uint8 RGB that the check uses, resized as needed; None for a drawn
            one.
        tolerance: largest allowed difference of a score; None for 1e-3 (float32) or what
            `export_check` allows float16.
    Returns:
        differences of each output, for each checked input.
    Raises:
        ValueError: unknown format or scores, ensembles without statistics, an old torch.
        FileNotFoundError: the folder of `output`.
        ModuleNotFoundError: a package that the format needs.
        ExportCheckError: a difference over the tolerance; the file is gone.
    """
    output = Path(output)
    if file_format not in FORMATS:
        raise ValueError(f"format is {file_format!r}; allowed: {', '.join(FORMATS)}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output}: the folder {output.parent} does not exist")
    _require(*(("onnx", "onnxscript", "onnxruntime") if file_format == "onnx" else ()))
    assert not model.training, "export takes a model in eval mode"
    wrapped = ExportModel(model, spec).eval()
    metadata = describe(wrapped, class_names)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export") as folder:
        partial = Path(folder) / output.name
        program = _trace(wrapped)
        if file_format == "onnx":
            _write_onnx(program, partial, spec, metadata, external_bytes)
        else:
            _write_pt2(program, partial, metadata)
        del wrapped, program
        differences = check_file(partial, model, spec, check_image, tolerance)
        _publish(Path(folder), output)
    return differences


def _require(*packages: str) -> None:
    if Version(torch.__version__) < Version("2.6"):
        raise ValueError(f"export needs torch 2.6 or newer; this is {torch.__version__}")
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"ONNX export needs {package} ({error}): pip install -e '.[export]'; "
                "--format pt2 needs nothing but torch"
            ) from error


@torch.no_grad()
def _trace(model: ExportModel) -> torch.export.ExportedProgram:
    """Trace for the shapes that the spec leaves open."""
    spec = model.spec
    height, width = spec.image_size or model.plan.window
    dims = {}
    if spec.batch is None:
        dims[0] = torch.export.Dim("batch")
    if spec.any_size:
        # Another size than the window's, so that nothing is taken for equal by accident.
        height, width = height + 3, 2 * width + 5
        dims |= {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    image = torch.zeros(spec.batch or 2, 3, height, width, dtype=INPUTS[spec.input])
    return torch.export.export(model, (image,), dynamic_shapes={"image": dims})


def _write_onnx(program, path: Path, spec: ExportSpec, metadata: dict, external_bytes: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own deprecations
        converted = torch.onnx.export(
            program, opset_version=OPSET, dynamo=True, output_names=spec.outputs, verbose=False
        )
    graph = converted.model.graph
    _name_dimensions(graph, spec)
    converted.model.metadata_props.update({**metadata, "opset": str(OPSET)})
    size = sum(value.const_value.nbytes for value in graph.initializers.values())
    converted.save(path, external_data=size > external_bytes)


def _write_pt2(program, path: Path, metadata: dict) -> None:
    files = {"metadata.json": json.dumps(metadata, ensure_ascii=False, indent=1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that are views of others
        torch.export.save(program, path, extra_files=files)


def _name_dimensions(graph, spec: ExportSpec) -> None:
    """Give open dimensions their names in place of the tracer's symbols."""
    shape = graph.inputs[0].shape
    named = {str(shape[axis]): name for axis, name in ((0, "batch"), (2, "height"), (3, "width"))}
    for value in [*graph.inputs, *graph.outputs]:
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int):
                value.shape[axis] = named[str(size)]


def _publish(folder: Path, output: Path) -> None:
    """Move what was written to its place, the graph last, and drop an older file's weights."""
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: name == output.name)
    for name in names:
        os.replace(folder / name, output.parent / name)
    beside = f"{output.name}.data"
    if beside not in names:
        (output.parent / beside).unlink(missing_ok=True)
