"""Remove the wrappers that training puts around a model."""

from torch import nn
from torch.optim.swa_utils import AveragedModel


def unwrap(model: nn.Module) -> nn.Module:
    """Return a model without DistributedDataParallel, `torch.compile` and weight averaging."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
    while True:
        inner = getattr(model, "_orig_mod", None)  # set by torch.compile
        if inner is None and isinstance(model, wrappers):
            inner = model.module
        if inner is None:
            return model
        model = inner
