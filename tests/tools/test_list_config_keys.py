"""docs/config.md is what the command makes of config.py, and every key has a meaning."""

import subprocess
import sys
from pathlib import Path

import list_config_keys as script
import pytest

ROOT = Path(__file__).parents[2]

SOURCE = """
def _add_keys(cfg):
    # Above, over
    # two lines
    cfg.A.ONE = 1
    node = cfg.A.B = type(cfg)()
    node.TWO = 2  # behind
    node.THREE = 3


RANGES = {
    # of detectron2
    "A.FOUR": 4,
    "A.ONE": 1,  # not this one
}
"""


def test_the_page_in_docs_is_up_to_date(tmp_path):
    # Other tests register heads of their own, so the page is made by a process of its own.
    command = [sys.executable, "tools/list_config_keys.py", "--write", str(tmp_path / "config.md")]
    subprocess.run(command, cwd=ROOT, check=True)
    made = (tmp_path / "config.md").read_text()
    kept = (ROOT / "docs" / "config.md").read_text()
    assert made == kept, "stale: python tools/list_config_keys.py --write docs/config.md"
    assert "| `MODEL.HEAD.NAME` | `'linear'` |" in made
    assert "| one of linear, logit_norm, arcface |" in made


def test_a_meaning_is_the_comment_above_a_key_or_behind_it():
    assert script.meanings(SOURCE) == {
        "A.ONE": "Above, over two lines",
        "A.B.TWO": "Behind",
        "A.FOUR": "Of detectron2",
    }


def test_a_key_without_meaning_is_named(monkeypatch):
    found = script.meanings(Path(script.config.__file__).read_text())
    del found["SOLVER.MAX_ITER"]
    monkeypatch.setattr(script, "meanings", lambda source: found)
    with pytest.raises(ValueError, match="does not say what SOLVER.MAX_ITER means"):
        script.page()
