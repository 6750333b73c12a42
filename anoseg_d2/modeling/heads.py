"""Class heads turn query features into class logits, and logits into what the loss sees.

Shape letters: B images, Q queries, C width, R rows: `[known 0..K-1, (anomaly K), no-object]`.

A head gives logits in `forward`; those serve matching and inference. `loss_logits` turns them
into what the cross entropy sees, given the targets of the matched queries: this is where a margin
acts. Everything runs in float32 whatever autocast says.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anoseg_d2.utils.constants import ARCFACE_SCALE
from anoseg_d2.utils.options import check_options, option, options_of
from anoseg_d2.utils.ranges import number, one_of
from anoseg_d2.utils.registry import Registry

CLASS_HEADS = Registry("class head")

# For float32 cosines closer to +-1 than this, the angle has no usable derivative.
COSINE_LIMIT = 1.0 - 1e-6


class ClassHead(nn.Module):
    """Base of the class heads. Subclass it and register the subclass in `CLASS_HEADS`.

    Args:
        width: C, width of the query features.
        num_known: K.
        has_anomaly: whether row K is the learned anomaly class.
        options: of `options_class`, by name; checkpoints hold them as plain values.
    """

    # Frozen dataclass of the head's options; None without options.
    options_class: ClassVar[type | None] = None

    def __init__(self, width: int, num_known: int, has_anomaly: bool = False, **options):
        super().__init__()
        self.width = width
        self.num_known = num_known
        self.has_anomaly = has_anomaly
        if options and self.options_class is None:
            raise TypeError(f"{type(self).__name__} has no options; found {', '.join(options)}")
        self.options = self.options_class(**options) if self.options_class else None

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
        """Return the options that a config has for this head, by name."""
        return {}

    def stored_options(self) -> dict[str, Any]:
        """Return what checkpoints hold of the options, as plain values."""
        return {} if self.options is None else dataclasses.asdict(self.options)


@CLASS_HEADS.register("linear")
class LinearHead(ClassHead):
    """W x + b, as in EoMT (arXiv:2503.19108)."""

    def __init__(self, width: int, num_known: int, has_anomaly: bool = False, **options):
        super().__init__(width, num_known, has_anomaly, **options)
        # Named as those of a plain `nn.Linear`, which is what EoMT's own checkpoints hold.
        linear = nn.Linear(width, self.num_rows)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.weight.float(), self.bias.float())


@dataclass(frozen=True)
class LogitNormOptions:
    """Options of the `logit_norm` head."""

    tau: float = option(
        0.04, number(0, above=True), "temperature that normalised logits are divided by"
    )
    form: str = option(
        "logits",
        one_of("logits", "cosine"),
        "what is normalised; logits: their vector (Wei et al. 2022); cosine: features and rows",
    )
    inference: str = option(
        "trained",
        one_of("trained", "raw"),
        "logits at inference; trained: normalised as in training; raw: W x + b",
    )

    def __post_init__(self):
        check_options(self)


@CLASS_HEADS.register("logit_norm")
class LogitNormHead(LinearHead):
    """Logit normalisation.

    "Mitigating Neural Network Overconfidence with Logit Normalization" (Wei et al. 2022,
    arXiv:2205.09310): the vector of all R logits is scaled to norm 1 / tau, so that the loss can
    fall only through its direction. The `cosine` form normalises features and rows instead and
    uses no bias.

    At inference, "raw" logits are W x + b, as Wei et al. take them; they differ from those of
    training by one positive factor per query (form "logits").
    """

    options_class = LogitNormOptions

    def __init__(self, width: int, num_known: int, has_anomaly: bool = False, **options):
        super().__init__(width, num_known, has_anomaly, **options)
        # A parameter that no loss reaches would stop DistributedDataParallel.
        self.bias.requires_grad_(self.options.form != "cosine")

    @classmethod
    def from_config(cls, cfg) -> dict:
        return vars(options_of(cfg, "MODEL.HEAD.LOGIT_NORM", LogitNormOptions))

    def forward(self, features: Tensor) -> Tensor:
        options = self.options
        raw = options.inference == "raw" and not self.training
        if options.form == "cosine" and not raw:
            return cosine_logits(features, self.weight) / options.tau
        logits = super().forward(features)
        return logits if raw else normalize_logits(logits, options.tau)


@dataclass(frozen=True)
class ArcFaceOptions:
    """Options of the `arcface` head."""

    scale: float = option(ARCFACE_SCALE, number(0, above=True), "factor on the cosines")
    learn_scale: bool = option(False, says="train that factor too")
    margin: float = option(
        0.5,
        number(0, math.pi / 2),
        "margin added to the angle of the true class, in radians; only for known classes",
    )
    margin_ramp: float = option(
        0.1, number(0, 1), "fraction of the run over which the margin grows; 0: none"
    )

    def __post_init__(self):
        check_options(self)


@CLASS_HEADS.register("arcface")
class ArcFaceHead(ClassHead):
    """Additive angular margin on the known classes.

    "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (Deng et al. 2019,
    arXiv:1801.07698). theta is the angle between the normalised query feature and the normalised
    class row; there is no bias. The margin acts in `loss_logits` only, on the row that a query
    is matched to, if that is a known class: neither on the anomaly row nor on no-object.
    """

    options_class = ArcFaceOptions

    def __init__(self, width: int, num_known: int, has_anomaly: bool = False, **options):
        super().__init__(width, num_known, has_anomaly, **options)
        self.weight = nn.Linear(width, self.num_rows, bias=False).weight
        if self.options.learn_scale:
            self.scale = nn.Parameter(torch.tensor(float(self.options.scale)))
        self.progress = 0.0

    @classmethod
    def from_config(cls, cfg) -> dict:
        return vars(options_of(cfg, "MODEL.HEAD.ARCFACE", ArcFaceOptions))

    def stored_options(self) -> dict[str, Any]:
        # A learned scale is a tensor of the checkpoint, and the ramp is over when it is used.
        stored = {"margin": self.options.margin, "scale": float(self.options.scale)}
        return {k: v for k, v in stored.items() if k != "scale" or not self.options.learn_scale}

    def _scale(self):
        return self.scale.float() if self.options.learn_scale else float(self.options.scale)

    def set_progress(self, progress: float) -> None:
        self.progress = progress

    def current_margin(self) -> float:
        """Return the margin in radians at this point of the run."""
        margin, ramp = self.options.margin, self.options.margin_ramp
        return margin * min(1.0, self.progress / ramp) if ramp > 0 else margin

    def forward(self, features: Tensor) -> Tensor:
        return self._scale() * cosine_logits(features, self.weight)

    def loss_logits(self, class_logits: Tensor, targets: Tensor) -> Tensor:
        margin = self.current_margin()
        if margin == 0:
            return class_logits
        # The criterion has logits, not cosines; the margin is of the angle.
        cosine = class_logits.float() / self._scale()
        known = (targets >= 0) & (targets < self.num_known)
        # Clamped only for `one_hot`: `known` leaves out whatever that changed.
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
    # With the 8 bits of bfloat16 a thousand pixels would share one cosine.
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
    # The addition theorem, because the slope of arccos is infinite at 1.
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
