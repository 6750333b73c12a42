"""Write a model as one ONNX file for other runtimes.

The graph takes decoded images and returns finished maps: normalisation, resizing,
windows, linear maps and score formulas are those of `EoMT`, traced, with adapters merged and the
statistics of ensembles as constants.

Shape letters: B images, n windows per image, Q queries, M channels of the linear maps, (H, W) sizes
in pixels.
"""

import importlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path

import torch
from packaging.version import Version
from torch import Tensor, nn

from anoseg_d2 import __version__
from anoseg_d2.evaluation.alarm_rate import to_unit
from anoseg_d2.export.check import check_file
from anoseg_d2.export.graph import ExportModel
from anoseg_d2.export.spec import OPSET, Difference, ExportSpec
from anoseg_d2.modeling import scores
from anoseg_d2.modeling.inference import NEUTRAL_KEYS, InferenceOptions
from anoseg_d2.utils.options import keys_of

# A protobuf message is limited to 2 GiB; larger weights go into a file next to the graph.
EXTERNAL_BYTES = 1_800_000_000


def describe(
    model: ExportModel,
    class_names: Iterable[str] | None = None,
    thresholds: Mapping[str, float] | None = None,
    threshold_dataset: str | None = None,
) -> dict[str, str]:
    """Return the metadata that a consumer needs, as the file stores it: plain text or JSON.

    Args:
        model: the exported module.
        class_names: K names.
        thresholds: {score: threshold at 95 % TPR}, from an evaluation.
        threshold_dataset: the dataset that was evaluated.
    """
    inner, spec, options = model.model, model.spec, model.model.inference
    parts = {part for name in spec.scores for part in scores.ensemble_parts(name) if "+" in name}
    height, width = ("height", "width") if spec.any_size else spec.image_size or inner.image_size
    keys = zip(keys_of("", InferenceOptions), fields(InferenceOptions), strict=False)
    # They follow from the image where that may have any size.
    plan = {k: [getattr(p, k) for p in model.plans] for k in ("resized", "origins", "flipped")}
    if len(model.plans) == 1:
        plan = {key: value for key, (value,) in plan.items()}
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
        **(dict.fromkeys(plan) if spec.any_size else plan),
        "score_statistics": {name: inner.info.score_statistics[name] for name in sorted(parts)},
        "settings": {k: getattr(options, f.name) for k, f in keys if k not in NEUTRAL_KEYS},
        "thresholds_dataset": json.dumps(threshold_dataset),
        "precision": spec.precision,
        "weights_sha256": model.weights_sha256,
        **_thresholds(model, dict(thresholds or {})),
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }


def _thresholds(model: ExportModel, tpr95: dict[str, float]) -> dict[str, dict]:
    """Return both kinds of thresholds, of an evaluation and of `anoseg threshold`, for the file."""
    promised = {}
    for name in model.spec.scores:
        record = dict(model.model.info.thresholds.get(name, {}))
        if record and model.spec.unit_scale:  # what the file gives is on another scale
            at = record["threshold"], record["median"]
            if name in tpr95:
                tpr95[name] = float(to_unit(tpr95[name], *at))
            median = float(to_unit(record["median"], *at))
            record |= {"threshold": 0.5, "median": median, "unit_scale": True}
        promised |= {name: record} if record else {}
    return {"thresholds_tpr95": tpr95, **({"thresholds": promised} if promised else {})}


def export_model(
    model: nn.Module,
    output,
    spec: ExportSpec,
    *,
    class_names: Iterable[str] | None = None,
    thresholds: Mapping[str, float] | None = None,
    threshold_dataset: str | None = None,
    check_image: Tensor | None = None,
    tolerance: float | None = None,
    external_bytes: int = EXTERNAL_BYTES,
) -> list[Difference]:
    """Write a model to a file, which is kept only if its outputs match those of the model.

    Args:
        model: EoMT in eval mode on the CPU.
        output: file to write; ONNX weights of more than `external_bytes` go to `<output>.data`.
        spec: inputs and outputs of the file.
        class_names: K names, stored in the file.
        thresholds: {score: threshold at 95 % TPR}, stored in the file.
        threshold_dataset: the dataset that they hold for, stored too.
        check_image: (3, H, W) uint8 RGB that the check uses, resized as needed; None for a drawn
            one.
        tolerance: largest allowed difference of a score; None for the defaults of `check.py`.
    Returns:
        differences of each output, for each checked input.
    Raises:
        ValueError: unknown scores, ensembles without statistics, an old torch.
        FileNotFoundError: the folder of `output` does not exist.
        ModuleNotFoundError: a package that ONNX needs is missing.
        ExportCheckError: a difference is above the tolerance; the file is not kept.
    """
    output = Path(output)
    if output.exists() and not output.is_file():
        raise ValueError(f"{output} exists and is not a regular file; choose another name")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output}: the folder {output.parent} does not exist")
    if Version(torch.__version__) < Version("2.6"):
        raise ValueError(f"export needs torch 2.6 or newer; this is {torch.__version__}")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"ONNX export needs {package} ({error}): pip install -e '.[export]'"
            ) from error
    assert not model.training, "export takes a model in eval mode"
    wrapped = ExportModel(model, spec).eval()
    metadata = describe(wrapped, class_names, thresholds, threshold_dataset)
    try:
        work = tempfile.TemporaryDirectory(dir=output.parent, prefix=".export")
    except OSError as error:  # which names a folder that nobody asked for
        raise OSError(error.errno, error.strerror, str(output)) from error
    with work as folder:
        partial = Path(folder) / output.name
        program = trace(wrapped)
        write_onnx(program, partial, wrapped, metadata, external_bytes)
        if spec.int8:
            _quantize(partial)
        del wrapped, program
        differences = check_file(partial, model, spec, check_image, tolerance)
        publish(Path(folder), output)
    return differences


@torch.no_grad()
def trace(model: ExportModel) -> torch.export.ExportedProgram:
    """Trace for the shapes that the spec leaves open."""
    spec = model.spec
    batch = torch.export.Dim("batch")
    height, width = spec.image_size or model.plans[0].window
    if not spec.any_size:
        image = torch.zeros(spec.batch or 2, 3, height, width, dtype=getattr(torch, spec.input))
        dims = {} if spec.batch else {0: batch}
        return torch.export.export(model, (image,), dynamic_shapes={"image": dims})
    crops = torch.zeros(2, 3, height, width)
    # A size other than the window's, or the tracer could take the two for equal.
    maps = torch.zeros(len(model.plans), model.count_maps(), height + 3, 2 * width + 5)
    sides = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    shapes = {"image": {0: batch}, "maps": sides}
    return torch.export.export(model, (crops, maps), dynamic_shapes=shapes)


def write_onnx(
    program, path: Path, model: ExportModel, metadata: dict, external_bytes: int
) -> None:
    """Translate a traced program to ONNX, and write it with its metadata."""
    spec, options = model.spec, model.model.inference
    names = ["window_maps", *spec.outputs] if spec.any_size else spec.outputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        converted = torch.onnx.export(
            program, opset_version=OPSET, dynamo=True, output_names=names, verbose=False
        )
    graph = converted.model.graph
    _name_dimensions(graph)
    if spec.any_size:
        from anoseg_d2.export.any_size import add_any_size  # it needs onnx, which is optional

        add_any_size(
            graph,
            model.model.image_size,
            spec.input,
            overlap=options.window_overlap,
            flip=options.flip,
            scales=options.scales,
            weights=tuple(weights.numpy() for weights in model.plans[0].weights),
        )
    converted.model.metadata_props.update({**metadata, "opset": str(OPSET)})
    size = sum(value.const_value.nbytes for value in graph.initializers.values())
    converted.save(path, external_data=size > external_bytes)


def _quantize(path: Path) -> None:
    """Replace the weights of linear layers in an ONNX file with 8-bit ones, in place."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = path.with_name(f"plain-{path.name}")
    weights = path.with_name(f"{path.name}.data")
    os.replace(path, plain)
    quantize_dynamic(
        plain,
        path,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,  # rows of a trained layer differ too much in scale to share one
        weight_type=QuantType.QInt8,
        # CPUs without VNNI add two products in 16 bits, which overflows for weights of 8 bits;
        # with 7 bits, a file gives the same result on every CPU.
        reduce_range=True,
        use_external_data_format=weights.exists(),
    )
    plain.unlink()


def _name_dimensions(graph) -> None:
    """Replace the tracer's symbols of open dimensions with their names."""
    first, last = graph.inputs[0].shape, graph.inputs[-1].shape
    named = {str(last[2]): "height", str(last[3]): "width", str(first[0]): "batch"}
    for value in [*graph.inputs, *graph.outputs]:
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int):
                value.shape[axis] = named[str(size)]


def publish(folder: Path, output: Path) -> None:
    """Move the written files to their place, the graph last, and delete outdated weights."""
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: name == output.name)
    for name in names:
        os.replace(folder / name, output.parent / name)
    weights = f"{output.name}.data"
    if weights not in names:
        (output.parent / weights).unlink(missing_ok=True)
