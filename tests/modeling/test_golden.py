"""Losses and gradients of small models equal those on record, whatever was made faster since.

After a change that means to alter them, `PYTHONPATH=tests python tests/modeling/test_golden.py`
records them again.
"""

import json
from pathlib import Path

import pytest
import tiny_models
import torch

RECORD = Path(__file__).parent / "golden" / "training.json"

# name: (head, options of `tiny_eomt`, progress of the run, options of the criterion)
CASES = {
    "stage 1, masks": ("linear", {}, 0.0, {}),
    "stage 1, annealing": ("linear", {}, 0.3, {}),
    "stage 1, drawn points": ("linear", {"num_blocks": 1}, 1.0, {"match_points": 50}),
    "LogitNorm": ("logit_norm", {"masked_attention": False}, 0.5, {}),
    "ArcFace, anomaly, void excluded": (
        "arcface",
        {"has_anomaly": True, "masked_attention": False},
        0.5,
        {"void": "exclude", "outlier_weight": 1.0},
    ),
    "LoRA": (
        "arcface",
        {"has_anomaly": True, "masked_attention": False, "lora": {"dropout": 0.0}},
        0.5,
        {"void": "exclude"},
    ),
    "LoRA on some layers": ("linear", {"lora": {"dropout": 0.0, "targets": ("q", "fc2")}}, 0.0, {}),
    "DINOv3": ("linear", {"vit": {"backbone": "dinov3"}, "masked_attention": False}, 0.0, {}),
}


def figures(name):
    """Losses, and for each parameter's gradient two sums that any change of it would move."""
    head, options, progress, criterion = CASES[name]
    torch.manual_seed(0)
    classes = 3 + options.get("has_anomaly", False)
    model = tiny_models.tiny_eomt(
        head, **options, criterion=tiny_models.tiny_criterion(classes, **criterion)
    )
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.train().set_progress(progress)
    torch.manual_seed(1)
    losses = model(tiny_models.tiny_batch(num_classes=classes))
    sum(losses.values()).backward()
    gradients = {}
    for parameter_name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad.double().flatten()
            weights = torch.linspace(-1, 1, len(grad), dtype=torch.float64)
            gradients[parameter_name] = [grad.norm().item(), (grad @ weights).item()]
    return {
        "losses": {key: value.item() for key, value in losses.items()},
        "gradients": gradients,
    }


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_on_record(name):
    expected, found = json.loads(RECORD.read_text())[name], figures(name)
    assert list(found["losses"]) == list(expected["losses"])
    for key, value in expected["losses"].items():
        assert found["losses"][key] == pytest.approx(value, rel=1e-5), key
    assert list(found["gradients"]) == list(expected["gradients"])
    for key, (norm, projection) in expected["gradients"].items():
        # A projection may cancel: its rounding is that of the norm.
        assert found["gradients"][key][0] == pytest.approx(norm, rel=1e-4, abs=1e-7), key
        tolerance = 1e-4 * norm * 10 + 1e-7
        assert found["gradients"][key][1] == pytest.approx(projection, abs=tolerance), key


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(figures(name))}" for name in CASES]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
