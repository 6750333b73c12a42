"""The model itself, inside whatever training has wrapped around it."""

from torch import nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["unwrap"]


def unwrap(model: nn.Module) -> nn.Module:
    """Remove DistributedDataParallel, `torch.compile` and weight averaging from around a model."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
    while True:
        inner = getattr(model, "_orig_mod", None)  # of torch.compile
        if inner is None and isinstance(model, wrappers):
            inner = model.module
        if inner is None:
            return model
        model = inner
