"""Class heads turn query features into class logits, and logits into what the loss sees.

Shape letters: B images, Q queries, C width, R rows: `[known 0..K-1, (anomaly K), no-object]`.

A head gives logits in `forward`; those serve matching and inference. `loss_logits` turns them
into what the cross entropy sees, given the targets of the matched queries: this is where a margin
acts. Everything runs in float32 whatever autocast says.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anoseg_d2.utils.constants import ARCFACE_SCALE
from anoseg_d2.utils.registry import Registry

__all__ = [
    "CLASS_HEADS",
    "ArcFaceHead",
    "ClassHead",
    "LinearHead",
    "LogitNormHead",
    "add_angular_margin",
    "build_head",
]

CLASS_HEADS = Registry("class head")

# For float32 cosines closer to +-1 than this, the angle has no usable derivative.
COSINE_LIMIT = 1.0 - 1e-6


class ClassHead(nn.Module):
    """Base of the class heads. Subclass it and register the subclass in `CLASS_HEADS`.

    Args:
        width: C, width of the query features.
        num_known: K.
        has_anomaly: whether row K is the learned anomaly class.
    """

    def __init__(self, width: int, num_known: int, has_anomaly: bool = False):
        super().__init__()
        self.width = width
        self.num_known = num_known
        self.has_anomaly = has_anomaly

    @property
    def num_rows(self) -> int:
        """R: known classes, the anomaly class if there is one, no-object."""
        return self.num_known + int(self.has_anomaly) + 1

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, Q, C) to logits (B, Q, R), float32."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def loss_logits(self, class_logits: Tensor, targets: Tensor) -> Tensor:
        """Return the logits that the cross entropy sees; here they are unchanged.

        Args:
            class_logits: (..., R) of `forward`.
            targets: (...) int64 class of each query, R - 1 for no-object.
        """
        return class_logits

    def set_progress(self, progress: float) -> None:
        """Receive the fraction of the run that is done, 0..1. Most heads ignore it."""

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Return the arguments, other than the common three, that a config has for this head."""
        return {}


@CLASS_HEADS.register("linear")
class LinearHead(ClassHead):
    """W x + b, as in EoMT (arXiv:2503.19108)."""

    def __init__(self, width: int, num_known: int, has_anomaly: bool = False):
        super().__init__(width, num_known, has_anomaly)
        linear = nn.Linear(width, self.num_rows)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.weight.float(), self.bias.float())


@CLASS_HEADS.register("logit_norm")
class LogitNormHead(LinearHead):
    """Logit normalisation.

    "Mitigating Neural Network Overconfidence with Logit Normalization" (Wei et al. 2022,
    arXiv:2205.09310): the vector of all R logits is scaled to norm 1 / tau, so that the loss can
    fall only through its direction. The `cosine` form normalises features and rows instead and
    uses no bias.

    Args:
        tau: temperature.
        form: "logits" or "cosine".
        inference: "trained" gives the normalised logits in eval mode too, "raw" gives W x + b as
            Wei et al. do; they differ by one positive factor per query (form "logits").
    """

    def __init__(
        self,
        width: int,
        num_known: int,
        has_anomaly: bool = False,
        *,
        tau: float = 0.04,
        form: str = "logits",
        inference: str = "trained",
    ):
        super().__init__(width, num_known, has_anomaly)
        _require("MODEL.HEAD.LOGIT_NORM.FORM", form, ("logits", "cosine"))
        _require("MODEL.HEAD.LOGIT_NORM.INFERENCE", inference, ("trained", "raw"))
        if not tau > 0:
            raise ValueError(f"MODEL.HEAD.LOGIT_NORM.TAU must be positive, is {tau}")
        self.tau, self.form, self.inference = tau, form, inference
        # A parameter that no loss reaches would stop DistributedDataParallel.
        self.bias.requires_grad_(form != "cosine")

    @classmethod
    def from_config(cls, cfg) -> dict:
        node = cfg.MODEL.HEAD.LOGIT_NORM
        return {"tau": node.TAU, "form": node.FORM, "inference": node.INFERENCE}

    def forward(self, features: Tensor) -> Tensor:
        raw = self.inference == "raw" and not self.training
        if self.form == "cosine" and not raw:
            return cosine_logits(features, self.weight) / self.tau
        logits = super().forward(features)
        return logits if raw else normalize_logits(logits, self.tau)


@CLASS_HEADS.register("arcface")
class ArcFaceHead(ClassHead):
    """Additive angular margin on the known classes.

    "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (Deng et al. 2019,
    arXiv:1801.07698). theta is the angle between the normalised query feature and the normalised
    class row; there is no bias. The margin acts in `loss_logits` only, on the row that a query
    is matched to, if that is a known class: neither on the anomaly row nor on no-object.

    Args:
        scale: s, radius of the hypersphere.
        learn_scale: whether s is a trained parameter.
        margin: m in radians, 0..pi/2.
        margin_ramp: fraction of the run over which the margin grows linearly from 0; 0 for none.
    """

    def __init__(
        self,
        width: int,
        num_known: int,
        has_anomaly: bool = False,
        *,
        scale: float = ARCFACE_SCALE,
        learn_scale: bool = False,
        margin: float = 0.5,
        margin_ramp: float = 0.0,
    ):
        super().__init__(width, num_known, has_anomaly)
        if not 0 <= margin <= math.pi / 2:
            raise ValueError(f"MODEL.HEAD.ARCFACE.MARGIN must be in 0..pi/2 radians, is {margin}")
        if not scale > 0:
            raise ValueError(f"MODEL.HEAD.ARCFACE.SCALE must be positive, is {scale}")
        self.weight = nn.Linear(width, self.num_rows, bias=False).weight
        self.fixed_scale = None if learn_scale else float(scale)
        if learn_scale:
            self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.margin, self.margin_ramp = margin, margin_ramp
        self.progress = 0.0

    @classmethod
    def from_config(cls, cfg) -> dict:
        node = cfg.MODEL.HEAD.ARCFACE
        return {
            "scale": node.SCALE,
            "learn_scale": node.LEARN_SCALE,
            "margin": node.MARGIN,
            "margin_ramp": node.MARGIN_RAMP,
        }

    def _scale(self):
        return self.fixed_scale if self.fixed_scale is not None else self.scale.float()

    def set_progress(self, progress: float) -> None:
        self.progress = progress

    def current_margin(self) -> float:
        """Return the margin in radians at this point of the run."""
        if self.margin_ramp <= 0:
            return self.margin
        return self.margin * min(1.0, self.progress / self.margin_ramp)

    def forward(self, features: Tensor) -> Tensor:
        return self._scale() * cosine_logits(features, self.weight)

    def loss_logits(self, class_logits: Tensor, targets: Tensor) -> Tensor:
        margin = self.current_margin()
        if margin == 0:
            return class_logits
        cosine = class_logits.float() / self._scale()
        known = (targets >= 0) & (targets < self.num_known)
        own = F.one_hot(targets.clamp(0, self.num_rows - 1), self.num_rows).bool()
        with_margin = self._scale() * add_angular_margin(cosine, margin)
        return torch.where(own & known[..., None], with_margin, class_logits)


def cosine_logits(features: Tensor, weight: Tensor) -> Tensor:
    """Return the cosine of the angle between features and class rows.

    Args:
        features: (..., C).
        weight: (R, C).
    Returns:
        (..., R) float32 in [-1, 1] up to rounding.
    """
    with torch.autocast(features.device.type, enabled=False):
        return F.linear(F.normalize(features.float(), dim=-1), F.normalize(weight.float(), dim=-1))


def add_angular_margin(cosine: Tensor, margin: float) -> Tensor:
    """Map cos(theta) to cos(theta + m), decreasing in theta on all of [0, pi].

    Beyond theta = pi - m the cosine would rise again; there cos(theta) - m sin(m) keeps falling
    (the usual "hard margin" continuation). Cosines are clamped to +-(1 - 1e-6), beyond
    which the angle has no usable derivative in float32.

    Args:
        cosine: any shape, computed in float32.
        margin: m in radians, 0..pi/2.
    Returns:
        float32, same shape.
    """
    cosine = cosine.float().clamp(-COSINE_LIMIT, COSINE_LIMIT)
    sine = torch.sqrt(1.0 - cosine.square())
    shifted = cosine * math.cos(margin) - sine * math.sin(margin)
    beyond = cosine - margin * math.sin(margin)
    return torch.where(cosine > math.cos(math.pi - margin), shifted, beyond)


def normalize_logits(logits: Tensor, tau: float) -> Tensor:
    """z / (tau (|z| + 1e-7)) over the last dimension (arXiv:2205.09310), float32."""
    logits = logits.float()
    return logits / (tau * (logits.norm(dim=-1, keepdim=True) + 1e-7))


def build_head(cfg, width: int, num_known: int, has_anomaly: bool) -> ClassHead:
    """Build the head that `cfg.MODEL.HEAD.NAME` names."""
    head = CLASS_HEADS[cfg.MODEL.HEAD.NAME]
    return head(width, num_known, has_anomaly, **head.from_config(cfg))


def _require(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}; allowed: {', '.join(allowed)}")
