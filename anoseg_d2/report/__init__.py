"""Turn results.json into a page, tables and curves.

- `write_report`: the report of one evaluated run: html, json, csv, Markdown, LaTeX.
- `combine_reports`: one report over several runs, such as the stages of a training.
- `read_results`: reads a results.json and names what is wrong with it.
- `best_score`: the score with the highest mean AUPRC, an oracle on the labels.
- `read_threshold`: the threshold of a score at a true positive rate.
- `load_runs`: finished runs, with images where they were kept.
"""

from anoseg_d2.utils.index import lazy_index

# Resolved on first use: reading a results.json needs none of what draws the page.
__all__, __getattr__, __dir__ = lazy_index(
    __name__,
    {
        "write": ["write_report", "combine_reports"],
        "results": ["read_results", "best_score"],
        "thresholds": ["read_threshold"],
        "runs": ["load_runs"],
    },
)
