"""Link the components of a video's frames into events: one identity per thing, from end to end.

Two guesses say where an event is in the next frame: dense optical flow carries its pixels, and its
last boxes go on at their speed. A component belongs to the event that it overlaps by either guess;
where several could be meant, an assignment decides. An event that is hidden, or under the
threshold, is waited for where its speed takes it.

Shapes: H W frame.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from anoseg_d2.prediction.detections import Detection, find_detections
from anoseg_d2.prediction.pictures import draw_detections
from anoseg_d2.prediction.temporal import Motion

# The least that a component and an event share, as a fraction of the smaller of the two.
LEAST_OVERLAP = 0.25
# A further component is a part of an event if this fraction of it is on the event's pixels, and its
# box is no further from the event's than this fraction of the event's longer side.
PART_OVERLAP, PART_DISTANCE = 0.25, 0.25
SPEED_FRAMES = 6  # last frames in which its speed is measured
GAP_SECONDS = 1.0  # how long an event is waited for
LEAST_SECONDS = 0.2  # shorter events are flicker of the score, and are not reported


@dataclass(eq=False)
class Event:
    """One anomalous thing in a video.

    Args:
        identity: its number in the video, from 1, in order of appearance.
        boxes: frame number -> (x, y, width, height) around all its components, pixels; only frames
            in which it was seen.
        peak: its highest score, and `peak_frame` the frame in which it was reached.
        total, pixels: sum of its scores and number of its pixels, over all frames.
    """

    identity: int
    boxes: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    peak: float = float("-inf")
    peak_frame: int = 0
    total: float = 0.0
    pixels: int = 0

    def add(self, frame: int, parts: Sequence[Detection]) -> None:
        """Add the components of a frame."""
        corners = np.stack([_corners(part.box) for part in parts])
        left, top = corners[:, :2].min(0).tolist()
        right, bottom = corners[:, 2:].max(0).tolist()
        self.boxes[frame] = left, top, right - left, bottom - top
        highest = max(part.highest for part in parts)
        if highest > self.peak:
            self.peak, self.peak_frame = highest, frame
        self.total += sum(part.score * part.area for part in parts)
        self.pixels += sum(part.area for part in parts)

    @property
    def first(self) -> int:
        return next(iter(self.boxes))

    @property
    def last(self) -> int:
        return next(reversed(self.boxes))

    def expected(self, frame: int) -> np.ndarray:
        """Return the corners (x0, y0, x1, y1) that it has in a frame if it moves on as before."""
        recent = list(itertools.islice(reversed(self.boxes.items()), SPEED_FRAMES))
        (last, box), (first, before) = recent[0], recent[-1]
        # The outlines of a new event are too ragged to tell a speed from two of them.
        speed = (_corners(box) - _corners(before)) / max(last - first, SPEED_FRAMES - 1)
        return _corners(box) + (frame - last) * speed

    def record(self) -> dict:
        """Return what events.jsonl holds of it; `box` is that of the peak."""
        return {
            "event": self.identity,
            "first_frame": self.first,
            "last_frame": self.last,
            "frames": len(self.boxes),
            "box": list(self.boxes[self.peak_frame]),
            "mean_score": self.total / self.pixels,
            "peak_score": self.peak,
            "peak_frame": self.peak_frame,
            "boxes": [[frame, *box] for frame, box in self.boxes.items()],
        }


class EventLinker:
    """Link the components of frames, which come in order.

    Args:
        threshold: a pixel is anomalous where score >= threshold.
        min_size: components of fewer pixels are left out.
        max_gap: most frames that an event may be unseen.
        min_frames: events that are seen in fewer frames are dropped when they end.
    """

    def __init__(
        self, threshold: float, *, min_size: int = 50, max_gap: int = 25, min_frames: int = 5
    ):
        self.threshold, self.min_size = threshold, min_size
        self.max_gap, self.min_frames = max_gap, min_frames
        self._motion = Motion()
        self._alive: list[Event] = []
        # (H, W) index in `_alive` + 1 of the events in the last frame, 0 for none.
        self._seen: np.ndarray | None = None
        self._frame = self._named = 0

    def __call__(
        self, frame: np.ndarray, score: np.ndarray
    ) -> tuple[list[tuple[Event, Detection]], list[Event]]:
        """Link the next frame.

        Args:
            frame: (H, W, 3) uint8 BGR.
            score: (H, W) floats, higher = more anomalous.
        Returns:
            the components of the frame with their events, which include events that may still turn
            out as flicker; and the events that have ended.
        """
        found = find_detections(score, self.threshold, self.min_size)
        moved = self._motion(frame)
        carried = np.zeros(score.shape, np.int32)  # where the last frame's events are in this one
        if moved is not None and self._seen is not None:
            # Floats, because OpenCV moves no wide integers; nearest neighbours stay whole numbers.
            seen = cv2.remap(self._seen.astype(np.float32), moved[0], None, cv2.INTER_NEAREST)
            carried = seen.astype(np.int32)
        owners = self._match(found, carried)
        parts: dict[Event, list[Detection]] = {}
        for detection, event in zip(found, owners, strict=True):
            parts.setdefault(event, []).append(detection)
        for event, detections in parts.items():
            event.add(self._frame, detections)
        ended = self._remember(parts, score.shape)
        self._frame += 1
        return list(zip(owners, found, strict=True)), ended

    def close(self) -> list[Event]:
        """Return the events that the end of the video ends."""
        ended, self._alive, self._seen = self._alive, [], None
        return self._worth(ended)

    def _worth(self, events) -> list[Event]:
        return [event for event in events if len(event.boxes) >= self.min_frames]

    def _match(self, found: Sequence[Detection], carried: np.ndarray) -> list[Event]:
        """Return the event of each component; new events where none fits."""
        union, smaller, part = self._overlaps(found, carried)
        # What was seen once may be flicker on a thing that has been seen for long.
        seen = np.array([len(event.boxes) for event in self._alive], float)
        union = union * (1 - 0.5 / seen)[:, None]
        owners: dict[int, Event] = {}
        taken: dict[int, int] = {}
        for row, column in zip(*linear_sum_assignment(union, maximize=True), strict=True):
            if smaller[row, column] > LEAST_OVERLAP:
                owners[column] = self._alive[row]
                taken[row] = column
        # A thing may come in pieces; only those of an event that is seen are taken for pieces.
        for column in set(range(len(found) if self._alive else 0)) - owners.keys():
            row = int(part[:, column].argmax())
            fits = row in taken and part[row, column] >= PART_OVERLAP
            if fits and _close(found[column].box, found[taken[row]].box):
                owners[column] = self._alive[row]
        for column in range(len(found)):
            if column not in owners:
                self._named += 1
                owners[column] = Event(self._named)
        return [owners[column] for column in range(len(found))]

    def _overlaps(self, found: Sequence[Detection], carried: np.ndarray):
        """Return how events and components overlap: (events, components) fractions, 0..1, of their
        union, of the smaller one, and of the component."""
        count = len(self._alive)
        shared = np.zeros((count, len(found)))
        for column, detection in enumerate(found):
            x, y, width, height = detection.box
            inside = carried[y : y + height, x : x + width][detection.mask]
            shared[:, column] = np.bincount(inside.ravel(), minlength=count + 1)[1:]
        there = np.bincount(carried.ravel(), minlength=count + 1)[1:, None]
        areas = np.array([detection.area for detection in found], float)[None]
        by_flow = _fractions(shared, there, areas)
        # The flow of a small thing is that of the road around it, which moves while the thing
        # hardly does: where its box was going is the better guess then.
        ours = np.array([e.expected(self._frame) for e in self._alive]).reshape(-1, 1, 4)
        theirs = np.array([_corners(d.box) for d in found]).reshape(1, -1, 4)
        ends = np.minimum(ours[..., 2:], theirs[..., 2:])
        shared = np.maximum(ends - np.maximum(ours[..., :2], theirs[..., :2]), 0).prod(-1)
        sizes = ((box[..., 2:] - box[..., :2]).clip(1).prod(-1) for box in (ours, theirs))
        by_place = _fractions(shared, *sizes)
        return [np.maximum(*pair) for pair in zip(by_flow, by_place, strict=True)]

    def _remember(self, parts: dict[Event, list], size: tuple[int, int]) -> list[Event]:
        """Draw what the next frame is linked to, (H, W) `size`; return the events that ended."""
        before, self._alive = self._alive, list(parts)
        height, width = size
        self._seen = np.zeros(size, np.int32)
        for number, detections in enumerate(parts.values(), 1):
            for (x, y, w, h), *_, mask in detections:
                self._seen[y : y + h, x : x + w][mask] = number
        ended = []
        for event in (event for event in before if event not in parts):
            # What was seen for two frames is waited for in two: flicker on a thing would take its
            # place. What has left the frame is over.
            late = self._frame - event.last > min(self.max_gap, len(event.boxes))
            left, top, right, bottom = event.expected(self._frame + 1)
            outside = right <= 0 or bottom <= 0 or left >= width or top >= height
            (ended if late or outside else self._alive).append(event)
        return self._worth(ended)


def _corners(box: tuple[int, ...]) -> np.ndarray:
    x, y, width, height = box
    return np.array((x, y, x + width, y + height))


def _fractions(shared: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> list[np.ndarray]:
    """Return what is shared, as fractions of the union, of the smaller one and of theirs."""
    wholes = ours + theirs - shared, np.minimum(ours, theirs), theirs
    return [shared / np.maximum(whole, 1) for whole in wholes]


def _close(box: tuple[int, ...], main: tuple[int, ...]) -> bool:
    """Return whether two boxes are near enough to hold parts of one thing."""
    gaps = (max(box[i] - main[i] - main[i + 2], main[i] - box[i] - box[i + 2]) for i in (0, 1))
    return max(gaps) <= PART_DISTANCE * max(main[2:])


class VideoEvents:
    """Link the frames of one video file, and describe its events as plain values.

    Args:
        file_name: name of the video.
        fps: frames per second, which turn seconds into numbers of frames.
        threshold, min_size: as in `EventLinker`.

    Attributes:
        records: of the events that have ended, `Event.record` with `video`, and with `start` and
            `end`, the times of the first and the last frame in s.
    """

    def __init__(self, file_name: str, fps: float, threshold: float, min_size: int):
        gap, least = (max(1, round(seconds * fps)) for seconds in (GAP_SECONDS, LEAST_SECONDS))
        self.linker = EventLinker(threshold, min_size=min_size, max_gap=gap, min_frames=least)
        self.file_name, self.records = file_name, []
        self._times: list[float | None] = []

    def __call__(
        self, time: float | None, frame: np.ndarray, score: np.ndarray
    ) -> list[tuple[Event, Detection]]:
        """Link the next frame, shown at `time` in s; returns its components and their events."""
        self._times.append(time)
        found, ended = self.linker(frame, score)
        self._record(ended)
        return found

    def draw(self, time: float | None, photo: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Link the next frame, (H, W, 3) uint8 RGB, and return it with the events' numbers."""
        found = self(time, photo[..., ::-1], score)
        # What has only just appeared may be flicker.
        found = [pair for pair in found if len(pair[0].boxes) >= self.linker.min_frames]
        labels = [f"#{event.identity} {detection.score:.2f}" for event, detection in found]
        return draw_detections(photo, [detection for _, detection in found], labels)

    def __enter__(self) -> "VideoEvents":
        return self

    def __exit__(self, *error) -> None:
        self._record(self.linker.close())

    def _record(self, events: Sequence[Event]) -> None:
        for event in events:
            times = {"start": self._times[event.first], "end": self._times[event.last]}
            self.records.append({"video": self.file_name, **times, **event.record()})
