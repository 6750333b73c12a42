"""Small whole runs for tests of the engine: a dataset of four images, five steps."""

from pathlib import Path

import tiny_models
import torch
from PIL import Image

CARD = """
name: {name}
root: "{root}"
images: "images/{{id}}.png"
labels: "labels/{{id}}.png"
classes: [road, car, sky]
label_values: {{0: road, 1: car, 2: sky}}
void: [255]
"""


def write_dataset(folder: Path, name: str, count: int = 4) -> Path:
    """Write images, labels and a card; returns the card's path."""
    for part in ("images", "labels"):
        (folder / "data" / part).mkdir(parents=True, exist_ok=True)
    for index, sample in enumerate(tiny_models.tiny_batch(count)):
        image = sample["image"].permute(1, 2, 0).numpy()
        Image.fromarray(image).save(folder / "data" / "images" / f"{index}.png")
        label = sample["sem_seg"].to(torch.uint8).numpy()
        Image.fromarray(label).save(folder / "data" / "labels" / f"{index}.png")
    card = folder / "card.yaml"
    card.write_text(CARD.format(name=name, root=folder / "data"))
    return card


def small_run(
    folder: Path, output: str = "run", *overrides, tested: bool = False, anomaly: bool = False
):
    """Config of a run on `write_dataset`; `tested` also evaluates it.

    `anomaly` makes the third class the unknown one, as if it had been pasted.
    """
    name = f"engine_{folder.name}"
    card = write_dataset(folder, name)
    if anomaly:
        text = card.read_text().replace("[road, car, sky]", "[road, car]")
        card.write_text(text.replace(", 2: sky}", "}\nanomaly: 2"))
        overrides = ("MODEL.EOMT.NUM_CLASSES", 2, *overrides)
    return tiny_models.tiny_cfg(
        *("SOLVER.BASE_LR", 1e-3, "SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 1000),
        *("OUTPUT_DIR", str(folder / output), "DATASETS.CARDS", [str(card)]),
        *("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,) if tested else ()),
        *("SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0),
        *("TEST.ANOMALY.REPORT_IMAGES", False),
        *overrides,
    )
