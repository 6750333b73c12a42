"""The temporal filter on a made sequence: moving camera, moving object, flickering score."""

import cv2
import numpy as np
import pytest

from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.prediction.temporal import TemporalFilter

HEIGHT, WIDTH = 96, 128


def texture(rng, height, width, sigma):
    noise = cv2.GaussianBlur(rng.normal(size=(height, width, 3)).astype(np.float32), (0, 0), sigma)
    return (noise / noise.std() * 40 + 128).clip(0, 255).astype(np.uint8)


def sequence(frames=10, seed=0):
    """Yield (frame, label, score): the score is the label in noise that is new in every frame."""
    rng = np.random.default_rng(seed)
    scene, thing = texture(rng, HEIGHT, WIDTH + 2 * frames, 3), texture(rng, 26, 30, 2)
    for index in range(frames):
        frame = scene[:, 2 * index : 2 * index + WIDTH].copy()
        label = np.zeros((HEIGHT, WIDTH), np.uint8)
        x, y = 15 + 4 * index, 30 + index
        frame[y : y + 26, x : x + 30] = 255 - thing // 2
        label[y : y + 26, x : x + 30] = 1
        frame = (frame + rng.normal(size=frame.shape) * 3).clip(0, 255).astype(np.uint8)
        blobs = cv2.GaussianBlur(rng.normal(size=label.shape), (0, 0), 4)
        flicker = 0.6 * blobs / blobs.std() + 0.2 * rng.normal()
        yield frame, label, (label + flicker).astype(np.float32)


def measure(filtered):
    """AUPRC over the sequence and mean change from frame to frame, of `filtered(frame, score)`."""
    metrics, changes, before = PixelMetrics(), [], None
    for frame, label, score in sequence():
        score = filtered(frame, score)
        metrics.update(score, label)
        if before is not None:
            changes.append(np.abs(score - before).mean())
        before = score
    return metrics.compute()["auprc"], np.mean(changes)


class StillAverage:
    """The same average without motion."""

    def __init__(self, alpha):
        self.alpha, self.past = alpha, None

    def __call__(self, frame, score):
        past = score if self.past is None else self.past
        self.past = score * self.alpha + past * (1 - self.alpha)
        return self.past


@pytest.fixture(scope="module")
def figures():
    flow = TemporalFilter(0.3)
    return {
        "raw": measure(lambda frame, score: score),
        "flow": measure(lambda frame, score: flow(frame, {"s": score})["s"]),
        "still": measure(StillAverage(0.3)),
    }


def test_auprc_rises_and_flicker_falls(figures):
    (raw, raw_change), (flow, flow_change) = figures["raw"], figures["flow"]
    assert flow > raw + 0.12
    assert flow_change < raw_change / 2.5


def test_following_the_motion_beats_an_average_in_place(figures):
    assert figures["flow"][0] > figures["still"][0] + 0.05


def test_a_static_video_is_a_fixed_point():
    frame, _, score = next(sequence())
    flow = TemporalFilter(0.2)
    for _ in range(4):
        assert np.array_equal(flow(frame, {"s": score})["s"], score)


def test_weight_one_changes_nothing():
    flow = TemporalFilter(1.0)
    for frame, _, score in sequence(3):
        assert np.array_equal(flow(frame, {"s": score})["s"], score)


def test_a_cut_starts_again():
    flow = TemporalFilter(0.3)
    first, second = next(sequence(seed=1)), next(sequence(seed=2))
    flow(first[0], {"s": first[2] + 50})
    assert np.array_equal(flow(second[0], {"s": second[2]})["s"], second[2])


def test_what_was_hidden_keeps_its_current_score():
    """A dark square moves 8 pixels to the right; the strip behind it was not visible before."""
    rng = np.random.default_rng(3)
    scene = texture(rng, HEIGHT, WIDTH, 3)
    flow, results = TemporalFilter(0.3), []
    for x in (30, 38):
        frame = scene.copy()
        frame[30:60, x : x + 30] = texture(np.random.default_rng(4), 30, 30, 2) // 4
        score = np.zeros((HEIGHT, WIDTH), np.float32)
        score[30:60, x : x + 30] = 1
        results.append(flow(frame, {"s": score})["s"])
    disclosed = results[1][36:54, 32:36]
    assert disclosed.mean() < 0.1, "the object's score is not smeared behind it"
    assert results[1][36:54, 44:62].mean() > 0.9, "and stays on the object"


def test_several_scores_and_a_change_of_size_are_accepted():
    flow = TemporalFilter(0.5)
    frame, _, score = next(sequence())
    flow(frame, {"a": score})
    found = flow(frame, {"a": score, "b": score * 2})
    assert np.array_equal(found["b"], score * 2)
    small = flow(frame[:60, :80], {"a": score[:60, :80]})["a"]
    assert np.array_equal(small, score[:60, :80])


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.5, float("nan")])
def test_a_weight_out_of_range_is_refused(alpha):
    with pytest.raises(ValueError, match="weight of the current frame"):
        TemporalFilter(alpha)
