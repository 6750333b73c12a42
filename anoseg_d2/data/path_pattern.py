"""Match paths of images and labels, and ids of a set, with patterns.

Cards come from strangers, and a regular expression of a few characters can take for ever. So paths
are matched here in bounded time, and the expressions of ids are refused unless they are simple.
"""

import re
from collections import Counter
from collections.abc import Iterable

__all__ = ["PathPattern", "is_simple_regex", "placeholders"]

# Tries per path; a sensible pattern takes one for each letter at most.
MAX_TRIES = 50_000

_TOKEN = re.compile(r"\{(?P<name>\w+)\}|(?P<folders>\*\*/)|(?P<star>\*)|(?P<any>\?)|[^{*?]+|[{]")

# One character or class, perhaps repeated; several of these, with one group of alternatives.
_ATOM = r"(?:\\[dDwWsS.+*?(){}|^$\[\]-]|\[[^\[\]\\]+\]|[^\\\[\](){}|*+?^$])"
_SEQUENCE = rf"(?:{_ATOM}(?:[*+?]|\{{\d{{1,3}}(?:,\d{{0,3}})?\}})?)*"
_SIMPLE = re.compile(rf"{_SEQUENCE}(?:\((?:\?:)?{_SEQUENCE}(?:\|{_SEQUENCE})*\))?{_SEQUENCE}")
# Each of them multiplies the ways to match a name by its length.
MAX_REPEATS = 2
MAX_LENGTH = 200


def placeholders(pattern: str) -> tuple[str, ...]:
    """Return the names in braces, in order of first appearance."""
    return tuple(dict.fromkeys(re.findall(r"\{(\w+)\}", pattern)))


def is_simple_regex(pattern) -> bool:
    """Return whether an expression matches every name in a short time.

    Characters, classes and `.` may be repeated, at most twice in all, and there may be one
    group of alternatives, which is not repeated: `(0001TP|0016E5)_.*`.
    """
    if not isinstance(pattern, str) or len(pattern) > MAX_LENGTH:
        return False
    if not _SIMPLE.fullmatch(pattern):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    plain = re.sub(r"\\.|\[[^\[\]]+\]|\(\?:", "", pattern)
    return len(re.findall(r"[*+?{]", plain)) <= MAX_REPEATS


class PathPattern:
    """A path with `/` in which `{name}` captures part of a file or folder name.

    `*` is any part of a name, `?` any character, `**/` any number of folders, and an extension `.*`
    any extension; other extensions are compared without case, because some tools write capitals. A
    repeated placeholder stands for the same text each time.

    Attributes:
        folder: the part of the path before the first name with a placeholder or wildcard.
    """

    def __init__(self, pattern: str):
        self.pattern = pattern
        stem, dot, extension = pattern.rpartition(".")
        self.extension = extension.lower() if dot and _is_extension(extension) else None
        tokens = _TOKEN.finditer(stem if self.extension else pattern)
        # (kind, text): the name of a placeholder, or literal text of kind None.
        self.tokens = [(token.lastgroup, token["name"] or token[0]) for token in tokens]
        names = Counter(text for kind, text in self.tokens if kind == "name")
        self.repeated = [name for name, count in names.items() if count > 1]
        fixed = re.match(r"[^{*?]*", pattern)[0]
        self.folder = fixed.rpartition("/")[0]

    def match(self, path: str) -> dict[str, str] | None:
        """Match a whole path, as a greedy regular expression would.

        Returns:
            {placeholder: its text}; None if the path does not fit.
        Raises:
            ValueError: there are too many ways in which it could.
        """
        if self.extension:
            path, dot, extension = path.rpartition(".")
            if not dot or not extension or "/" in extension:
                return None
            if self.extension not in ("*", extension.lower()):
                return None
        return self._match(path, 0, 0, {}, set(), iter(range(MAX_TRIES)))

    def _match(self, path, index, place, found, failed, tries) -> dict[str, str] | None:
        if index == len(self.tokens):
            return found if place == len(path) else None
        # What failed once fails again, unless another text was captured for a repeated name.
        state = index, place, *(found.get(name) for name in self.repeated)
        if state in failed:
            return None
        kind, text = self.tokens[index]
        for end in _ends(kind, found.get(text) if kind == "name" else text, path, place):
            if next(tries, None) is None:
                raise ValueError(
                    f"the pattern {self.pattern!r} fits {path!r} in too many ways; use fewer "
                    "wildcards and placeholders"
                )
            captured = {**found, text: path[place:end]} if kind == "name" else found
            result = self._match(path, index + 1, end, captured, failed, tries)
            if result is not None:
                return result
        failed.add(state)
        return None


def _is_extension(text: str) -> bool:
    return text == "*" or text.isalnum()


def _ends(kind: str | None, text: str | None, path: str, place: int) -> Iterable[int]:
    """Return where a token that begins at `place` can end, the longest first."""
    if kind is None or (kind == "name" and text is not None):
        return [place + len(text)] if path.startswith(text, place) else []
    if kind == "folders":
        slashes = (i for i in range(len(path) - 1, place - 1, -1) if path[i] == "/")
        return [*(slash + 1 for slash in slashes), place]
    stop = path.find("/", place)
    stop = len(path) if stop < 0 else stop
    if kind == "any":
        return [place + 1] if place < stop else []
    return range(stop, place if kind == "name" else place - 1, -1)
