"""Configs are found by path and by name; what is not plain yaml is refused."""

from pathlib import Path

import pytest

from anoseg_d2.config import load_config
from anoseg_d2.utils.config_files import find_config, load_yaml, read_yaml, shipped_configs

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


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 50_000,
        "? [1, 2]\n: 3",
        "a: 2020-13-45",
        "a: !!python/object/apply:os.getcwd []",
    ],
    ids=["deep", "list as key", "date", "code"],
)
@pytest.mark.parametrize("read", [load_yaml, read_yaml])
def test_yaml_that_is_not_plain_is_refused_by_name(tmp_path, text, read):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="broken.yaml.*readable"):
        read(path)


def test_aliases_that_stay_small_are_read(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text("a: &a [1, 2]\nb: *a\nc: {d: *a}\n")
    assert load_yaml(path) == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


@pytest.mark.parametrize("base", ["5", "{a: 1}"])
def test_a_base_that_is_not_a_path_is_refused(tmp_path, base):
    path = tmp_path / "child.yaml"
    path.write_text(f"_BASE_: {base}\n")
    with pytest.raises(ValueError, match="child.yaml.*readable"):
        read_yaml(path)


@pytest.mark.parametrize(
    "text,words",
    [
        ("SEEDS: 1\n", "unknown config key SEEDS in .*child.yaml"),
        ("5: 1\n", "unknown config key 5 in .*child.yaml"),
        (f"SEED: {'9' * 5000}\n", "child.yaml.*digits"),
        (f"SOLVER: {{BASE_LR: {'9' * 400}}}\n", "SOLVER.BASE_LR is "),
    ],
)
def test_what_a_file_of_a_stranger_may_hold_is_refused_by_file_or_key(tmp_path, text, words):
    path = tmp_path / "child.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        load_config(str(path))
    assert len(str(caught.value)) < 1000
