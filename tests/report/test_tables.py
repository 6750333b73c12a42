"""Tables as csv and Markdown, and the best of a column."""

import csv

import numpy as np

from anoseg_d2.report.runs import Cell
from anoseg_d2.report.tables import Row, Table
from anoseg_d2.utils.files import read_json


def test_csv_has_the_figures_of_results_json(runs):
    rows = list(csv.DictReader((runs / "both/results.csv").read_text().splitlines()))
    results = read_json(runs / "both/results.json")["models"]
    row = next(
        r for r in rows if (r["model"], r["dataset"], r["score"]) == ("weak", "test_other", "rba")
    )
    assert (
        float(row["auprc"]) == results["weak"]["datasets"]["test_other"]["scores"]["rba"]["auprc"]
    )
    assert row["mIoU"] == ""
    assert len(rows) == 2 * 2 + 2 * 3 + 2


def test_markdown_marks_the_best_of_each_column(runs):
    lines = (runs / "both/results.md").read_text().splitlines()
    heads = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert len(rows) == 5 and all(len(row) == len(heads) for row in rows)
    column = heads.index("test_anomaly AUPRC")
    values = [float(row[column].strip("*")) for row in rows]
    marked = [row[column].startswith("**") for row in rows]
    assert marked[int(np.argmax(values))] and not marked[int(np.argmin(values))]
    column = heads.index("test_anomaly FPR95")
    values = [float(row[column].strip("*")) for row in rows]
    assert rows[int(np.argmin(values))][column].startswith("**")


def test_a_column_of_equal_figures_has_no_best():
    column = ("set", "mIoU")

    def best(*values):
        return Table([column], [Row("a", None, {column: Cell(v)}) for v in values]).best

    assert best(66.4, 66.4) == {} and best(66.4, None, 60.0) == {column: 66.4}
