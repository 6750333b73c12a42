"""Write the published results of a recipe: a Markdown page with its figures next to it."""

import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

from anoseg_d2.utils.files import write_atomic
from driver.recipe import Recipe
from driver.records import Records
from driver.summary import judge, summary_rows

__all__ = ["paper_tables", "write_stages"]


def write_stages(recipe: Recipe, folder, configs, results: dict, records: Records) -> Path:
    """Write `<folder>/README.md`, and copies of every results.json, csv and Markdown table.

    Args:
        recipe: the recipe that was run.
        folder: folder to write into.
        configs: stage -> config node.
        results: stage -> its results.json.
        records: records with times and memory.
    Returns:
        path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for step in recipe.stages:
        if step.name in results:
            shutil.copyfile(step.makes, folder / f"{step.name}.json")
    report = recipe.output / "report"
    for name in ("results.json", "results.csv"):
        shutil.copyfile(report / name, folder / name)
    table = (report / "results.md").read_text(encoding="utf-8")
    lines = [
        f"# {recipe.title}",
        "",
        *_setting(recipe),
        "",
        *([recipe.about, ""] if recipe.about else []),
        *_stages(recipe, configs, records),
    ]
    lines += ["", "## Summary", "", *_summary(results)]
    lines += ["", *_claims(recipe, results, records)]
    lines += paper_tables(recipe.tables, results)
    lines += [
        "",
        "## Every figure",
        "",
        "AUPRC and FPR95 in percent; the best of a column is bold. Brackets are certified bounds,",
        "where they are more than 0.01 apart.",
    ]
    lines += ["More (AUROC, component metrics, per-class IoU) is in `results.json`, one file per"]
    lines += ["stage, and in `results.csv`.", "", table.rstrip(), ""]
    write_atomic(folder / "README.md", "\n".join(lines).encode())
    return folder / "README.md"


def _setting(recipe: Recipe) -> list[str]:
    # Targets of the Makefile are written with hyphens.
    command = f"make {recipe.name.replace('_', '-')}" + (" DATA=<folder>" if recipe.needs else "")
    command += f" SEED={recipe.seed}" if recipe.seed else ""
    return [
        f"Command: `{command}`. Seed {recipe.seed}, one run. Python {platform.python_version()}, "
        f"torch {version('torch').split('+')[0]}, timm {version('timm')}, "
        f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}.",
        "Written by the command itself; every number comes from the `results.json` next to it.",
    ]


def _stages(recipe: Recipe, configs: dict, records: Records) -> list[str]:
    lines = ["## Settings", ""]
    lines.append(
        "| stage | from | head | classes | steps | batch | crop | learning rate | LoRA | minutes | "
        "peak memory, MiB |"
    )
    lines.append("|---|---|---|---|---:|---:|---|---|---|---:|---:|")
    for step in recipe.stages:
        record = records.read(step.name)
        if record.get("outcome") == "done":
            lines.append(_stage_row(step, configs[step.name], record))
    lines += ["", "Minutes and memory (of the stage's process) include training and evaluation."]
    return lines


def _stage_row(step, cfg, record: dict) -> str:
    classes = cfg.MODEL.EOMT.NUM_CLASSES + bool(cfg.MODEL.EOMT.ANOMALY_CLASS)
    lora = cfg.MODEL.LORA
    adapters = f"rank {lora.RANK}, lr x{lora.LR_FACTOR:g}, dropout {lora.DROPOUT:g}"
    cells = [
        f"`{step.name}`",
        step.start or Path(cfg.MODEL.WEIGHTS).name or "-",
        cfg.MODEL.HEAD.NAME,
        classes,
        cfg.SOLVER.MAX_ITER,
        cfg.SOLVER.IMS_PER_BATCH,
        "x".join(map(str, cfg.INPUT.CROP_SIZE)),
        f"{cfg.SOLVER.BASE_LR:g}",
        adapters if lora.ENABLED else "-",
        f"{record['seconds'] / 60:.1f}",
        f"{record['peak_mib']:.0f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _summary(results: dict) -> list[str]:
    lines = [
        "| stage | mIoU | best score | AUPRC | FPR95 | best without the learned class | AUPRC | "
        "FPR95 |"
    ]
    lines.append("|---|---:|---|---:|---:|---|---:|---:|")
    for row in summary_rows(results):
        cells = ["-" if v is None else f"{v:.1f}" if isinstance(v, float) else v for v in row]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "The best score is an oracle: it is chosen on the labels that it is measured on."]
    return lines


def _claims(recipe: Recipe, results: dict, records: Records) -> list[str]:
    peaks = {step.name: records.read(step.name).get("peak_mib", 0.0) for step in recipe.stages}
    verdicts = [judge(claim, results, peaks) for claim in recipe.claims]
    if not any(verdicts):
        return []
    lines = ["## Claims", "", "One seed: differences of a few points are noise.", ""]
    lines += ["| claim | this side | against | here |", "|---|---|---|---|"]
    for verdict in filter(None, verdicts):
        holds = "holds" if verdict["holds"] else "does not hold"
        lines.append(f"| {verdict['text']} | {verdict['left']} | {verdict['right']} | {holds} |")
    return lines


def paper_tables(tables, results: dict) -> list[str]:
    """Lay out tables of the paper with our figures next to its own.

    Args:
        tables: each has a `title` and either `columns` or `costs`. A column `says` what it is and
            names its `stage`, `score`, `figure` and the `paper`'s value of each dataset. `costs`
            has for each stage the paper's parameters and trainable parameters in millions, and its
            memory relative to the first stage.
        results: stage -> its results.json.
    Returns:
        lines of Markdown; a figure that does not exist is "-".
    """
    lines = ["", "## The paper's tables"] if tables else []
    for table in tables:
        rows = _cost_rows(table["costs"], results) if "costs" in table else _rows(table, results)
        head, *body = ("| " + " | ".join(row) + " |" for row in rows)
        lines += [
            "",
            f"**{table['title']}**",
            "",
            head,
            "|---|" + "---:|" * (len(rows[0]) - 1),
            *body,
        ]
    return lines


def _rows(table: dict, results: dict) -> list[list[str]]:
    columns = table["columns"]
    found = [column["stage"] for column in columns if column["stage"] in results]
    ours = [name for stage in found for name in results[stage]["datasets"]]
    rows = [["set"]]
    for column in columns:
        rows[0] += [f"{column['says']}: paper", "here"]
    for name in dict.fromkeys([*(n for column in columns for n in column["paper"]), *ours]):
        row = [f"`{name}`"]
        for column in columns:
            datasets = results.get(column["stage"], {}).get("datasets", {})
            figures = datasets.get(name, {}).get("scores", {}).get(column["score"], {})
            row += map(_cell, (column["paper"].get(name), figures.get(column["figure"])))
        rows.append(row)
    return rows


def _cost_rows(costs: dict, results: dict) -> list[list[str]]:
    rows = [["stage"]]
    for what in ("parameters, M", "trainable, M", "memory, relative"):
        rows[0] += [f"{what}: paper", "here"]
    models = {stage: results[stage]["model"] for stage in costs if stage in results}
    first = models.get(next(iter(costs)), {}).get("peak_memory")
    for stage, paper in costs.items():
        model = models.get(stage, {})
        ours = [model.get(name) for name in ("parameters", "trainable_parameters")]
        ours = [None if value is None else value / 1e6 for value in ours]
        memory = model.get("peak_memory")
        ours.append(memory / first if memory and first else None)
        row = [f"`{stage}`"]
        for pair in zip(paper, ours, strict=True):
            row += map(_cell, pair)
        rows.append(row)
    return rows


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
