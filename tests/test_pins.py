"""What keeps the code easy to change: tests that hold on to what is public."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Places in which a test reads or replaces what a leading underscore marks as private.
MOST_PRIVATE = 15
# Characters in a row: more pin a sentence; a key, a value and a word name an error as surely.
LONGEST_MATCH = 40
# Non-blank lines of the package. Deleting is always allowed; raise it for what a user asked for.
MOST_LINES = 19_072
# Of Python, torchvision and detectron2, whose interfaces these are.
NOT_OURS = {
    *("_replace", "_exit", "_actions", "_trainer", "_last_eval_results", "_orig_mod"),
    *("_geometry", "_do_native_uint8_resize_on_cpu"),
}


def files_of_tests() -> list[Path]:
    """Every file of the tests, helpers too."""
    return sorted(path for path in (ROOT / "tests").rglob("*.py") if "faults" not in path.parts)


def private(name: str) -> bool:
    """Return whether the last part of a dotted name is private, and ours."""
    last = name.rpartition(".")[2]
    return bool(re.fullmatch(r"_[A-Za-z]\w*", last)) and last not in NOT_OURS


def touches(tree: ast.AST):
    """Yield the line and name of everything private that is read, imported or replaced."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anoseg_d2"):
            yield from ((node.lineno, alias.name) for alias in node.names if private(alias.name))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in (
            "setattr",
            "delattr",
        ):
            texts = [a.value for a in node.args[:2] if isinstance(a, ast.Constant)]
            yield from ((node.lineno, t) for t in texts if isinstance(t, str) and private(t))


def test_tests_hardly_touch_what_is_private():
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in files_of_tests()
        for line, name in touches(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert len(found) <= MOST_PRIVATE, "\n".join(found)


def test_expected_errors_are_named_by_key_value_and_a_word():
    found = []
    for path in files_of_tests():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "match":
                text = getattr(node.value, "value", "")
                runs = re.split(r"[.)\]][*+]", text if isinstance(text, str) else "")
                if any(len(run) > LONGEST_MATCH and " " in run for run in runs):
                    found.append(f"{path.relative_to(ROOT)}:{node.value.lineno} {text}")
    assert not found, "\n".join(found)


def test_the_package_is_no_larger_than_it_was():
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "anoseg_d2").rglob("*.py"))
    lines = sum(bool(line.strip()) for text in texts for line in text.splitlines())
    assert lines <= MOST_LINES
