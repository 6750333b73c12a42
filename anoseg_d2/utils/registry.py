"""A table for choice by name that refuses duplicates and, for an unknown name, lists the known."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["Registry"]


class Registry(Mapping):
    """Mapping from names to objects.

    Args:
        kind: what is registered, for messages, such as "class head".

    Example::

        CLASS_HEADS = Registry("class head")

        @CLASS_HEADS.register("mine")
        class MyHead(nn.Module): ...
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """Return a decorator that registers its object as `name`; ValueError on a duplicate.

        A class also gets an attribute `name` with its name.
        """

        def file(entry):
            if name in self._entries:
                raise ValueError(
                    f"{self.kind} {name!r} is already registered: {self._entries[name]}"
                )
            self._entries[name] = entry
            if isinstance(entry, type):
                entry.name = name
            return entry

        return file

    def remove(self, name: str) -> None:
        """Forget a name if it is there, so that the cell of a notebook can register it again."""
        self._entries.pop(name, None)

    def __getitem__(self, name: str) -> Any:
        if name not in self._entries:
            raise ValueError(f"unknown {self.kind} {name!r}; known: {', '.join(self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
