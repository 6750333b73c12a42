"""Draw the figures of the page: curves, sheets of images and confusion matrices."""

import base64
import contextlib
import io
import json
import math

import matplotlib
import numpy as np
from detectron2.data import MetadataCatalog
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from anoseg_d2.data.class_colors import class_colors
from anoseg_d2.evaluation.run_folder import dataset_folder
from anoseg_d2.evaluation.samples import load_samples
from anoseg_d2.report.runs import Run, loss_kinds
from anoseg_d2.utils.constants import (
    ANOMALY,
    ANOMALY_COLOR,
    ANOMALY_COLORS,
    CITYSCAPES_CLASSES,
    KNOWN,
    VOID,
)
from anoseg_d2.utils.visualization import anomaly_palette, color_classes, score_range

# Told apart by people with any colour vision.
_COLORS = (
    "#0b84d8", "#e8710a", "#12a37f", "#d6409f", "#8e6ee8",
    "#b58900", "#d13438", "#5a9e1b", "#6b7785", "#00a5b5",
)  # fmt: skip
# The ROC's axis is logarithmic: what matters on a road is a false positive rate near 0.
_LOWEST_RATE = 1e-4
_LABELS = {"known": KNOWN, "anomaly": ANOMALY, "void": VOID}
# Text stays text, and the same curves give the same bytes.
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "anoseg_d2", "font.size": 9}


def _uri(figure: Figure, form: str) -> str:
    stream = io.BytesIO()
    # The date would make equal curves different bytes; photographs as png would be several MB.
    more = {"metadata": {"Date": None}} if form == "svg+xml" else {"pil_kwargs": {"quality": 75}}
    figure.savefig(stream, format=form.removesuffix("+xml"), dpi=110, **more)
    return f"data:image/{form};base64," + base64.b64encode(stream.getvalue()).decode()


def _text(name: str) -> str:
    """Return a name as matplotlib shows it, which would read a "$" as mathematics."""
    return name.encode(errors="backslashreplace").decode().replace("$", r"\$")


def roc_and_pr(runs: list[Run], dataset: str) -> str | None:
    """Draw the precision-recall and ROC curves of an anomaly set.

    Args:
        runs: all overlaid. Of several, each is shown by its best score on this set.
        dataset: its name.
    Returns:
        data URI of an svg; None where no run has a curve.
    """
    lines = []
    for number, run in enumerate(runs):
        curves = {s: c for s, c in run.curves().get(dataset, {}).items() if c}
        figures = {score: run.figure(dataset, score, "auprc") for score in curves}
        if len(runs) > 1:
            best = sorted(curves, key=lambda score: figures[score].value or -1.0)[-1:]
            curves = {score: curves[score] for score in best}
        for place, (score, curve) in enumerate(curves.items()):
            color = _COLORS[(number if len(runs) > 1 else place) % len(_COLORS)]
            label = f"{run.name}, {score}" if len(runs) > 1 else score
            lines.append((f"{label}: {figures[score].text()}", color, curve))
    if not lines:
        return None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for label, color, curve in lines:
            pairs = zip(curve["recall"], curve["precision"], strict=True)
            recall, precision = zip(*[pair for pair in pairs if pair[0] > 0], strict=True)
            # The precision at a recall holds back to the recall before it.
            precision = [precision[0], *precision]
            left.step([0, *recall], precision, color=color, clip_on=False)
            fpr = np.maximum([0.0, *curve["fpr"], 1.0], _LOWEST_RATE)
            right.plot(fpr, [0.0, *curve["recall"], 1.0], color=color, label=_text(label))
        left.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision")
        right.set(xscale="log", xlim=(_LOWEST_RATE, 1), ylim=(0, 1))
        right.set(xlabel="false positive rate", ylabel="true positive rate")
        right.axhline(0.95, color="grey", linestyle="--", linewidth=0.8)
        for axes in (left, right):
            axes.grid(alpha=0.25)
        figure.legend(loc="outside lower center", ncols=2, title="AUPRC, percent")
        return _uri(figure, "svg+xml")


def training_curves(run: Run) -> str | None:
    """Draw the losses and learning rates of a training over its steps.

    Returns:
        data URI of an svg; None where the run's folder has no metrics.json with losses.
    """
    file, rows = run.folder and run.folder / "metrics.json", {}
    for line in file.read_text().splitlines() if file and file.is_file() else ():
        with contextlib.suppress(ValueError):  # a killed run may have left half a line
            row = json.loads(line)
            # A resumed run has done some steps twice: the later ones are those of its weights.
            rows |= {row["iteration"] + 1: row} if "total_loss" in row else {}
    steps = sorted(rows)[:: 1 + len(rows) // 500]  # more points would not be seen
    if not steps:
        return None
    losses = [{"all": rows[step]["total_loss"], **loss_kinds(rows[step])} for step in steps]
    rates = [{k[3:]: v for k, v in rows[step].items() if k.startswith("lr/")} for step in steps]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, values in ((left, losses), (right, rates)):
            for color, name in zip(_COLORS, values[-1], strict=False):
                curve = [value.get(name, math.nan) for value in values]
                few = "." if len(steps) < 30 else ""  # a line of one point is not seen
                axes.plot(steps, curve, few + "-", color=color, label=_text(name))
            axes.set(xlabel="step", xlim=(0, steps[-1] + 1))
            axes.grid(alpha=0.25)
            if values[-1]:
                axes.legend()
        left.set(title="Losses", ylabel="weighted loss, summed over predictions", yscale="log")
        right.set(title="Learning rates", ylabel="highest rate of each kind of parameters")
        return _uri(figure, "svg+xml")


def run_classes(run: Run) -> tuple[list[str], np.ndarray]:
    """Return the names of a run's classes, with the anomaly after them, and a (256, 3) palette.

    A model of another dataset than Cityscapes has classes of its own. Its closed set knows their
    names and colours, if one with as many classes was evaluated.
    """
    closed = {n: list(r["result"].get("IoU", {})) for n, r in run.of_kind("closed_set").items()}
    count = run.model.get("num_known")
    if not isinstance(count, int) or not 0 < count < VOID:  # older versions did not write it
        count = max([len(CITYSCAPES_CLASSES), *map(len, closed.values())])
    fitting = next((name for name, classes in closed.items() if len(classes) == count), None)
    colors = MetadataCatalog.get(fitting).get("stuff_colors", None) if fitting else None
    names, palette = class_colors(count, closed.get(fitting), colors)
    palette[count] = ANOMALY_COLOR
    return [*names, "anomaly"], palette


def image_sheet(run: Run, dataset: str) -> str | None:
    """Draw the sample images of a dataset, with label, prediction and the run's best score.

    Returns:
        data URI of a WebP; None where the run kept no images.
    """
    if run.folder is None or dataset not in run.records:
        return None
    samples = load_samples(dataset_folder(run.folder, dataset) / "images")
    if not samples:
        return None
    kept, best = list(samples.values()), run.best_score()
    closed = run.records[dataset]["kind"] == "closed_set"
    names, palette = run_classes(run)
    label_palette = palette if closed else anomaly_palette()
    legend = {} if closed else {name: ANOMALY_COLORS[value] for name, value in _LABELS.items()}
    columns = {
        "photograph": [sample["photo"] for sample in kept],
        "label": [color_classes(sample["label"], label_palette) for sample in kept],
    }
    classes = [sample["label"] for sample in kept] if closed else []
    if all(sample["sem_seg"] is not None for sample in kept):
        classes += [sample["sem_seg"] for sample in kept]
        columns["prediction"] = [color_classes(sample["sem_seg"], palette) for sample in kept]
    occurring = set().union(*(np.unique(values).tolist() for values in classes))
    legend |= {_text(names[i]): palette[i] for i in sorted(occurring) if i < len(names)}
    ends = None
    if all(best in sample["scores"] for sample in kept):
        columns[_text(best)] = [sample["scores"][best].astype(np.float32) for sample in kept]
        ends = score_range(columns[_text(best)])  # one scale for all images
    return _grid(list(samples), columns, legend, ends)


def _grid(rows: list[str], columns: dict[str, list], legend: dict, ends: tuple | None) -> str:
    """Draw pictures in rows and columns with their names; a last column of scores has a scale."""
    height, width = columns["label"][0].shape[:2]
    size = (3 * len(columns), 0.8 + 3 * height / width * len(rows))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        lowest, highest = ends or (None, None)
        for places, (title, pictures) in zip(grid.T, columns.items(), strict=True):
            places[0].set_title(title)
            for place, picture in zip(places, pictures, strict=True):
                # Colours stay as they are; only scores take the map and its ends.
                drawn = place.imshow(picture, "inferno", vmin=lowest, vmax=highest)
                place.set(xticks=[], yticks=[])
        for place, name in zip(grid[:, 0], rows, strict=True):
            place.set_ylabel(_text(name)[:30], fontsize=7)
        if ends:
            figure.colorbar(drawn, ax=grid[:, -1].tolist(), label=title, shrink=0.8)
        patches = [Patch(color=np.array(color) / 255, label=name) for name, color in legend.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(7, len(patches)))
        return _uri(figure, "webp")


def confusion_matrix(record: dict) -> str | None:
    """Draw which classes a closed set's pixels were taken for.

    Args:
        record: of a closed set.
    Returns:
        data URI of a WebP; None where the record has no counts.
    """
    if not record.get("confusion"):
        return None
    counts = np.array(record["confusion"], np.float64)
    names = [_text(name) for name in record["result"]["IoU"]]
    # Of the true class: road has a hundred times the pixels of a pole.
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(
            figsize=(2.5 + 0.3 * len(names), 2 + 0.3 * len(names)), layout="constrained"
        )
        axes = figure.subplots()
        drawn = axes.imshow(fractions, "Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="predicted class", ylabel="true class")
        figure.colorbar(drawn, label="fraction of the true class's pixels", shrink=0.8)
        return _uri(figure, "webp")
