"""Recorded outputs in `tests/assets/golden/`: how they are compared, and recorded again.

Strings, keys, shapes and integers are compared exactly. Floats are compared with a tolerance,
because another CPU adds in another order; so a large array is recorded as a few of its values.
"""

import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch

SEED = 24  # of weights with which every class is predicted somewhere
FOLDER = Path(__file__).parent / "assets" / "golden"
WRITE = "ANOSEG_WRITE_GOLDEN"


def check(
    name: str, found, *, rtol: float = 2e-3, atol: float = 2e-4, removed: frozenset = frozenset()
) -> None:
    """Compare `found` (plain JSON values) with the record `name`, or record it if so asked.

    Args:
        name: file in `tests/assets/golden/`, without its ending.
        found: what the code gives now.
        rtol, atol: tolerance of floats.
        removed: keys that the record has and the code has lost on purpose.
    """
    path = FOLDER / f"{name}.json"
    found = json.loads(json.dumps(_rounded(found)))
    if os.environ.get(WRITE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_dumped(found))
    expected = _without(json.loads(path.read_text()), removed)
    differences = list(_compare(expected, found, name, rtol, atol))
    assert not differences, "\n".join(differences[:20])


def _without(value, removed: frozenset):
    if isinstance(value, dict):
        return {k: _without(v, removed) for k, v in value.items() if k not in removed}
    return value


def _dumped(found) -> str:
    """Return JSON with one line per entry of the first level, so that a diff shows what changed."""
    if not isinstance(found, dict):
        return json.dumps(found, ensure_ascii=False) + "\n"
    rows = (f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in found.items())
    return "{\n" + ",\n".join(rows) + "\n}\n"


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def _compare(expected, found, where: str, rtol: float, atol: float):
    """Yield a line for every place in which two JSON values differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if missing := sorted(expected.keys() - found.keys()):
            yield f"{where}: {missing} are gone"
        if more := sorted(found.keys() - expected.keys()):
            yield f"{where}: {more} are new"
        for key in expected.keys() & found.keys():
            yield from _compare(expected[key], found[key], f"{where}.{key}", rtol, atol)
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            yield f"{where}: {len(expected)} items were recorded, found {len(found)}"
        for index, pair in enumerate(zip(expected, found, strict=False)):
            yield from _compare(*pair, f"{where}[{index}]", rtol, atol)
    elif isinstance(expected, float) and isinstance(found, (int, float)):
        if not math.isclose(expected, found, rel_tol=rtol, abs_tol=atol):
            yield f"{where}: {expected} was recorded, found {found}"
    elif expected != found or type(expected) is not type(found):
        yield f"{where}: {expected!r} was recorded, found {found!r}"


def figures(array) -> dict:
    """Return the shape, type, mean and 12 values of an array of floats."""
    array = np.asarray(array)
    places = np.linspace(0, array.size - 1, 12).astype(int)
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "mean": float(array.mean(dtype=np.float64)),
        "values": array.reshape(-1)[places].astype(np.float64).tolist(),
    }


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Set each parameter to numbers that follow from its name and shape, not from the order."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rng = np.random.default_rng(zlib.crc32(f"{SEED} {name}".encode()))
            values = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)).astype("float32"))
            if parameter.ndim > 1:
                std = {"query.weight": 3.0, "class_head.weight": 1.0}.get(name, 0.2)
                parameter.copy_(values * std)
            elif parameter.ndim == 1:
                parameter.copy_(values * 0.05 + name.endswith(("weight", "gamma")))
    return model


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw smooth colours with two sharp edges, (H, W, 3) uint8."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    channels = [
        127 + 90 * np.sin(rows / (7 + seed) + k) * np.cos(columns / (11 - k) + seed)
        for k in range(3)
    ]
    image = np.stack(channels, axis=-1)
    image[height // 3 : height // 2, width // 4 : width // 2] = (200, 40 + 20 * seed, 90)
    return image.clip(0, 255).astype(np.uint8)
