"""A checkpoint of every release loads, and scores the same, forever.

`tests/assets/releases/` holds for each release a tiny model as `<version>.pth` and its scores as
`<version>.json`. Files are added with a release and never changed: if one of these tests fails, a
change of the code broke the checkpoints of users. Add the files of a new release by

    python tests/checkpoint/test_releases.py
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import set_info

import anoseg_d2
from anoseg_d2 import AnomalyPredictor
from anoseg_d2.checkpoint import read_checkpoint, save_weights
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.heads import ArcFaceHead
from anoseg_d2.modeling.lora import inject_lora
from anoseg_d2.modeling.vit import build_vit

FOLDER = Path(__file__).parents[1] / "assets" / "releases"
RELEASES = sorted(path.stem for path in FOLDER.glob("*.pth"))


def image():
    """A picture without any random generator, whose stream a library may change."""
    rows, columns, channels = np.ogrid[:24, :40, :3]
    return ((rows * 7 + columns * 11 + channels * 53 + (rows * columns) % 31) % 256).astype(
        np.uint8
    )


def predict(path):
    predictor = AnomalyPredictor.from_pretrained(str(path), ["MODEL.DEVICE", "cpu"])
    return predictor.model, predictor(image())


@pytest.mark.parametrize("release", RELEASES)
def test_a_released_checkpoint_gives_the_scores_that_it_gave(release):
    golden = json.loads((FOLDER / f"{release}.json").read_text())
    model, result = predict(FOLDER / f"{release}.pth")
    assert set(golden["scores"]) <= set(result["scores"])
    for name, values in golden["scores"].items():
        np.testing.assert_allclose(result["scores"][name][::6, ::8], values, rtol=1e-5, atol=2e-5)
    assert result["sem_seg"][::6, ::8].tolist() == golden["sem_seg"]
    assert {n: list(v) for n, v in model.info.score_statistics.items()} == golden[
        "score_statistics"
    ]


@pytest.mark.parametrize("release", RELEASES)
def test_a_released_checkpoint_says_all_about_itself(release):
    spec = read_checkpoint(FOLDER / f"{release}.pth").spec
    golden = json.loads((FOLDER / f"{release}.json").read_text())
    assert json.loads(json.dumps(spec.known())) == golden["spec"]


def test_this_release_has_its_checkpoint():
    assert anoseg_d2.__version__ in RELEASES


def make(version):
    """Write the files of a release: every part of the format in a model of 4,000 weights."""
    torch.manual_seed(0)
    vit = build_vit("S", image_size=(16, 24), patch_size=8, depth=1, width=8, heads=2)
    inject_lora(vit, rank=1, alpha=3.0, targets=("q", "v", "fc1"))
    head = ArcFaceHead(8, 3, has_anomaly=True, scale=12.0)
    model = EoMT(
        backbone=vit, head=head, num_known=3, has_anomaly=True, num_queries=4, num_blocks=1
    ).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0, 0.3)
        parameter.requires_grad_("lora_" in name or not name.startswith("backbone."))
    set_info(model, class_names=["road", "car", "sky"])
    set_info(model, score_statistics={"rba": (-1.5, 0.25), "anomaly": (0.125, 0.5)})
    path = FOLDER / f"{version}.pth"
    if path.exists():
        raise SystemExit(f"{path} exists: the files of a release never change")
    save_weights(model, path)
    _, result = predict(path)
    golden = {
        "scores": {k: v[::6, ::8].round(6).tolist() for k, v in sorted(result["scores"].items())},
        "sem_seg": result["sem_seg"][::6, ::8].tolist(),
        "score_statistics": model.info.score_statistics,
        "spec": read_checkpoint(path).spec.known(),
    }
    (FOLDER / f"{version}.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    make(sys.argv[1] if len(sys.argv) > 1 else anoseg_d2.__version__)
