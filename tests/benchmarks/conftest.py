"""Scripts of `benchmarks/` as modules."""

import importlib.util
from pathlib import Path

import pytest

from anoseg_d2.modeling import PATCH_HEADS, SCORES

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load_benchmark():
    """Function that imports a script by name; the scores that it registers go with the test."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    before = [(registry, set(registry)) for registry in (SCORES, PATCH_HEADS)]
    yield load
    for registry, names in before:
        for name in set(registry) - names:
            registry.remove(name)
