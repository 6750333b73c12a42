"""Several runs and methods side by side: safe names, bad input."""

import csv
import json
from pathlib import Path

import pytest

from anoseg_d2.commands import compare
from anoseg_d2.utils.files import read_json, write_json

ROOT = Path(__file__).parents[2]
HOSTILE = "<b>a_b & 50% | #1 \\x{~^}"


@pytest.fixture
def tool():
    return compare


def store(path, bounds=None, **auprc):
    scores = {score: {"auprc": value, "fpr95": 100 - value} for score, value in auprc.items()}
    for entry in scores.values() if bounds else ():
        entry["auprc_bounds"] = bounds
    write_json(path, {"datasets": {"road": {"scores": scores}}, "closed_set": {}, "model": {}})
    return str(path)


def markdown(folder):
    """Cells of the rows of results.md."""
    lines = (folder / "results.md").read_text().splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_projects_own_stages_are_compared(tool, tmp_path, capsys):
    names = ("eomt_baseline", "logitnorm", "arcface", "arcface_full", "arcface_lora")
    files = [str(ROOT / "experiments" / "camvid" / f"{name}.json") for name in names]
    assert tool.main([*files, "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "index.html")
    rows = markdown(tmp_path)
    assert list(dict.fromkeys(row[0].replace("\\", "") for row in rows)) == list(names)
    assert any("**93.72**" in row and "**1.46**" in row for row in rows)


def test_wide_bounds_are_in_every_table(tool, tmp_path):
    path = store(tmp_path / "a.json", bounds=[49.0, 51.5], rba=50.0)
    assert tool.main([path, "--output", str(tmp_path / "out")]) == 0
    for name in ("results.md", "results.tex"):
        assert "50.00 [49.00, 51.50]" in (tmp_path / "out" / name).read_text()
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("50.00 <small>[49.00, 51.50]</small>") == 2  # main table and details
    row = next(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert (row["auprc_low"], row["auprc_high"]) == ("49.0", "51.5")


def test_names_are_text_in_every_format(tool, tmp_path):
    argument = f"{HOSTILE}={store(tmp_path / 'a.json', rba=50.0)}"
    assert tool.main([argument, "--output", str(tmp_path / "out")]) == 0
    latex = (tmp_path / "out" / "results.tex").read_text()
    assert r"\textless{}b\textgreater{}a\_b \& 50\% \textbar{} \#1 \textbackslash{}x" in latex
    assert r"\{\textasciitilde{}\textasciicircum{}\}" in latex
    assert "<b>a_b" not in (tmp_path / "out" / "index.html").read_text()
    row = (tmp_path / "out" / "results.md").read_text().splitlines()[2]
    assert row.replace("\\|", "").count("|") == 5
    line = next(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert line["model"] == HOSTILE


def test_a_formula_stays_text_in_a_spreadsheet(tool, tmp_path):
    path = store(tmp_path / "a.json", **{"=1+1": 50.0})
    assert tool.main([path, "--output", str(tmp_path / "out")]) == 0
    line = next(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert line["score"] == "'=1+1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no results.json there"),
        ("{", "is not valid JSON"),
        ("[]", "no 'datasets'"),
        ('{"datasets": {}}', "none of the runs has figures"),
    ],
)
def test_bad_input_is_one_line(tool, tmp_path, capsys, content, message):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert tool.main([str(path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_two_runs_of_one_name_are_refused(tool, tmp_path, capsys):
    path = store(tmp_path / "a.json", rba=50.0)
    arguments = [f"ours={path}", f"ours={path}", "--output", str(tmp_path / "out")]
    assert tool.main(arguments) == 2
    assert "both named 'ours'" in capsys.readouterr().err


def test_a_comparison_can_be_compared_again(tool, tmp_path):
    first = store(tmp_path / "a.json", rba=50.0)
    assert tool.main([first, "--output", str(tmp_path / "out")]) == 0
    again = [str(tmp_path / "out"), f"new={store(tmp_path / 'c.json', rba=60.0)}"]
    assert tool.main([*again, "--output", str(tmp_path / "more")]) == 0
    assert list(json.loads((tmp_path / "more/results.json").read_text())["models"]) == ["a", "new"]


@pytest.mark.parametrize("key", ["images", "anomaly_pixels", "void_pixels", "component_track"])
def test_figures_on_different_labels_are_not_put_next_to_each_other(tool, tmp_path, capsys, key):
    counts = {"images": 2, "anomaly_pixels": 5, "void_pixels": 1, "component_track": "anomaly"}
    files = []
    for name, changed in (("one", {}), ("other", {key: "obstacle" if key.endswith("k") else 7})):
        files.append(store(tmp_path / f"{name}.json", rba=50.0))
        results = read_json(files[-1])
        results["datasets"]["road"] |= {**counts, **changed}
        write_json(files[-1], results)
    assert tool.main([*files, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"road differs in its {key}" in said and "one.json: " in said and "other.json: " in said
    assert not (tmp_path / "out").exists()


def test_warnings_of_an_evaluation_are_on_the_page(tool, tmp_path):
    files = [store(tmp_path / f"{name}.json", rba=50.0) for name in ("one", "other")]
    results = read_json(files[1])
    results["datasets"]["road"]["warnings"] = ["the labels may be <inverted>"]
    write_json(files[1], results)
    assert tool.main([*files, "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<b>road</b>, other: the labels may be &lt;inverted&gt;" in page
    assert "road: no curve." in page


def test_latex_names_each_method_and_its_closed_set_once(tool, tmp_path):
    path = tmp_path / "ours.json"
    store(path, rba=50.0, msp=40.0)
    results = read_json(path)
    results["closed_set"]["val"] = {"mIoU": 60.0}
    write_json(path, results)
    other = store(tmp_path / "theirs.json", score=51.0)
    assert tool.main([str(path), other, "--output", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out" / "results.tex").read_text().splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert body == [
        r"ours & rba & 60.00 & 50.00 & 50.00 \\",
        r" & msp &  & 40.00 & 60.00 \\",
        r"\addlinespace",
        r"theirs & score & -- & \textbf{51.00} & \textbf{49.00} \\",
    ]
