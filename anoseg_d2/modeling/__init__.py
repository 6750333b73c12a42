"""The network, its class heads, losses, adapters and anomaly scores."""

import importlib

_EXPORTS = {"EoMT": "anoseg_d2.modeling.eomt"}
__all__ = sorted(_EXPORTS)


def __getattr__(name):
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
