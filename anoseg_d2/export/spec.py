"""Describe inputs, outputs and allowed differences of an exported file, without torch."""

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["INPUTS", "OPSET", "Difference", "ExportCheckError", "ExportSpec"]

INPUTS = ("uint8", "float32")  # types of the images, by torch's names
OPSET = 18  # the first with an antialiased Resize; onnxruntime knows it since 1.14


@dataclass(frozen=True)
class ExportSpec:
    """Inputs and outputs of an exported file.

    Args:
        scores: names in `SCORES`, or ensembles.
        input: "uint8" or "float32": images (B, 3, H, W), RGB 0..255 in both cases.
        batch: B; None leaves it open.
        image_size: native (H, W). The graph resizes to the model's input, lays the windows of
            `plan_windows`, merges them, and brings the maps back: it equals `AnomalyPredictor`
            for images of this size.
        any_size: the same for one image of any size. With neither this nor `image_size`, images
            have the size that the model sees.
        confidence: also return the confidence of the segmentation.
        unit_scale: scores are on 0..1 with the thresholds of `anoseg threshold` at 0.5.
        one_byte: also return every score on that scale in one byte, `<score>_byte`: 0..255, with
            the threshold at 128.
        half: weights and network are float16; formulas and outputs stay float32.
        int8: weights of linear layers have 8 bits, their inputs are quantised dynamically.
    """

    scores: tuple[str, ...]
    input: str = "uint8"
    batch: int | None = 1
    image_size: tuple[int, int] | None = None
    any_size: bool = False
    confidence: bool = False
    unit_scale: bool = False
    one_byte: bool = False
    half: bool = False
    int8: bool = False

    def __post_init__(self):
        if self.input not in INPUTS:
            raise ValueError(f"input is {self.input!r}; allowed: {', '.join(INPUTS)}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"the batch must be at least 1, not {self.batch}")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"the image size must be positive, not {self.image_size}")
        if self.half and self.int8:
            raise ValueError("an export is float16 or int8, not both")
        if self.image_size is not None and self.any_size:
            raise ValueError("an export is for one image size or for any size, not for both")
        if self.any_size and self.batch != 1:
            raise ValueError("an export for any size takes one image at a time: the batch is 1")

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs in order."""
        names = ["sem_seg", *self.scores, *(["confidence"] if self.confidence else [])]
        return names + [f"{name}_byte" for name in self.scores if self.one_byte]


class Difference(NamedTuple):
    """The difference of one output from the model's, in one run.

    output: name of the output.
    shape: (B, H, W).
    low, high: lowest and highest value that the model gives.
    largest: largest absolute difference; for `sem_seg` the fraction of differing pixels.
    allowed: upper limit of `largest`.
    """

    output: str
    shape: tuple[int, ...]
    low: float
    high: float
    largest: float
    allowed: float

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
        failed = ", ".join(
            f"{d.output} by {d.largest:.2g} (allowed {d.allowed:.2g})"
            for d in differences
            if not d.passed
        )
        super().__init__(
            f"the exported model differs from the original: {failed}; the file was not kept"
        )
