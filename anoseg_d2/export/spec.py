"""Describe inputs, outputs and allowed differences of an exported file, without torch."""

from dataclasses import dataclass
from typing import NamedTuple

from anoseg_d2.utils.options import check_options, names_of, option
from anoseg_d2.utils.ranges import one_of

OPSET = 18  # the first with an antialiased Resize; onnxruntime knows it since 1.14


@dataclass(frozen=True)
class ExportSpec:
    """Inputs and outputs of an exported file.

    Args:
        scores: names in `SCORES`, or ensembles.
        batch: B; None leaves it open.
        image_size: native (H, W). The graph resizes to the model's input, lays the windows of
            `plan_windows`, merges them, and brings the maps back: it equals `AnomalyPredictor`
            for images of this size.
        any_size: the same for one image of any size. With neither this nor `image_size`, images
            have the size that the model sees.
        input: type of the images (B, 3, H, W), RGB 0..255 in both cases.
    The others say themselves what they are.
    """

    scores: tuple[str, ...]
    batch: int | None = 1
    image_size: tuple[int, int] | None = None
    any_size: bool = False
    input: str = option("uint8", one_of("uint8", "float32"), "type of the images")
    confidence: bool = option(False, says="also the confidence of the classes, 0..1")
    unit_scale: bool = option(
        False, says="scores on a scale of 0..1, with the thresholds of `anoseg threshold` at 0.5"
    )
    one_byte: bool = option(
        False, says="also scores on that scale in one byte, <score>_byte; the threshold is at 128"
    )
    half: bool = option(
        False, says="weights and network in float16; outputs stay float32", argument="--fp16"
    )
    int8: bool = option(
        False, says="8-bit weights of linear layers, inputs quantised: smaller and faster on CPUs"
    )

    def __post_init__(self):
        check_options(self)
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"the batch must be at least 1, not {self.batch}")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"the image size must be positive, not {self.image_size}")
        if self.half and self.int8:
            raise ValueError(f"give one of {' and '.join(names_of(self, 'half', 'int8'))}")
        if self.image_size is not None and self.any_size:
            raise ValueError("an export is for one image size or for any size, not for both")
        if self.any_size and self.batch != 1:
            raise ValueError("an export for any size takes one image at a time: the batch is 1")

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs in order."""
        names = ["sem_seg", *self.scores, *(["confidence"] if self.confidence else [])]
        return names + [f"{name}_byte" for name in self.scores if self.one_byte]

    @property
    def precision(self) -> str:
        """Type of the weights: float32, float16 or int8."""
        return "float16" if self.half else "int8" if self.int8 else "float32"


class Difference(NamedTuple):
    """The difference of one output from the model's, in one run."""

    output: str
    shape: tuple[int, ...]  # (B, H, W)
    low: float  # lowest and highest value that the model gives
    high: float
    largest: float  # absolute difference; of classes and bytes, fraction of pixels that differ
    allowed: float  # upper limit of `largest`

    @property
    def passed(self) -> bool:
        """Whether the difference is allowed; False if it is NaN."""
        return bool(self.largest <= self.allowed)


class ExportCheckError(RuntimeError):
    """Raised when an exported file differs from its model by more than is allowed.

    Args:
        differences: all measured differences.
    """

    def __init__(self, differences: list[Difference]):
        self.differences = differences
        failed = [d for d in differences if not d.passed]
        named = (f"{d.output} by {d.largest:.2g} (allowed {d.allowed:.2g})" for d in failed)
        super().__init__(
            f"the exported model differs from the original: {', '.join(named)}; "
            "the file was not kept"
        )
