"""Compare evaluated runs and other people's methods side by side.

    anoseg compare output/eomt output/arcface --output figures/
    anoseg compare ours=output/arcface_lora PixOOD=out/pixood --output figures/
    anoseg compare experiments/camvid/results.json --output figures/

Each argument is a run's folder, its report folder, or a results.json of `anoseg eval` or
`anoseg maps`. Put a name and `=` before it to show another name than the folder's. The output is
index.html (with the images of the runs that kept them), results.md, results.tex (booktabs, for a
two-column paper), results.csv and results.json. Runs that saw other images or labels under the name
of the same dataset are refused.
"""

import argparse
from pathlib import Path

from anoseg_d2.report.runs import Run, load_runs
from anoseg_d2.utils import cli


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.build_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="[NAME=]PATH")
    add("--output", required=True, type=Path, help="folder of the page and tables")
    add("--title", default="Comparison", help="title of the page (default: %(default)s)")
    return parser


def read(text: str) -> list[Run]:
    """Read one argument; a text with `=` is a path if there is a file or folder of that name."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        name, path = "", text
    if equals and not path:
        raise ValueError(f"{text!r}: expected NAME=PATH, the path is empty")
    return load_runs(path, name.strip() or None)


def check(runs: list[Run], texts: list[str]) -> None:
    """Refuse runs of the same name, and figures on different labels.

    Raises:
        ValueError: names the arguments, and what differs.
    """
    seen: dict[str, str] = {}
    for run, text in zip(runs, texts, strict=True):
        if run.name in seen:
            raise ValueError(
                f"{text!r} and {seen[run.name]!r} are both named {run.name!r}: put another name "
                "and = before one of them"
            )
        seen[run.name] = text
    if not any(run.of_kind("anomaly") for run in runs):
        raise ValueError(f"none of the runs has figures of an anomaly dataset: {', '.join(texts)}")
    counts = ("images", "pixels", "anomaly_pixels", "known_pixels", "void_pixels")
    for dataset in dict.fromkeys(name for run in runs for name in run.records):
        results = [run.records.get(dataset, {}).get("result", {}) for run in runs]
        for key in (*counts, "component_track"):  # the track changes component figures
            found = {text: result.get(key) for text, result in zip(texts, results, strict=True)}
            # Results of older versions do not have every entry.
            found = {text: value for text, value in found.items() if value is not None}
            if len(set(found.values())) > 1:
                values = "; ".join(f"{text}: {value}" for text, value in found.items())
                raise ValueError(
                    f"{dataset} differs in its {key} between the runs ({values}): they did not see "
                    "the same files, so their figures do not compare. Evaluate all on the same ones"
                )


@cli.command(build_parser)
def main(args: argparse.Namespace) -> None:
    """Read the runs and write the page and tables."""
    from anoseg_d2.report.write import write_files  # needs matplotlib, which --help spares

    found = [(run, text) for text in args.runs for run in read(text)]
    runs = [run for run, _ in found]
    check(runs, [text for _, text in found])
    cli.say(write_files(runs, args.output, args.title))
