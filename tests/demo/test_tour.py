"""The notebook runs from its first cell to its last, and is stored without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CELLS = json.loads((ROOT / "demo/tour.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_it_has_ten_cells_and_no_outputs():
    assert len(CODE) == 10
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)


@pytest.mark.slow
def test_it_leads_from_an_image_to_a_report(tmp_path):
    source = "\n\n".join("".join(cell["source"]) for cell in CODE)
    assert source.count('"output/tour"') == 1
    (tmp_path / "tour.py").write_text(source.replace('"output/tour"', repr(str(tmp_path / "out"))))
    # In a process of its own: it registers datasets and changes the working directory.
    done = subprocess.run(
        [sys.executable, tmp_path / "tour.py"],
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "out/run/report/results.json").read_text())
    assert results["datasets"]["miniature_road_anomaly"]["images"] == 8
    assert (tmp_path / "out/run/report/index.html").as_uri() in done.stdout
    assert "components" in done.stdout
