"""Config keys, and what a user's mistake in them says."""

import re
from pathlib import Path

import pytest
import yaml

from anoseg_d2.config import load_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.name != "recipe.yaml"  # lists of stages, not configs
)


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.fixture
def write(tmp_path):
    def file(text):
        path = tmp_path / "user.yaml"
        path.write_text(text)
        return str(path)

    return file


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_shipped_config_loads_and_says_only_what_differs_from_its_base(path):
    own = yaml.safe_load((ROOT / path).read_text())
    cfg = load_config(str(ROOT / path))
    base = own.pop("_BASE_", None)
    if base is None:  # a base may spell defaults out
        return
    own.pop("VERSION", None)
    parent = load_config(str((ROOT / path).parent / base))
    for key, _ in flat(own):
        ours, theirs = cfg, parent
        for part in key.split("."):
            ours, theirs = ours[part], theirs[part]
        assert ours != theirs, f"{path}: {key} repeats its base"


def test_overrides_come_after_the_file(write):
    path = write("SOLVER: {MAX_ITER: 10, BASE_LR: 0.5}\nVERSION: 2\n")
    cfg = load_config(path, ["SOLVER.MAX_ITER", "20"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (20, 0.5)


@pytest.mark.parametrize(
    "wrong,right",
    [
        ("MODEL.EOMT.NUM_QUERYS", "MODEL.EOMT.NUM_QUERIES"),
        ("MODEL.LORA.RANKS", "MODEL.LORA.RANK"),
        ("SOLVER.ACUMULATION", "SOLVER.ACCUMULATION"),
        ("MODEL.HEAD.ARCFACE.MARGN", "MODEL.HEAD.ARCFACE.MARGIN"),
    ],
)
def test_a_misspelt_key_names_the_nearest_one(write, wrong, right):
    with pytest.raises(ValueError, match=f"unknown config key {wrong}; did you mean .*{right}"):
        load_config("", [wrong, "1"])
    text = "1"
    for part in reversed(wrong.split(".")):
        text = f"{{{part}: {text}}}"
    with pytest.raises(ValueError, match=f"unknown config key {wrong}; did you mean .*{right}"):
        load_config(write(text + "\n"))


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="--config-file no/such.yaml does not exist"):
        load_config("no/such.yaml")


def test_broken_yaml_names_its_file(write):
    path = write("MODEL: {EOMT: [\n")
    with pytest.raises(ValueError, match=re.escape(path)):
        load_config(path)


def test_a_value_of_the_wrong_type_names_its_key():
    with pytest.raises(ValueError, match="SOLVER.MAX_ITER"):
        load_config("", ["SOLVER.MAX_ITER", "many"])
    with pytest.raises(ValueError, match="MODEL.LORA.ENABLED"):
        load_config("", ["MODEL.LORA.ENABLED", "3"])


def test_a_key_without_value_is_refused():
    with pytest.raises(ValueError, match="KEY VALUE pairs; 'SEED' is alone"):
        load_config("", ["SOLVER.MAX_ITER", "3", "SEED"])


def test_yaml_cannot_run_code(write, tmp_path):
    victim = tmp_path / "made"
    path = write(f"SEED: !!python/object/apply:pathlib.Path.touch [{victim}]\n")
    with pytest.raises(ValueError):
        load_config(path)
    assert not victim.exists()


def test_every_key_of_ours_has_a_default_that_its_part_accepts(tiny_cfg):
    from anoseg_d2.modeling import EoMT
    from anoseg_d2.modeling.criterion import SetCriterion

    cfg = load_config()
    defaults = SetCriterion.from_config(cfg)
    for key, value in vars(SetCriterion(3)).items():
        if key in defaults:
            assert defaults[key] == value, key
    model = EoMT(tiny_cfg())
    assert model.masked_attention and model.annealing_power == 0.9
    assert model.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
