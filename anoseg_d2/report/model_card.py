"""Write the model card (README.md with front matter) of a folder for the Hugging Face hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from anoseg_d2 import __version__
from anoseg_d2.checkpoint.metadata import weights_hash
from anoseg_d2.checkpoint.spec import Checkpoint, ModelSpec
from anoseg_d2.report.tables import markdown_escaped, one_line
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
    sizes = VIT_SIZES.items()
    size = next((n for n, s in sizes if (s.depth, s.width) == (spec.depth, spec.width)), None)
    if size is None or (spec.backbone == "dinov3" and size == "G"):  # never released
        return None
    if spec.backbone == "dinov3":
        return f"facebook/dinov3-vit{size.lower()}16-pretrain-lvd1689m"
    registers = "with-registers-" if spec.num_registers else ""
    return f"facebook/dinov2-{registers}{_SIZE_NAMES[size]}"


def model_card(
    checkpoint: Checkpoint,
    name: str,
    results: Mapping[str, Any] | None = None,
    *,
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """Describe a model for people who find it on the hub.

    Args:
        checkpoint: what was converted.
        name: OWNER/NAME on the hub, or only a name.
        results: contents of results.json; None where nothing was evaluated.
        license: identifier of the hub, such as apache-2.0; None says that it is unknown.
        base_model: hub name of what it was trained from; None leaves it out.
    Returns:
        Markdown with yaml front matter.
    """
    results, title = results or {}, name.split("/")[-1]
    sets = results.get("datasets", {}).items()
    rows = [(d, s, entry) for d, found in sets for s, entry in found.get("scores", {}).items()]
    data = ModelCardData(
        license=license or "unknown",
        library_name="transformers",
        pipeline_tag="image-segmentation",
        base_model=base_model,
        tags=[*_TAGS, *filter(None, [checkpoint.spec.backbone])],
        model_name=title,
        eval_results=_eval_results(rows) or None,
    )
    source = f"hf://{name}" if "/" in name else name  # not uploaded yet: the folder's name
    card = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("model_card.md")),
        title=title,
        spec=checkpoint.spec,
        rows=rows,
        closed_sets=results.get("closed_set", {}),
        figures=_SHOWN,
        source=_quoted(source),
        hub_name=_quoted(name),
        trained_on=_trained_on(results),
        weights=weights_hash(checkpoint.state_dict),
        evaluated=(results.get("model") or {}).get("weights_file_sha256"),
        version=__version__,
        # Names come from strangers: of datasets, scores and classes.
        text=markdown_escaped,
        number=lambda value: "" if value is None else f"{value:.2f}",
    )
    return str(card)


def _eval_results(rows: list[tuple[str, str, dict]]) -> list[EvalResult]:
    """Return the figures in the form that the hub reads from the front matter."""
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Anomaly segmentation",
            dataset_type=one_line(dataset),
            dataset_name=one_line(dataset),
            metric_type=figure,
            metric_name=f"{_SHOWN[figure]} ({one_line(score)})",
            metric_value=round(entry[figure], 2),
        )
        for dataset, score, entry in rows
        for figure in _SHOWN
        if entry.get(figure) is not None
    ]


def _quoted(name: str) -> str:
    """Return a Python string literal that cannot end the code block around it."""
    return json.dumps(one_line(name).replace("`", "'"), ensure_ascii=False)


def _trained_on(results: Mapping[str, Any]) -> list[str]:
    """Return the training sets that the config of the evaluated run names."""
    try:
        return list(map(str, yaml.safe_load(results.get("config") or "")["DATASETS"]["TRAIN"]))
    except (yaml.YAMLError, KeyError, TypeError):
        return []  # evaluated without a config, such as score maps
