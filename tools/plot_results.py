#!/usr/bin/env python
"""Set results next to the paper's own figures: its Tables 1 to 6 and Figure 3.

    python tools/plot_results.py --run eomt_baseline=output/eomt --run arcface=output/arcface \\
        --run arcface_full=output/full --run arcface_lora=output/lora --output figures/

Each --run names what a model is (the stage of the paper's tables) and where its results.json is:
the file, the folder of a report, or the run's folder. Cells read "paper", "ours" and "difference"
(ours minus paper); what is not known stays empty. Datasets that the paper does not have are added
below its own, with the paper's cells empty. The output is tables.md,
tables.tex, figure3.png and figure3.pdf.

The paper: "Efficient Anomaly Segmentation via Angular Margins and Low-Rank Adaptation".
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from anoseg_d2.report.results import find_results, read_results
from anoseg_d2.report.runs import load_runs
from anoseg_d2.report.tables import latex_escaped
from anoseg_d2.utils import cli
from anoseg_d2.utils.files import atomic_path, write_atomic

STAGES = ("eomt_baseline", "logitnorm", "arcface", "arcface_full", "arcface_lora")
DATASETS = {
    "road_anomaly": "RoadAnomaly",
    "road_anomaly21": "RoadAnomaly21",
    "road_obstacle21": "RoadObstacle21",
    "fishyscapes_static": "FS_Static",
}
# The paper's MaxLogit takes raw logits, its RbA is 1 - sum of the known classes (equation 6).
SCORES = {"MSP": "msp", "MaxLogit": "max_logit_raw", "Entropy": "entropy", "RbA": "rba_sum"}


@dataclass(frozen=True)
class Column:
    """One quantity of a table.

    Args:
        title: as in the paper.
        stage: whose results; None for the difference of the two columns before.
        score: as the paper calls it, or a score of ours.
        figure: key in results.json.
    """

    title: str
    stage: str | None = None
    score: str = "MaxLogit"
    figure: str = "auprc"


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper: {dataset: its figures, column by column}."""

    number: int
    caption: str
    columns: tuple[Column, ...]
    rows: dict[str, tuple[float, ...]]


_NOT_NAMED = "The paper does not name the score; ours is its MaxLogit."
TABLES = (
    PaperTable(
        1,
        f"Angular margin, AUPRC (%). {_NOT_NAMED}",
        (Column("EoMT Std.", "eomt_baseline"), Column("EoMT + ArcFace", "arcface"), Column("Gain")),
        {
            "road_anomaly": (10.97, 12.88, 1.91),
            "road_anomaly21": (19.35, 21.08, 1.73),
            "road_obstacle21": (4.88, 33.73, 28.85),
        },
    ),
    PaperTable(
        2,
        f"Angular margin, FPR@95 (%). {_NOT_NAMED}",
        (
            Column("EoMT Std.", "eomt_baseline", figure="fpr95"),
            Column("EoMT + ArcFace", "arcface", figure="fpr95"),
            Column("Reduction"),
        ),
        {
            "road_anomaly": (84.86, 73.31, -11.55),
            "road_anomaly21": (87.62, 77.04, -10.58),
            "road_obstacle21": (71.81, 13.89, -57.92),
        },
    ),
    PaperTable(
        3,
        "Full fine-tuning on pasted outliers against LoRA, AUPRC (%), MaxLogit.",
        (
            Column("Aug. (Step 3)", "arcface_full"),
            Column("Complete (+LoRA)", "arcface_lora"),
            Column("Recovery"),
        ),
        {
            "road_anomaly": (17.19, 30.40, 13.21),
            "road_anomaly21": (19.02, 43.29, 24.27),
            "road_obstacle21": (16.43, 56.55, 40.12),
        },
    ),
    PaperTable(
        4,
        "The learned anomaly class of the complete model.",
        (
            Column("AUPRC (%)", "arcface_lora", "anomaly"),
            Column("FPR@95 (%)", "arcface_lora", "anomaly", "fpr95"),
        ),
        {
            "road_anomaly": (42.69, 74.99),
            "road_anomaly21": (39.96, 63.80),
            "road_obstacle21": (80.92, 68.19),
            "fishyscapes_static": (41.97, 65.03),
        },
    ),
    PaperTable(
        6,
        "Implicit scores of the complete model, AUPRC (%).",
        tuple(Column(name, "arcface_lora", name) for name in SCORES),
        {
            "road_anomaly": (33.36, 30.40, 23.53, 28.72),
            "road_anomaly21": (32.19, 43.29, 26.54, 39.46),
            "road_obstacle21": (24.41, 56.55, 21.91, 46.71),
        },
    ),
)
# Strategy: stage, total parameters in millions, trainable in millions, trainable %, memory.
TABLE_5 = {
    "Full FT (Step 3)": ("arcface_full", 192.8, 192.8, 100.0, 1.00),
    "LoRA (Step 4)": ("arcface_lora", 192.8, 2.3, 1.19, 0.62),
}
TABLE_5_TITLES = ("Total params (M)", "Trainable (M)", "% trainable", "Memory (rel.)")
FIGURE_3 = {"arcface": 33.73, "arcface_full": 16.43, "arcface_lora": 56.55}
FIGURE_3_SET = "road_obstacle21"


def ours(results: dict, dataset: str, column: Column, scores: dict) -> float | None:
    """Return the figure of a cell, None if the results do not have it."""
    entry = results.get(column.stage, {}).get("datasets", {}).get(dataset, {}).get("scores", {})
    return entry.get(scores.get(column.score, column.score), {}).get(column.figure)


def difference(paper: float | None, found: float | None) -> float | None:
    return None if paper is None or found is None else found - paper


def table_rows(table: PaperTable, results: dict, scores: dict) -> list[list]:
    """Return [name, (paper, ours, difference) per column] of the paper's sets, then of others."""
    found = dict.fromkeys(name for r in results.values() for name in r.get("datasets", {}))
    rows = []
    for dataset in dict.fromkeys((*table.rows, *found)):
        printed = table.rows.get(dataset, (None,) * len(table.columns))
        cells: list[tuple] = []
        for column, paper in zip(table.columns, printed, strict=True):
            if column.stage is None:
                value = difference(cells[-2][1], cells[-1][1])
            else:
                value = ours(results, dataset, column, scores)
            cells.append((paper, value, difference(paper, value)))
        if dataset in table.rows or any(cell[1] is not None for cell in cells):
            rows.append([DATASETS.get(dataset, dataset), *cells])
    return rows


def parameter_rows(results: dict) -> list[list]:
    """Return Table 5: sizes from `model` of results.json, memory relative to full fine-tuning."""
    full = results.get("arcface_full", {}).get("model", {}).get("peak_memory")
    rows = []
    for title, (stage, *printed) in TABLE_5.items():
        model = results.get(stage, {}).get("model", {})
        total, trained = model.get("parameters"), model.get("trainable_parameters")
        memory = model.get("peak_memory")
        values = (
            None if total is None else total / 1e6,
            None if trained is None else trained / 1e6,
            None if not total or trained is None else 100 * trained / total,
            None if not full or memory is None else memory / full,
        )
        cells = zip(printed, values, strict=True)
        rows.append([title, *((p, v, difference(p, v)) for p, v in cells)])
    return rows


def all_tables(results: dict, scores: dict) -> list[tuple[int, str, list[str], list[list]]]:
    """Return (number, caption, titles of the columns, rows) of Tables 1 to 6."""
    tables = [
        (t.number, t.caption, [c.title for c in t.columns], table_rows(t, results, scores))
        for t in TABLES
    ]
    tables.append((5, "Parameter efficiency.", list(TABLE_5_TITLES), parameter_rows(results)))
    return sorted(tables)


def shown(value: float | None, signed: bool = False) -> str:
    return "" if value is None else f"{value:+.2f}" if signed else f"{value:.2f}"


def flat_cells(row: list) -> list[str]:
    cells = [row[0]]
    for paper, value, change in row[1:]:
        cells += [shown(paper), shown(value), shown(change, signed=True)]
    return cells


def markdown(tables) -> str:
    blocks = []
    for number, caption, titles, rows in tables:
        heads = [f"{t} {part}" for t in titles for part in ("paper", "ours", "difference")]
        lines = [f"**Table {number}.** {caption}", ""]
        lines.append("| | " + " | ".join(heads) + " |")
        lines.append("|---|" + "---:|" * len(heads))
        lines += ["| " + " | ".join(flat_cells(row)) + " |" for row in rows]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def latex(tables) -> str:
    blocks = []
    for number, caption, titles, rows in tables:
        spans = " & ".join(rf"\multicolumn{{3}}{{c}}{{{latex_escaped(t)}}}" for t in titles)
        parts = " & ".join(["paper & ours & diff."] * len(titles))
        lines = [
            r"\begin{table}",
            rf"\caption{{Table {number} of the paper. {latex_escaped(caption)}}}",
        ]
        lines += [rf"\begin{{tabular}}{{l{'rrr' * len(titles)}}}", r"\hline"]
        lines += [rf" & {spans} \\", rf" & {parts} \\", r"\hline"]
        lines += [" & ".join(latex_escaped(c) for c in flat_cells(row)) + r" \\" for row in rows]
        lines += [r"\hline", r"\end{tabular}", r"\end{table}"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def draw_figure_3(curves: dict, results: dict, scores: dict, dataset: str, folder: Path) -> bool:
    """Draw precision over recall of the paper's three models; False if there is no curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    try:
        for stage, paper in FIGURE_3.items():
            curve = (curves.get(stage, {}).get(dataset) or {}).get(scores["MaxLogit"])
            if curve:
                value = ours(results, dataset, Column("", stage), scores)
                printed = f", paper {paper:.2f}" if dataset == FIGURE_3_SET else ""
                name = f"{stage}: {value:.2f}{printed}"
                axes.step(curve["recall"], curve["precision"], label=name)
        if not axes.lines:
            return False
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=dataset)
        axes.legend(title="AUPRC (%)", fontsize=8)
        axes.grid(alpha=0.3)
        for form in ("png", "pdf"):
            with atomic_path(folder / f"figure3.{form}", suffix=f".{form}") as temporary:
                figure.savefig(temporary, dpi=200)
        return True
    finally:
        pyplot.close(figure)


def load_run(text: str) -> tuple[str, dict, dict]:
    """Read one --run: its stage, its results.json, and its curves, empty when there are none."""
    stage, _, place = text.partition("=")
    if stage not in STAGES or not place:
        raise ValueError(f"--run {text!r}: expected STAGE=PATH with STAGE of {', '.join(STAGES)}")
    path = find_results(place)
    if path is None:
        raise FileNotFoundError(f"--run {text}: no results.json there, nor in its report/ folder")
    if "models" in read_results(path):
        raise ValueError(f"{path} contains several models; give the results.json of each one")
    (run,) = load_runs(path)
    return stage, run.results(), run.curves()


def parse_scores(pairs: list[str]) -> dict:
    scores = dict(SCORES)
    for pair in pairs:
        name, _, score = pair.partition("=")
        if name not in SCORES or not score:
            raise ValueError(f"--score {pair!r}: expected NAME=SCORE, NAME of {', '.join(SCORES)}")
        scores[name] = score
    return scores


def build_parser() -> argparse.ArgumentParser:
    parser = cli.build_parser(__doc__)
    parser.add_argument("--run", action="append", default=[], metavar="STAGE=PATH")
    parser.add_argument("--output", required=True, help="folder of the tables and the figure")
    parser.add_argument(
        "--score",
        action="append",
        default=[],
        metavar="NAME=SCORE",
        help=f"which score of ours stands for one of the paper's; default {SCORES}",
    )
    parser.add_argument(
        "--figure-set", default=FIGURE_3_SET, help="dataset of Figure 3; default: the paper's"
    )
    return parser


def main(argv=None) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return cli.run_command(lambda: write_tables(args), verbosity=args.verbosity)


def write_tables(args) -> int:
    """Read the runs and write tables and figure."""
    scores = parse_scores(args.score)
    results, curves = {}, {}
    for text in args.run:
        stage, found, lines = load_run(text)
        if stage in results:
            raise ValueError(f"--run {text!r}: {stage} was given twice")
        results[stage], curves[stage] = found, lines
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    tables = all_tables(results, scores)
    write_atomic(folder / "tables.md", markdown(tables).encode())
    write_atomic(folder / "tables.tex", latex(tables).encode())
    cli.say(f"wrote {folder / 'tables.md'}, {folder / 'tables.tex'}")
    if draw_figure_3(curves, results, scores, args.figure_set, folder):
        cli.say(f"wrote {folder / 'figure3.png'}, {folder / 'figure3.pdf'}")
    else:
        cli.say(
            f"no figure 3: none of the runs has a {scores['MaxLogit']} curve of {args.figure_set}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
