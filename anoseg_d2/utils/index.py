"""Import the public names of a package when they are first used."""

import importlib
import sys
from collections.abc import Callable, Mapping


def lazy_index(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package's `__init__` (PEP 562).

    A package that imports its modules at once would import detectron2 with them; with this,
    pure modules such as `scores` do without it.

    Args:
        package: `__name__` of the package.
        modules: public name to the module in the package that defines it.

    Example::

        _MODULES = {"EoMT": "eomt"}
        __all__ = list(_MODULES)
        __getattr__, __dir__ = lazy_index(__name__, _MODULES)
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get, names
