"""The losses of 20 steps of every stage, as its shipped config trains, are those on record.

A change that should not alter numbers proves it here; one that should shows what it alters in the
diff of `tests/assets/losses/`, which this command writes anew:

    ANOSEG_WRITE_GOLDEN=1 python -m pytest tests/engine/test_golden_losses.py
"""

import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from PIL import Image

from anoseg_d2.config import load_config
from anoseg_d2.engine import Trainer, check_inputs

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "assets" / "losses"
# Stage to the one whose checkpoint it starts from.
STAGES = {
    "eomt_baseline": "",
    "logitnorm": "eomt_baseline",
    "arcface": "eomt_baseline",
    "arcface_full": "arcface",
    "arcface_lora": "arcface",
}
CARD = """
name: golden
root: "{root}"
images: "images/{{id}}.png"
labels: "labels/{{id}}.png"
classes: cityscapes
label_values: {{0: road, 2: building, 8: vegetation, 10: sky, 13: car}}
anomaly: 254
void: [255]
"""
# A model of 50,000 weights on 32 pixels; everything else is as the stage's config says.
TINY = {
    **{"MODEL.DEVICE": "cpu", "MODEL.EOMT.SIZE": "S", "MODEL.EOMT.DEPTH": 3},
    **{"MODEL.EOMT.WIDTH": 32, "MODEL.EOMT.HEADS": 2, "MODEL.EOMT.NUM_QUERIES": 8},
    **{"MODEL.EOMT.NUM_BLOCKS": 2, "MODEL.CRITERION.MATCH_POINTS": 64},
    **{"MODEL.CRITERION.LOSS_POINTS": 64, "INPUT.CROP_SIZE": (32, 32), "DATASETS.TEST": ()},
    # Float32, whose rounding is nearly the same on every CPU.
    **{"SOLVER.AMP.ENABLED": False, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.MAX_ITER": 20},
    **{"DATALOADER.NUM_WORKERS": 0, "SEED": 0},
}


class Recorder(HookBase):
    """Keep the losses of every step: the total and those of the last prediction."""

    names = ("total_loss", "loss_mask", "loss_dice", "loss_class")

    def __init__(self):
        self.rows: list[list[float]] = []

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.rows.append([latest[name][0] for name in self.names])


def write_images(folder: Path) -> Path:
    """Write eight images of coloured blocks, half of them with a pasted object; return the card."""
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for index in range(8):
        label = rng.choice([0, 2, 8, 10, 13], size=(4, 6)).astype(np.uint8)
        label = label.repeat(12, axis=0).repeat(12, axis=1)
        if index % 2:
            label[20:36, 10:40] = 254
        label[-4:] = 255
        image = np.stack([label, 255 - label, label // 2], axis=-1)
        noise = rng.integers(-20, 20, size=image.shape)
        image = (image.astype(np.int64) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(label).save(folder / "labels" / f"{index}.png")
    card = folder / "card.yaml"
    card.write_text(CARD.format(root=folder))
    return card


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Stage to its rows of losses; every stage starts from the one before, as in a real run."""
    folder = tmp_path_factory.mktemp("golden")
    card = write_images(folder / "data")
    found = {}
    for stage, start in STAGES.items():
        options = {
            **TINY,
            "DATASETS.CARDS": [str(card)],
            "DATASETS.TRAIN": ("golden",),
            "MODEL.WEIGHTS": str(folder / start / "model_final.pth") if start else "",
            "OUTPUT_DIR": str(folder / stage),
        }
        # Stages 1 and 2 know no anomaly: there, pasted objects are void.
        if "full" not in stage and "lora" not in stage:
            plain = folder / "data" / "plain.yaml"
            text = card.read_text().replace("name: golden", "name: golden_plain")
            plain.write_text(text.replace("anomaly: 254\n", "").replace("[255]", "[254, 255]"))
            options |= {"DATASETS.CARDS": [str(plain)], "DATASETS.TRAIN": ("golden_plain",)}
        cfg = load_config(
            str(ROOT / "configs" / f"{stage}.yaml"), [x for pair in options.items() for x in pair]
        )
        cfg.freeze()
        check_inputs(cfg, training=True)
        seed_all_rng(cfg.SEED)  # as train_net.py does: new weights are drawn from it
        trainer = Trainer(cfg)
        recorder = Recorder()
        trainer.register_hooks([recorder])
        trainer.resume_or_load(resume=False)
        trainer.train()
        found[stage] = recorder
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_losses_of_twenty_steps_are_those_on_record(losses, stage):
    recorder, path = losses[stage], GOLDEN / f"{stage}.txt"
    if os.environ.get("ANOSEG_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        lines = [" ".join(f"{value:.6g}" for value in row) for row in recorder.rows]
        path.write_text("\n".join(["# " + " ".join(recorder.names), *lines]) + "\n")
    text = path.read_text()
    assert text.splitlines()[0].split()[1:] == list(recorder.names)
    assert len(recorder.rows) == 20
    np.testing.assert_allclose(recorder.rows, np.loadtxt(path), rtol=2e-3, atol=1e-3)
