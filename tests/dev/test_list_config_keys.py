"""docs/config.md is made of the table of keys, and every key has a meaning."""

import subprocess
import sys
from pathlib import Path

import pytest

from anoseg_d2.config import KEYS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_page_in_docs_is_up_to_date(tmp_path):
    # Other tests register heads of their own, so the page is made by a process of its own.
    command = [sys.executable, "dev/list_config_keys.py", "--write", str(tmp_path / "config.md")]
    subprocess.run(command, cwd=ROOT, check=True)
    made = (tmp_path / "config.md").read_text()
    kept = (ROOT / "docs" / "config.md").read_text()
    assert made == kept, "stale: python dev/list_config_keys.py --write docs/config.md"
    assert "| `MODEL.HEAD.NAME` | `'linear'` |" in made
    assert "| one of linear, logit_norm, arcface |" in made


def test_every_key_has_a_meaning():
    assert [key for key, entry in KEYS.items() if not entry.says.strip()] == []
