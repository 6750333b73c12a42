"""Registry for choice by name; refuses duplicates and lists the known names for an unknown one."""

from collections.abc import Callable
from typing import Any


class Registry(dict):
    """Names to objects, in the order in which they were registered.

    Args:
        kind: what is registered, for messages, such as "class head".

    Example::

        CLASS_HEADS = Registry("class head")

        @CLASS_HEADS.register("mine")
        class MyHead(nn.Module): ...
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[Any], Any]:
        """Return a decorator that registers its object as `name`; ValueError on a duplicate.

        A class also gets an attribute `name` with its name.
        """

        def file(entry):
            if name in self:
                raise ValueError(f"{self.kind} {name!r} is already registered: {self[name]}")
            self[name] = entry
            if isinstance(entry, type):
                entry.name = name
            return entry

        return file

    def remove(self, name: str) -> None:
        """Forget a name if it is registered, so that a notebook cell can be run again."""
        self.pop(name, None)

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"unknown {self.kind} {name!r}; known: {', '.join(self)}")
