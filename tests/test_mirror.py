"""Whoever looks for the tests of a module finds them: in a file of its name, or by this list."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "anoseg_d2"
# Modules whose promises are kept by the tests of a neighbour or of the command that shows them.
ELSEWHERE = {
    "checkpoint/metadata.py": "checkpoint/test_checkpointer.py",
    "checkpoint/spec.py": "checkpoint/test_formats.py",
    "data/card_proposal.py": "commands/test_card_command.py",
    "data/cut_paste/frames.py": "commands/test_cut_paste_command.py",
    "data/cut_paste/job.py": "commands/test_cut_paste_command.py",
    "data/cut_paste/result.py": "commands/test_cut_paste_command.py",
    "data/dataset.py": "data/test_builtin.py",
    "data/dataset_check.py": "commands/test_check_command.py",
    "engine/fit_memory.py": "commands/test_memory_command.py",
    "evaluation/score_statistics.py": "commands/test_memory_command.py",
    "export/any_size.py": "export/test_export_write.py",
    "modeling/model_info.py": "checkpoint/test_releases.py",
    "modeling/patch_heads/base.py": "modeling/patch_heads/test_ratio.py",
    "prediction/job.py": "commands/test_predict_command.py",
    "prediction/submission.py": "commands/test_submit_command.py",
    "utils/constants.py": "checkpoint/test_transfer.py",
    "utils/on_import.py": "test_import.py",
}


def modules() -> list[str]:
    """Every module that defines a function or a class."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = (ast.FunctionDef, ast.ClassDef)
        if path.name != "__init__.py" and any(isinstance(n, defined) for n in tree.body):
            found.append(path.relative_to(PACKAGE).as_posix())
    return found


def own_files(module: str) -> list[str]:
    """Names that a module's own test file may have.

    Two test files may not have the same name: so a room is added where another has such a module.
    """
    path = Path(module)
    name, room = path.stem.strip("_"), path.parent.name
    stems = (
        f"test_{name}",
        f"test_{room}_{name}",
        f"test_{name}_{room}",
        f"test_{name}_{room[:-1]}",
    )
    return [(path.parent / f"{stem}.py").as_posix() for stem in stems]


@pytest.mark.parametrize("module", modules())
def test_a_module_has_a_test_file_of_its_name_or_is_listed(module):
    named = [name for name in own_files(module) if (ROOT / "tests" / name).is_file()]
    if module in ELSEWHERE:
        assert not named, f"{module} is listed, but has {named[0]}"
        assert (ROOT / "tests" / ELSEWHERE[module]).is_file()
    else:
        assert named, f"{module} has none of {', '.join(own_files(module))}"


def test_what_is_listed_exists():
    assert set(ELSEWHERE) <= set(modules())


def test_no_two_test_files_have_the_same_name():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(n for n in set(names) if names.count(n) > 1)
