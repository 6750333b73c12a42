"""Run a callback once another module has been imported."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable


def after_import(module: str, callback: Callable[[], object]) -> None:
    """Call `callback()` as soon as `module` is imported; at once, if it already is.

    The same idea as PEP 369's `imp.when_imported`.

    Args:
        module: dotted name.
        callback: takes no arguments; the import raises whatever it raises.
    """
    if module in sys.modules:
        callback()
    else:
        sys.meta_path.insert(0, _Watcher(module, callback))


class _Watcher(importlib.abc.MetaPathFinder):
    """Finder that lets the others find the module, and adds the callback to its loader."""

    def __init__(self, module: str, callback: Callable[[], object]):
        self.module, self.callback = module, callback

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)  # once is enough, and the search below must not come back here
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                self.callback()

            spec.loader.exec_module = exec_module
        return spec
