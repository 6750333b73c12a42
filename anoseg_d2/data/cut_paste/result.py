"""Describe a finished cut-paste set: its summary, the card that registers it, what to do next."""

import json
import re
from collections import Counter
from collections.abc import Sequence

import yaml

from anoseg_d2.data.cut_paste.frames import IMAGE_SUFFIX
from anoseg_d2.data.cut_paste.job import CutPasteJob
from anoseg_d2.utils.constants import ANOMALY, KNOWN, PASTED_ID, VOID
from anoseg_d2.utils.files import write_atomic

CARD = "card.yaml"


def summarise(job: CutPasteJob, records: Sequence[dict]) -> dict:
    """Count what was made, and list what could not be used.

    Args:
        job: the job.
        records: of its images, as `run_job` yields them.
    Returns:
        `images`, `objects`, `categories`, `objects left out` and `problems`, as plain json values.
    """
    objects = [item for record in records for item in record["objects"]]
    pasted = [item for item in objects if item["dropped"] is None]
    # Known objects, of controls and of the closed set, have labels of their own.
    unknown = [item for item in pasted if item["label"] == job.options.anomaly_value]
    problems = {
        "images not made": [r["failed"] for r in records if r["failed"]],
        "objects unreadable": sorted({text for r in records for text in r["problems"]}),
        "objects without a place": [
            f"{record['name']}: {item.get('source_image')}, annotation {item.get('annotation_id')}"
            for record in records
            for item in record["objects"]
            if item["dropped"] is not None
        ],
    }
    # Several sources may have met the same kind of problem.
    for source in job.sources:
        for kind, names in source.problems.items():
            problems[kind] = sorted({*problems.get(kind, ()), *names})
    return {
        "images": {
            "made": sum(not r["failed"] for r in records),
            "with objects": sum(any(o["dropped"] is None for o in r["objects"]) for r in records),
            "failed": len(problems["images not made"]),
        },
        "objects": {
            "unknown": len(unknown),
            "known": len(pasted) - len(unknown),
            "without a place": len(objects) - len(pasted),
        },
        "categories": dict(Counter(item.get("category", "object") for item in pasted)),
        "objects left out": {
            f"{type(source).__name__} {number}": dict(source.skipped)
            for number, source in enumerate(job.sources)
        },
        "problems": {kind: names for kind, names in problems.items() if names},
    }


def write_summary(job: CutPasteJob, summary: dict) -> None:
    """Write `summary.json` and the card of a set whose images are all made."""
    text = json.dumps(summary, indent=1, sort_keys=True) + "\n"
    write_atomic(job.output / "summary.json", text.encode())
    made = summary["images"]["made"]
    # Its root is its own folder, so that the set may be moved.
    card = {"name": _card_name(job), "root": "./", "source": "made by prepare_cut_paste.py"}
    if job.benchmark:
        card |= {
            "kind": "anomaly",
            "images": "images/{id}.png",
            "labels": "labels_masks/{id}_labels_semantic.png",
            "expected_images": made,
            **{"known": KNOWN, "anomaly": ANOMALY, "void": VOID},
        }
    else:
        # Scenes with the classes of Cityscapes keep its ids, so that its own tools read the set.
        coding = "labelIds" if job.reader.is_cityscapes else "labelTrainIds"
        files = {
            "images": f"leftImg8bit/{job.split}/*/{{id}}{IMAGE_SUFFIX}.png",
            "labels": f"gtFine/{job.split}/*/{{id}}_gtFine_{coding}.png",
            "expected_images": made,
        }
        card["splits"] = {job.split: files}
        if job.reader.is_cityscapes:
            card |= {"classes": "cityscapes", "label_values": "cityscapes_outlier"}
        else:
            classes = list(job.reader.classes)
            card |= {"classes": classes, "label_values": {i: i for i in range(len(classes))}}
            card |= {"void": VOID, "anomaly": PASTED_ID}
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
    write_atomic(job.output / CARD, text.encode())


def _card_name(job: CutPasteJob) -> str:
    """Return the name of the card: the output folder's, prefixed so that no built-in has it."""
    return "pasted_" + re.sub(r"[^A-Za-z0-9._+-]", "_", job.output.resolve().name)[:80]


def how_to_use(job: CutPasteJob) -> str:
    """Return the commands that show the result, and that train or evaluate on it."""
    card, name = job.output / CARD, _card_name(job)
    name += "" if job.benchmark else f"_{job.split}"
    look = f"look at it: anoseg check --card '{card}' {name} --preview previews\n"
    if job.benchmark:
        return f"{look}evaluate a run on it: anoseg eval RUN '{card}'"
    return f"{look}train on it: anoseg train '{card}' --stage arcface_full --weights RUN"
