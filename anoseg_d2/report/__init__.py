"""From results.json to a page, tables and curves.

- `write_report`: the report of one evaluated run: html, json, csv, Markdown, LaTeX.
- `combine_reports`: one report over several runs, such as the stages of a training.
- `read_results`: reads a results.json and names what is wrong with it.
- `best_score`: the score with the highest mean AUPRC, an oracle on the labels.
- `read_threshold`: the threshold of a score at a true positive rate.
- `load_runs`: finished runs, with images where they were kept.
"""

import importlib

# Resolved on first use: reading a results.json needs none of what draws the page.
_EXPORTS = {
    "write_report": "write",
    "combine_reports": "write",
    "read_results": "results",
    "best_score": "results",
    "read_threshold": "thresholds",
    "load_runs": "runs",
}
__all__ = list(_EXPORTS)


def __getattr__(name):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_EXPORTS])
