"""What is drawn for an image: how many objects, which, and the same every time."""

import dataclasses
import pickle

import cv2
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pasting_scenes import FRAME, PAPER, disc, scene

from anoseg_d2.data.cut_paste.paste import PasteObject
from anoseg_d2.data.cut_paste.sampling import OnlineCutPaste, part_of, sample_and_paste
from anoseg_d2.data.cut_paste.sources import ObjectSource


class Discs(ObjectSource):
    """Discs of growing size; those in `broken` cannot be read."""

    def __init__(self, number, broken=(), label=None):
        super().__init__()
        self.number, self.broken, self.label = number, broken, label

    def __len__(self):
        return self.number

    def load(self, index, generator):
        if index in self.broken:
            raise ValueError(f"object {index} is broken")
        item = disc(40 + index, label=self.label)
        return dataclasses.replace(item, source={"annotation_id": index, "category": "disc"})


def test_counts_and_ratio_are_drawn_as_asked():
    image, label = scene()
    source, numbers = Discs(50), []
    options = dataclasses.replace(PAPER, ratio=0.5)
    for index in range(200):
        generator = np.random.default_rng((0, index))
        out, _, records, _ = sample_and_paste(image, label, generator, options, [source])
        numbers.append(len(records))
        assert records or out is image
        ids = [record["annotation_id"] for record in records]
        assert len(set(ids)) == len(ids)
    counts = np.bincount(numbers, minlength=4)
    assert len(counts) == 4 and 75 <= counts[0] <= 125
    assert (counts[1:] > 15).all()


def test_a_broken_object_is_reported_and_replaced():
    image, label = scene()
    generator = np.random.default_rng(1)
    _, _, records, problems = sample_and_paste(
        image,
        label,
        generator,
        dataclasses.replace(PAPER, count=(3, 3)),
        [Discs(6, broken=(0, 1, 2))],
    )
    assert {record["annotation_id"] for record in records} == {3, 4, 5}
    assert set(problems) <= {f"object {index} is broken" for index in range(3)} and problems


def test_controls_carry_their_own_labels():
    image, label = np.zeros((*FRAME, 3), np.uint8), np.full(FRAME, 7, np.uint8)
    options = dataclasses.replace(PAPER, control_count=(2, 2), count=(1, 1))
    controls = [Discs(9, label=26)]
    for index in range(5):
        generator = np.random.default_rng(index)
        _, out, records, _ = sample_and_paste(
            image, label, generator, options, [Discs(9)], controls
        )
        assert sorted(record["label"] for record in records) == [26, 26, 254]
        assert set(np.unique(out)) == {7, 26, 254}


def test_online_pasting_depends_on_seed_epoch_and_index_alone():
    image, label = scene()
    paste = OnlineCutPaste([Discs(9)], PAPER, seed=3)
    copy = pickle.loads(pickle.dumps(paste))
    first = paste(image, label, 0, 7)
    paste(image, label, 1, 2)
    assert all((a == b).all() for a, b in zip(first, copy(image, label, 0, 7), strict=True))
    others = [paste(image, label, 1, 7), paste(image, label, 0, 8)]
    others.append(OnlineCutPaste([Discs(9)], PAPER, seed=4)(image, label, 0, 7))
    assert all((first[0] != other[0]).any() for other in others)


def test_online_pasting_tells_of_a_broken_object_once(caplog):
    image, label = scene()
    paste = OnlineCutPaste([Discs(2, broken=(0,))], PAPER, seed=0)
    for index in range(10):
        paste(image, label, 0, index)
    assert caplog.text.count("object 0 is broken") == 1


@settings(max_examples=60, deadline=None)
@example(seed=321, height=20, width=20)  # the blob misses its own middle
@given(seed=st.integers(0, 10**6), height=st.integers(1, 60), width=st.integers(1, 60))
def test_a_part_is_a_connected_piece_of_its_object(seed, height, width):
    generator = np.random.default_rng(seed)
    mask = generator.random((height, width)) < 0.6
    mask[generator.integers(height), generator.integers(width)] = True
    item = PasteObject(np.zeros((height, width, 3), np.uint8), mask, 7, {"category": "cow"})
    part = part_of(item, generator)
    assert part.mask.any() and not (part.mask & ~mask).any()
    assert cv2.connectedComponents(part.mask.astype(np.uint8), connectivity=8)[0] == 2
    assert part.label == 7 and part.source == {"category": "cow", "part": True}


def test_parts_of_a_large_object_are_smaller_and_differ():
    item = PasteObject(np.zeros((90, 120, 3), np.uint8), np.ones((90, 120), bool))
    areas = [part_of(item, np.random.default_rng(seed)).mask.mean() for seed in range(20)]
    assert max(areas) < 0.7 and len(set(areas)) == 20
