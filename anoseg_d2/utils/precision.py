"""Choose the type of mixed precision, for training and inference."""

import logging

import torch

logger = logging.getLogger(__name__)


def amp_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the type of mixed precision on a device, or None for float32.

    `auto` is bfloat16 where the device computes in it, float16 on older CUDA devices, which only
    emulate bfloat16 (V100, T4, RTX 20), and float32 elsewhere.

    Args:
        precision: SOLVER.AMP.PRECISION: "auto", "bf16" or "fp16".
        device: where the network runs.
    """
    if precision != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        # `torch.cuda.is_bf16_supported` also says yes where bfloat16 is emulated, several times
        # slower than float32; tensor cores compute in it from compute capability 8.0 on.
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native or torch.version.hip else torch.float16
    if device.type == "cpu" and _cpu_has_bf16():
        return torch.bfloat16
    logger.info("SOLVER.AMP.PRECISION auto: this device has no fast bf16; using float32")
    return None


def _cpu_has_bf16() -> bool:
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build of torch without oneDNN
        return False
