"""The benchmark of memories: the figures of its rows are those of the checkpoint's own score."""

import json

import numpy as np
import pytest
import small_sets
import torch

from anoseg_d2.checkpoint import model_meta


@pytest.fixture
def tool(load_benchmark):
    return load_benchmark("memory")


def test_every_group_runs_and_all_patches_find_what_is_not_among_them(
    tool, tmp_path, tiny_eomt, monkeypatch, capsys
):
    model = tiny_eomt(has_anomaly=True)
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, tmp_path / "w.pth")
    known = np.zeros((32, 64), np.uint8)
    unknown = known.copy()
    unknown[:16, :16] = 1
    small_sets.closed_set(tmp_path, [known] * 3, name="bench_closed")
    small_sets.write_set(
        tmp_path,
        "bench_anomaly",
        [known, unknown],
        evaluator_type="anomaly",
        label_rule=small_sets.ANOMALY_RULE,
    )
    arguments = ["--weights", str(tmp_path / "w.pth"), "--dataset", "bench_closed"]
    arguments += ["--test", "bench_anomaly", "--random", "4", "--coreset", "3", "--repeat", "1"]
    arguments += ["--groups", "rows", "inference", "--json", str(tmp_path / "m.json")]
    monkeypatch.setattr("sys.argv", ["memory.py", *arguments])
    tool.main()
    found = json.loads((tmp_path / "m.json").read_text())
    assert [row["kept"] for row in found["rows"]] == [16, 4, 3]
    assert all(0 <= row["bench_anomaly"]["auprc %"] <= 100 for row in found["rows"])
    parts = ["memory 4", "memory of several blocks", "ratio", "guided filter"]
    assert [row["part"] for row in found["inference"]] == parts
    assert all(row["of_forward"] > 0 for row in found["inference"])
    assert "| coreset 3 | 3 |" in capsys.readouterr().out
