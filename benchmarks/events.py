#!/usr/bin/env python
"""Carry objects along a drive, and measure how many of them stay one event.

Objects of a COCO file stand on the road of a video without anomalies and come closer as the camera
would see them, so that the visible pixels of each are known in every frame. Figures: the fraction
of an object's visible frames that its most frequent identity holds, the changes of identity, and,
on the drive without objects, components and events per minute.

Without --weights the score is the truth itself with the faults of a detector: missed frames, ragged
outlines, pieces, and blobs that flicker where nothing is. It measures only the linking.

Example:
    python benchmarks/events.py --video drive.mp4 --coco-json instances_val2017.json \\
        --coco-images val2017 --json events.json
"""

import argparse
import itertools
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from anoseg_d2.data.cut_paste.coco import CocoObjects
from anoseg_d2.data.cut_paste.paste import PasteObject
from anoseg_d2.prediction.detections import find_detections
from anoseg_d2.prediction.events import VideoEvents
from anoseg_d2.prediction.video import open_video
from anoseg_d2.utils.cli import Progress, run_command
from anoseg_d2.utils.files import write_json

HORIZON, FOCAL = 0.58, 0.9  # of the frame's height and width: a dash camera that looks ahead
CAMERA_HEIGHT, SPEED = 1.4, 15.0  # m, m/s
FAR, NEAR = 60.0, 4.0  # m: where an object appears, and where it is passed
EVERY = 1.2  # s between two objects
MIN_SIZE = 50  # pixels of a component
VISIBLE = 100  # pixels of an object that could be seen


def main(argv=None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", required=True, help="a drive without anomalies")
    parser.add_argument("--coco-json", required=True)
    parser.add_argument("--coco-images", required=True)
    parser.add_argument("--weights", help="score the frames with these; default: a made score")
    parser.add_argument("--score", default="memory", help="of --weights (default: %(default)s)")
    parser.add_argument("--threshold", type=float, help="of the score; needed with --weights")
    parser.add_argument("--max-frames", type=int, help="read at most so many frames")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    args = parser.parse_args(argv)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Measure with and without objects, print and write the figures."""
    if args.weights and args.threshold is None:
        raise ValueError("--weights needs --threshold")
    with open_video(args.video) as reader:
        fps = reader.fps
        frames = [frame for frame, _ in itertools.islice(reader, args.max_frames)]
    generator = np.random.default_rng(args.seed)
    source = CocoObjects(args.coco_json, args.coco_images)
    count = max(1, int(len(frames) / fps / EVERY))
    objects = [source.load(source.sample(generator)) for _ in range(count)]
    score = make_score(args, generator)
    threshold = 0.5 if args.threshold is None else args.threshold
    minutes = len(frames) / fps / 60

    truths, linked, _, _ = link(carry(frames, objects, fps, generator), score, fps, threshold)
    nothing = ((frame, np.zeros(frame.shape[:2], np.int32)) for frame in frames)
    _, _, components, events = link(nothing, score, fps, threshold)
    figures = {
        "frames": len(frames),
        **figures_of_objects(truths, linked),
        "clean_components_per_minute": round(components / minutes, 1),
        "clean_events_per_minute": round(events / minutes, 1),
    }
    print(json.dumps(figures, indent=1))
    if args.json:
        write_json(args.json, figures)
    return 0


def carry(
    frames: Sequence[np.ndarray], objects: Sequence[PasteObject], fps: float, generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each frame with the objects that stand there, and (H, W) object number, 0 for none."""
    sides = generator.uniform(0.6, 1.5, len(objects))  # m
    # Metres right of the camera; every other one stands to its left.
    lanes = generator.uniform(1.5, 4.5, len(objects)) * (-1) ** np.arange(len(objects))
    for number, frame in enumerate(frames):
        frame, truth = frame.copy(), np.zeros(frame.shape[:2], np.int32)
        distances = FAR + SPEED * (EVERY * np.arange(len(objects)) - number / fps)
        for index in np.argsort(-distances):  # the nearest is in front
            if NEAR < distances[index] < FAR:
                place = distances[index], lanes[index], sides[index]
                stand(frame, truth, objects[index], int(index) + 1, place)
        yield frame, truth


def stand(frame, truth, item: PasteObject, number: int, place: tuple[float, float, float]) -> None:
    """Draw an object of a side (m) that stands on the road at a distance and a lane (m)."""
    distance, lane, side = place
    height, width = truth.shape
    rows, columns = np.flatnonzero(item.mask.any(1)), np.flatnonzero(item.mask.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = FOCAL * width * side / distance / max(item.mask[box].shape)
    size = tuple(max(1, round(scale * length)) for length in item.mask[box].shape[::-1])
    colours = cv2.resize(item.image[box][..., ::-1], size, interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(item.mask[box].astype(np.float32), size, interpolation=cv2.INTER_AREA)
    x = round(width / 2 + FOCAL * width * lane / distance - size[0] / 2)
    y = round(HORIZON * height + FOCAL * width * CAMERA_HEIGHT / distance) - size[1]
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + size[0], width), y + size[1]
    bottom = min(bottom, height)
    if right <= left or bottom <= top:
        return
    cut, there = np.s_[top - y : bottom - y, left - x : right - x], np.s_[top:bottom, left:right]
    weight = alpha[cut][..., None]
    frame[there] = np.rint(frame[there] * (1 - weight) + colours[cut] * weight)
    truth[there][alpha[cut] > 0.5] = number


def make_score(args: argparse.Namespace, generator):
    """Return a function of (frame, truth) that gives the score, (H, W) float32."""
    if not args.weights:
        return lambda frame, truth: faulty(truth, generator)
    from anoseg_d2.prediction.predictor import AnomalyPredictor  # it imports torch: seconds

    predictor = AnomalyPredictor.from_pretrained(
        args.weights, ["TEST.ANOMALY.SCORES", [args.score]]
    )
    return lambda frame, truth: predictor(frame)["scores"][args.score]


def faulty(truth: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the truth as a detector would see it: 0.9 in most of an object, 0 elsewhere."""
    score = np.zeros(truth.shape, np.float32)
    for number in np.unique(truth)[1:]:
        mask = (truth == number).astype(np.uint8)
        if generator.random() < 0.03:
            continue  # missed
        # The outline is wrong by up to an eighth of the object's size.
        ragged = 1 + int(generator.uniform(0, 0.25) * np.sqrt(mask.sum()))
        kernel = np.ones((ragged, ragged), np.uint8)
        mask = (cv2.erode if generator.random() < 0.5 else cv2.dilate)(mask, kernel)
        rows = np.flatnonzero(mask.any(1))
        if len(rows) > 8 and generator.random() < 0.2:
            mask[rows[len(rows) // 2] : rows[len(rows) // 2] + 2] = 0  # in two pieces
        score[mask > 0] = 0.9
    for _ in range(generator.poisson(0.3)):
        x, y = (int(generator.integers(side)) for side in truth.shape[::-1])
        cv2.circle(score, (x, y), int(generator.integers(6, 16)), 0.8, -1)
    return score


def link(pairs, score, fps: float, threshold: float):
    """Link the frames of (frame, truth) pairs.

    Returns:
        the truths; for each frame, {identity: (H, W) bool mask of its components}; the number of
        components and of events.
    """
    truths, linked, components = [], [], 0
    with VideoEvents("drive", fps, threshold, MIN_SIZE) as events, Progress("linked", None) as bar:
        for number, (frame, truth) in enumerate(pairs):
            values = score(frame, truth)
            masks = {}
            for event, detection in events(number / fps, frame, values):
                x, y, width, height = detection.box
                mask = masks.setdefault(event.identity, np.zeros(truth.shape, bool))
                mask[y : y + height, x : x + width] |= detection.mask
            components += len(find_detections(values, threshold, MIN_SIZE))
            truths.append(truth)
            linked.append(masks)
            bar.update()
    return truths, linked, components, len(events.records)


def figures_of_objects(truths: Sequence[np.ndarray], linked: Sequence[dict]) -> dict:
    """Return how well the events follow the objects.

    Args:
        truths: (H, W) object number, of each frame.
        linked: {identity: (H, W) bool}, of each frame.
    """
    identities: dict[int, list[int | None]] = {}
    for truth, masks in zip(truths, linked, strict=True):
        numbers, pixels = np.unique(truth[truth > 0], return_counts=True)
        for number in numbers[pixels >= VISIBLE].tolist():
            there = truth == number
            shared = {identity: int((mask & there).sum()) for identity, mask in masks.items()}
            best = max(shared, key=shared.get, default=None)
            seen = best if best is not None and shared[best] else None
            identities.setdefault(number, []).append(seen)
    kept, kept_of_seen, spanned, switches = [], [], [], []
    for found in identities.values():
        seen = [identity for identity in found if identity is not None]
        identity, most = Counter(seen).most_common(1)[0] if seen else (None, 0)
        kept.append(most / len(found))
        kept_of_seen.append(most / max(len(seen), 1))
        # From its first to its last frame an event is there, also where the detector missed it.
        last = len(found) - found[::-1].index(identity) if seen else 0
        spanned.append((last - found.index(identity) if seen else 0) / len(found))
        switches.append(sum(a != b for a, b in itertools.pairwise(seen)))
    return {
        "objects": len(identities),
        "visible_frames": sum(map(len, identities.values())),
        "fraction_under_one_identity": round(statistics.mean(kept), 4),
        "least_fraction": round(min(kept), 4),
        "fraction_from_its_first_to_its_last_frame": round(statistics.mean(spanned), 4),
        "fraction_of_detected_frames": round(statistics.mean(kept_of_seen), 4),
        "switches": sum(switches),
        "most_switches_of_an_object": max(switches),
    }


if __name__ == "__main__":
    sys.exit(main())
