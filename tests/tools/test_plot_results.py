"""Our tables and figure next to those of the paper."""

import re
from pathlib import Path

import plot_results
import pytest

from anoseg_d2.utils.files import write_json

TOOL = Path(__file__).parents[2] / "tools" / "plot_results.py"


@pytest.fixture(scope="module")
def tool():
    return plot_results


def results(value, dataset="road_obstacle21", score="max_logit_raw", **model):
    entry = {"auprc": value, "fpr95": 100 - value}
    return {"datasets": {dataset: {"scores": {score: entry}}}, "closed_set": {}, "model": model}


def store(folder, value, **kwargs):
    curve = {"recall": [0.5, 1.0], "precision": [1.0, 0.4], "fpr": [0.0, 0.3]}
    found = results(value, **kwargs)
    write_json(folder / "report/results.json", found)
    curves = {name: {"max_logit_raw": curve} for name in found["datasets"]}
    write_json(folder / "report/curves.json", {"run": curves})
    return folder


def cells(text, table, row):
    """{column: cell} of one row of a Markdown table."""
    block = text.split(f"**Table {table}.**")[1].split("\n\n")[1].splitlines()
    heads = [head.strip() for head in block[0].split("|")[1:-1]]
    line = next(line for line in block if line.startswith(f"| {row} |"))
    return dict(zip(heads, (cell.strip() for cell in line.split("|")[1:-1]), strict=True))


def test_the_papers_columns_of_differences_are_its_own_differences(tool):
    # Guards the transcription: the paper prints each difference next to its two terms.
    for table in tool.TABLES[:3]:
        for first, second, change in table.rows.values():
            assert second - first == pytest.approx(change, abs=0.006)


def test_table_6_and_table_3_agree_on_maxlogit(tool):
    third, sixth = (next(t for t in tool.TABLES if t.number == n) for n in (3, 6))
    for dataset, row in sixth.rows.items():
        assert row[1] == third.rows[dataset][1]


def test_without_results_our_cells_are_empty_and_the_papers_full(tool):
    text = tool.markdown(tool.all_tables({}, tool.SCORES))
    assert [int(n) for n in re.findall(r"\*\*Table (\d)", text)] == [1, 2, 3, 4, 5, 6]
    row = cells(text, 1, "RoadObstacle21")
    assert row["EoMT + ArcFace paper"] == "33.73"
    assert row["EoMT + ArcFace ours"] == row["EoMT + ArcFace difference"] == ""
    assert cells(text, 5, "LoRA (Step 4)")["% trainable paper"] == "1.19"


def test_ours_and_the_difference_are_next_to_the_papers(tool):
    found = {"eomt_baseline": results(10.0), "arcface": results(40.0)}
    text = tool.markdown(tool.all_tables(found, tool.SCORES))
    row = cells(text, 1, "RoadObstacle21")
    assert row["EoMT Std. ours"] == "10.00" and row["EoMT Std. difference"] == "+5.12"
    assert row["Gain ours"] == "30.00" and row["Gain difference"] == "+1.15"
    assert cells(text, 2, "RoadObstacle21")["Reduction ours"] == "-30.00"
    assert cells(text, 3, "RoadObstacle21")["Recovery ours"] == ""


def test_a_set_that_the_paper_lacks_has_no_paper_cells(tool):
    found = {"arcface": results(40.0, dataset="camvid_anomaly")}
    row = cells(tool.markdown(tool.all_tables(found, tool.SCORES)), 1, "camvid_anomaly")
    assert row["EoMT + ArcFace ours"] == "40.00"
    assert row["EoMT + ArcFace paper"] == row["EoMT + ArcFace difference"] == ""


def test_a_null_figure_stays_empty(tool):
    found = {"arcface": results(40.0)}
    found["arcface"]["datasets"]["road_obstacle21"]["scores"]["max_logit_raw"]["auprc"] = None
    row = cells(tool.markdown(tool.all_tables(found, tool.SCORES)), 1, "RoadObstacle21")
    assert row["EoMT + ArcFace ours"] == ""


def test_table_5_counts_our_parameters(tool):
    found = {
        "arcface_full": results(1.0, parameters=200, trainable_parameters=200, peak_memory=10),
        "arcface_lora": results(1.0, parameters=400_000_000, trainable_parameters=4_000_000),
    }
    text = tool.markdown(tool.all_tables(found, tool.SCORES))
    row = cells(text, 5, "LoRA (Step 4)")
    assert row["Total params (M) ours"] == "400.00" and row["% trainable ours"] == "1.00"
    assert row["% trainable difference"] == "-0.19" and row["Memory (rel.) ours"] == ""
    assert cells(text, 5, "Full FT (Step 3)")["Memory (rel.) ours"] == "1.00"


@pytest.mark.slow
def test_files_are_written(tool, tmp_path, capsys):
    runs = {s: store(tmp_path / s, v) for s, v in (("arcface", 30.0), ("arcface_lora", 60.0))}
    arguments = [f"--run={stage}={folder}" for stage, folder in runs.items()]
    assert tool.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/figure3.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out/figure3.pdf").read_bytes().startswith(b"%PDF")
    latex = (tmp_path / "out/tables.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 6
    assert r"FS\_Static" in latex and r"AUPRC (\%)" in latex
    for block in latex.split(r"\begin{tabular}{l")[1:]:
        columns = block.index("}")
        for line in block.splitlines():
            if line.endswith(r"\\") and "multicolumn" not in line:
                assert line.count("&") == columns
    assert "figure3.png" in capsys.readouterr().out


def test_no_figure_is_drawn_without_curves(tool, tmp_path, capsys):
    assert tool.main(["--output", str(tmp_path)]) == 0
    assert not (tmp_path / "figure3.png").exists()
    assert "no figure 3" in capsys.readouterr().out


def test_another_score_can_stand_for_the_papers(tool):
    found = {"arcface": results(40.0, score="max_logit")}
    scores = tool.parse_scores(["MaxLogit=max_logit"])
    row = cells(tool.markdown(tool.all_tables(found, scores)), 1, "RoadObstacle21")
    assert row["EoMT + ArcFace ours"] == "40.00"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "best=somewhere"], "STAGE of eomt_baseline"),
        (["--run", "arcface=absent"], "no results.json there"),
        (["--score", "Best=rba"], "NAME of MSP"),
    ],
)
def test_a_wrong_argument_is_one_line(tool, tmp_path, capsys, arguments, message):
    assert tool.main([*arguments, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_combined_report_is_refused(tool, tmp_path, capsys):
    write_json(tmp_path / "results.json", {**results(1.0), "models": {}})
    assert tool.main([f"--run=arcface={tmp_path}", "--output", str(tmp_path)]) == 2
    assert "several models" in capsys.readouterr().err
