"""Write the model card of a folder for the Hugging Face hub: README.md with its front matter."""

from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from anoseg_d2 import __version__
from anoseg_d2.checkpoint.metadata import weights_hash
from anoseg_d2.checkpoint.spec import Checkpoint, ModelSpec
from anoseg_d2.utils.constants import VIT_SIZES

__all__ = ["guess_base_model", "model_card"]

_SIZE_NAMES = {"S": "small", "B": "base", "L": "large", "G": "giant"}
_SHOWN = {"auprc": "AUPRC", "fpr95": "FPR95", "mean_F1": "mean F1"}
_TAGS = ("anomaly-segmentation", "out-of-distribution-detection", "road-scenes", "eomt")


def guess_base_model(spec: ModelSpec, source: str) -> str | None:
    """Return the hub name of the model that this one was probably trained from.

    Args:
        spec: of the checkpoint.
        source: where it was read from; a checkpoint of the hub is its own base.
    Returns:
        None for a ViT of a size that nobody released.
    """
    if source.startswith("hf://"):
        return source[len("hf://") :].partition("@")[0]
    sizes = ((name, VIT_SIZES[name]) for name in VIT_SIZES)
    fits = (name for name, s in sizes if (s.depth, s.width) == (spec.depth, spec.width))
    size = next(fits, None)
    if size is None:
        return None
    if spec.backbone == "dinov3":
        return f"facebook/dinov3-vit{size.lower()}16-pretrain-lvd1689m" if size != "G" else None
    registers = "with-registers-" if spec.num_registers else ""
    return f"facebook/dinov2-{registers}{_SIZE_NAMES[size]}"


def model_card(
    checkpoint: Checkpoint,
    name: str,
    results: Mapping[str, Any] | None = None,
    *,
    license: str | None = None,
    base_model: str | None = None,
    approximated: bool = False,
) -> str:
    """Describe a model for people who find it on the hub.

    Args:
        checkpoint: what was converted.
        name: OWNER/NAME on the hub, or only a name.
        results: contents of results.json; None where nothing was evaluated.
        license: identifier of the hub, such as apache-2.0; None says that it is unknown.
        base_model: hub name of what it was trained from; None leaves it out.
        approximated: whether the class head was written as the nearest linear one.
    Returns:
        Markdown with yaml front matter.
    """
    spec = checkpoint.spec
    data = ModelCardData(
        license=license or "unknown",
        library_name="transformers",
        pipeline_tag="image-segmentation",
        base_model=base_model,
        tags=[*_TAGS, *filter(None, [spec.backbone])],
        model_name=name.split("/")[-1],
        eval_results=None if approximated else _eval_results(results),
    )
    parts = [
        f"---\n{data.to_yaml().strip()}\n---",
        f"# {name.split('/')[-1]}",
        _about(checkpoint, approximated),
        "## Figures",
        *_figures(results, approximated),
        "## Use",
        _use(name),
        "## Details",
        _details(checkpoint, results),
    ]
    return "\n\n".join(parts) + "\n"


def _eval_results(results: Mapping[str, Any] | None) -> list[EvalResult] | None:
    found = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Anomaly segmentation",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=figure,
            metric_name=f"{_SHOWN[figure]} ({score})",
            metric_value=round(entry[figure], 2),
        )
        for dataset, score, entry in _rows(results)
        for figure in _SHOWN
        if entry.get(figure) is not None
    ]
    return found or None


def _rows(results: Mapping[str, Any] | None):
    """Yield (dataset, score, figures) of every anomaly set."""
    for dataset, found in (results or {}).get("datasets", {}).items():
        for score, entry in found.get("scores", {}).items():
            yield dataset, score, entry


def _about(checkpoint: Checkpoint, approximated: bool) -> str:
    spec = checkpoint.spec
    backbone = "DINOv3" if spec.backbone == "dinov3" else "DINOv2"
    text = (
        f"Segments road scenes into {spec.num_known} known classes, and scores for every pixel how "
        f"likely it shows something that is none of them. The model is EoMT (arXiv:2503.19108), "
        f"which classifies masks inside a plain {backbone} ViT"
        + (", with a learned anomaly class." if spec.has_anomaly else ".")
    )
    if approximated:
        text += (
            f"\n\n**The class head is an approximation.** The original `{spec.head}` head "
            "normalises every query, which this format cannot express. Masks and mostly the best "
            "class stay, but class probabilities change, and with them every anomaly score."
        )
    return text


def _figures(results: Mapping[str, Any] | None, approximated: bool) -> list[str]:
    rows = list(_rows(results))
    closed = (results or {}).get("closed_set", {})
    if not rows and not closed:
        return ["No evaluation came with these weights."]
    parts = []
    if approximated:
        parts.append("Of the original model, before its class head was approximated:")
    if rows:
        lines = [
            f"| dataset | score | {' | '.join(_SHOWN.values())} | threshold at 95 % TPR |",
            f"|---|---|{'---|' * (len(_SHOWN) + 1)}",
        ]
        for dataset, score, entry in rows:
            threshold = (entry.get("tpr_thresholds") or {}).get("95")
            shown = [_number(entry.get(figure)) for figure in _SHOWN]
            shown.append("" if threshold is None else f"{threshold:.6g}")
            lines.append(f"| {dataset} | `{score}` | {' | '.join(shown)} |")
        parts += [
            "\n".join(lines),
            "Percentages. A pixel is anomalous where its score is at least the threshold. The "
            "threshold of mean F1 is the best one on the same labels.",
        ]
    for dataset, entry in closed.items():
        parts.append(f"{dataset}: mIoU {_number(entry.get('mIoU')) or 'not measured'} %.")
    return parts


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _use(name: str) -> str:
    source = f"hf://{name}" if "/" in name else name  # not uploaded yet: the folder's name
    return f"""Anomaly scores and segmentation, with anoseg_d2:

```python
from anoseg_d2 import AnomalyPredictor

predictor = AnomalyPredictor.from_pretrained("{source}")
result = predictor("street.jpg")
result["scores"]["rba"]  # (H, W) float32, higher is more anomalous
result["sem_seg"]        # (H, W) known class of every pixel
```

Only the segmentation, with transformers:

```python
from transformers import pipeline

segments = pipeline("image-segmentation", "{name}")("street.jpg", subtask="semantic")
```"""


def _details(checkpoint: Checkpoint, results: Mapping[str, Any] | None) -> str:
    spec = checkpoint.spec
    model = (results or {}).get("model") or {}
    classes = ", ".join(spec.class_names or []) or f"{spec.num_known}, without names"
    rows = {
        "classes": classes,
        "anomaly class": "yes" if spec.has_anomaly else "no",
        "class head of the training": spec.head,
        "ViT": f"{spec.depth} blocks, width {spec.width}, patches of {spec.patch_size} pixels",
        "window": spec.image_size and "{} x {} pixels".format(*spec.image_size),
        "queries": spec.num_queries,
        "trained on": ", ".join(_trained_on(results)),
        "weights before conversion, sha256": weights_hash(checkpoint.state_dict),
        "weights of the figures, sha256 of the file": model.get("weights_file_sha256"),
        "converted by": f"anoseg_d2 {__version__}",
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items() if value]
    return "\n".join(["| | |", "|---|---|", *lines])


def _trained_on(results: Mapping[str, Any] | None) -> list[str]:
    """Return the training sets that the config of the evaluated run names."""
    try:
        config = yaml.safe_load((results or {}).get("config") or "")
        return [str(name) for name in config["DATASETS"]["TRAIN"]]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return []  # evaluated without a config, such as score maps
