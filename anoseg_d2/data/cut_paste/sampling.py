"""Choose what is pasted into one image, offline (whole datasets) and online (at load time)."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from anoseg_d2.data.cut_paste.coco import CONTROL_CLASSES, DROPPED, CocoObjects
from anoseg_d2.data.cut_paste.options import CutPasteOptions, ObjectOptions
from anoseg_d2.data.cut_paste.paste import PasteObject, paste_objects
from anoseg_d2.data.cut_paste.sources import (
    LEAST_SIDE,
    OBJECT_SOURCES,
    CutOutFolder,
    ObjectSource,
    TextureFolder,
    draw_blob,
)

logger = logging.getLogger(__name__)

# Draws per object before giving up, as nearly all objects may be taken or unreadable.
MAX_TRIES = 50
# Longest side of a part, as fractions of the longest side of its object.
PART_SIDES = (0.4, 0.8)


def object_sources(
    objects: ObjectOptions,
    options: CutPasteOptions,
    known: Mapping[str, int],
    closed_set: Callable[[], ObjectSource],
    root="",
) -> tuple[list[ObjectSource], list[ObjectSource], list[ObjectSource]]:
    """Return the sources of unknown objects, of known objects, and of segments of the scenes.

    Args:
        objects: at least one of COCO, cut-outs, textures and a source of the user's own.
        options: known objects and segments are left out where their greatest number is 0.
        known: class name -> label value of the scenes.
        closed_set: builds the source of segments, which reads every label.
        root: folder that relative paths start from.
    Raises:
        ValueError: there is no source, no COCO file to take known objects from, or the scenes have
            none of its classes.
    """
    outliers: list[ObjectSource] = []
    controls: list[ObjectSource] = []
    files = Path(root, objects.coco_json), Path(root, objects.coco_images)
    rules = {"min_area": objects.min_area, "keep_cut": objects.keep_cut}
    if objects.coco_json:
        drop = objects.drop_categories or DROPPED
        outliers.append(CocoObjects(*files, drop=drop, **rules))
    if objects.cutouts:
        outliers.append(CutOutFolder(Path(root, objects.cutouts)))
    if objects.textures:
        outliers.append(TextureFolder(Path(root, objects.textures)))
    if objects.source:
        outliers.append(OBJECT_SOURCES[objects.source](tuple(known), Path(root)))
        outliers[-1].refuse_if_empty(f"object source {objects.source!r}")
    if not outliers:
        raise ValueError(
            "no objects: give --coco-json and --coco-images, --cutouts, --textures or --source "
            "(INPUT.CUT_PASTE.COCO_JSON and COCO_IMAGES, CUTOUTS, TEXTURES or SOURCE)"
        )
    if options.control_count[1]:
        if not objects.coco_json:
            raise ValueError(
                "control objects are COCO objects of known classes: give --coco-json "
                "(INPUT.CUT_PASTE.COCO_JSON), or no controls (INPUT.CUT_PASTE.CONTROL_OBJECTS 0)"
            )
        labels = {name: known[name] for name in CONTROL_CLASSES if name in known}
        if not labels:
            raise ValueError(
                f"none of the classes {', '.join(known)} is one of {', '.join(CONTROL_CLASSES)}"
            )
        controls.append(CocoObjects(*files, labels=labels, **rules))
    return outliers, controls, [closed_set()] if options.closed_set_count[1] else []


@dataclass
class _Sampler:
    """Draws objects for one image without replacement; `problems` names unreadable ones.

    `frame` is the number of the image itself, whose own segments are not drawn; `parts` is the
    fraction of the objects of which only a part is taken.
    """

    sources: Sequence[ObjectSource]
    frame: int | None = None
    parts: float = 0.0
    taken: set[tuple[int, int]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def __call__(self, generator: np.random.Generator) -> PasteObject | None:
        for _ in range(MAX_TRIES):
            number = int(generator.integers(len(self.sources)))
            index = self.sources[number].sample(generator)
            origin = self.sources[number].frame_of(index)
            if (number, index) in self.taken or (origin is not None and origin == self.frame):
                continue
            self.taken.add((number, index))
            try:
                item = self.sources[number].load(index, generator)
            except (OSError, ValueError) as error:
                self.problems.append(str(error))
                continue
            # Draw nothing when the option is off, so that the random stream does not change.
            if self.parts and generator.random() < self.parts:
                return part_of(item, generator)
            return item
        return None


def part_of(item: PasteObject, generator: np.random.Generator) -> PasteObject:
    """Return a random part of an object: what one blob around one of its pixels covers of it.

    The smaller mask is connected and not empty; the object's record says `part`. A handful of
    objects teaches a detector these objects; their parts are further kinds of unknown things.
    """
    rows, columns = np.nonzero(item.mask)
    longest = 1 + max(int(np.ptp(rows)), int(np.ptp(columns)))
    sides = tuple(fraction * longest for fraction in PART_SIDES)
    side = max(int(generator.uniform(*sides)), LEAST_SIDE)
    chosen = int(generator.integers(len(rows)))
    y, x = int(rows[chosen]), int(columns[chosen])
    blob = draw_blob(side, generator)
    mask = np.zeros(item.mask.shape, np.uint8)
    top, left = y - side // 2, x - side // 2
    box = np.s_[max(top, 0) : top + side, max(left, 0) : left + side]
    inside = blob[max(-top, 0) :, max(-left, 0) :][: mask[box].shape[0], : mask[box].shape[1]]
    mask[box] = item.mask[box] & inside
    mask[y, x] = True  # a narrow blob may miss the centre of its own middle pixel
    # The blob may touch other arms of the object; only what hangs together is one part.
    _, parts = cv2.connectedComponents(mask, connectivity=8)
    return dataclasses.replace(
        item, mask=parts == parts[y, x], source={**item.source, "part": True}
    )


def sample_and_paste(
    image: np.ndarray,
    label: np.ndarray,
    generator: np.random.Generator,
    options: CutPasteOptions,
    outliers: Sequence[ObjectSource],
    controls: Sequence[ObjectSource] = (),
    closed_set: Sequence[ObjectSource] = (),
    frame: int | None = None,
) -> tuple[np.ndarray, np.ndarray, list[dict], list[str]]:
    """Decide whether an image receives objects, choose them, and paste them in random order.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) integers.
        generator: source of all random numbers; the result depends only on it and the inputs.
        options: settings, including `ratio` and the counts.
        outliers: sources of unknown objects, all equally likely.
        controls: sources of known objects, which have their own labels.
        closed_set: sources of segments of the training frames, which have their own labels too.
        frame: number of this image among these frames; its own segments are not pasted into it.
    Returns:
        image, label and records as in `paste_objects`, and messages about objects that could not
        be read and were replaced. An image without objects is returned unchanged, without records.
    """
    # Drawn first, so that an image without objects costs nothing.
    if generator.random() >= options.ratio:
        return image, label, [], []
    unknown, known = _Sampler(outliers, parts=options.parts), _Sampler(controls)
    own = _Sampler(closed_set, frame)
    ranges = (options.count, options.control_count, options.closed_set_count)
    objects = []
    for sampler, (low, high) in zip((unknown, known, own), ranges, strict=True):
        if sampler.sources:
            number = int(generator.integers(low, high + 1))
            objects += [sampler(generator) for _ in range(number)]
    # In random order, so that known objects do not always cover unknown ones.
    objects = [item for item in objects if item is not None]
    objects = [objects[index] for index in generator.permutation(len(objects))]

    def redraw(generator, replaced):
        # By an object of the same kind, which keeps the numbers of each as they were drawn.
        if replaced.source.get("source") == "closed_set":
            return own(generator)
        return (known if controls and replaced.label is not None else unknown)(generator)

    image, label, records = paste_objects(image, label, objects, generator, options, redraw=redraw)
    return image, label, records, unknown.problems + known.problems + own.problems


class OnlineCutPaste:
    """Cut-paste at load time: new in each epoch, but fixed for the same (seed, number, index).

    Args:
        outliers: sources of unknown objects.
        options: as offline, but `anomaly_value` and `ground_labels` are in the coding of the labels
            that will be passed in: train ids K and (0, 1) in a training mapper.
        seed: 0 or more.
        controls: sources of known objects, with labels in the same coding.
        closed_set: sources of segments of the training images, whose frame numbers are the indices
            of these images.
    """

    def __init__(self, outliers, options: CutPasteOptions, seed: int, controls=(), closed_set=()):
        self.outliers, self.controls, self.closed_set = outliers, controls, closed_set
        self.options = options
        self.seed = seed
        self._reported: set[str] = set()

    def __call__(self, image, label, number: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Paste into one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            label: (H, W) integers.
            number: number of the sample in the run, or of the pass over the data.
            index: index of the image in its dataset.
        Returns:
            image and label; the inputs themselves if nothing was pasted.
        """
        generator = np.random.default_rng((self.seed, number, index))
        sources = (self.outliers, self.controls, self.closed_set)
        image, label, _, problems = sample_and_paste(
            image, label, generator, self.options, *sources, frame=index
        )
        for problem in set(problems) - self._reported:
            logger.warning("skipping an unreadable object, pasting another one: %s", problem)
            self._reported.add(problem)
        return image, label
