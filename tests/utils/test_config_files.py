"""Configs are found by path and by name."""

from pathlib import Path

import pytest

from anoseg_d2.config import load_config
from anoseg_d2.utils.config_files import find_config, shipped_configs

ROOT = Path(__file__).parents[2]


def test_a_shipped_config_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("camvid/arcface").samefile(ROOT / "configs" / "camvid" / "arcface.yaml")
    assert load_config("arcface_lora").MODEL.LORA.ENABLED


def test_a_file_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("arcface_lora").write_text("SEED: 7\n")
    cfg = load_config("arcface_lora")
    assert cfg.SEED == 7 and not cfg.MODEL.LORA.ENABLED


@pytest.mark.parametrize("name", ["arcface_lore", "recipe", "camvid/recipe", "../configs/arcface"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(FileNotFoundError) as caught:
        find_config(name)
    assert f"{name} does not exist" in str(caught.value)
    assert "arcface_lora, camvid/arcface" in str(caught.value)


def test_every_shipped_config_loads():
    names = shipped_configs()
    assert {"eomt_baseline", "quickstart/arcface_full"} <= set(names)
    assert not [name for name in names if "recipe" in name or "Base-" in name]
    for name in names:
        load_config(name)
