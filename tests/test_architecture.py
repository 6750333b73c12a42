"""Imports go one way, so that a room can be read without the rooms above it."""

import code_figures


def test_every_import_of_the_package_and_the_scripts_goes_one_way():
    arrows = code_figures.import_map(code_figures.sources(None))
    assert {"modeling", "engine", "train_net", "tools"} <= arrows.keys()
    assert code_figures.arrows_up(arrows) == []


def test_an_arrow_up_and_a_circle_are_found():
    files = {
        "anoseg_d2/data/loader.py": "from anoseg_d2.engine.trainer import Trainer\n",
        "anoseg_d2/evaluation/a.py": "import anoseg_d2.checkpoint.files\n",
        "anoseg_d2/checkpoint/b.py": "from anoseg_d2 import evaluation\n",
    }
    assert code_figures.arrows_up(code_figures.import_map(files)) == [
        "checkpoint imports evaluation",
        "data imports engine",
        "evaluation imports checkpoint",
    ]


def test_lengths_comments_and_docstrings_are_counted_by_line():
    figures = code_figures.Figures()
    figures.add(
        '"""One."""\n\n# why\ndef f():\n    """Two\n    lines."""\n    return 1  # and this\n'
    )
    assert (figures.lines, figures.comments, figures.docstrings) == (6, 2, 3)
    assert figures.functions == [4]


def test_other_projects_are_counted_like_the_package():
    *_, package, utils = code_figures.beside([f"utils={code_figures.ROOT}:anoseg_d2/utils"])
    assert package.startswith("| **package** | ") and utils.startswith("| utils | ")
