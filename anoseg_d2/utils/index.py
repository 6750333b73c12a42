"""Import the public names of a package when they are first used."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence


def lazy_index(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], object], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` for a package's `__init__` (PEP 562).

    A package that imports its modules at once would import detectron2 with them; with this,
    pure modules such as `scores` do without it.

    Args:
        package: `__name__` of the package.
        modules: module in the package to the public names that it defines.

    Example::

        __all__, __getattr__, __dir__ = lazy_index(__name__, {"eomt": ["EoMT"]})
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return list(homes), get, names
