"""Segments of other training frames: true to the pixel, never pasted at home."""

import pickle
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anoseg_d2.data.cut_paste import CutPasteOptions, PasteObject, sample_and_paste
from anoseg_d2.data.cut_paste.sources import ClosedSetObjects, ObjectSource
from anoseg_d2.data.image_io import read_label

KNOWN = {"road": 7, "car": 26, "person": 24, "pole": 17}
UNKNOWN = 254
SHAPE = (80, 120)
# Every label value has a colour of its own, so that an image says what its label must be.
PALETTE = np.random.default_rng(0).permutation(256**3)[:256]
PALETTE = np.stack([PALETTE >> 16, PALETTE >> 8 & 255, PALETTE & 255], 1).astype(np.uint8)


class Blob(ObjectSource):
    """Unknown objects in the colour of the anomaly."""

    def __len__(self):
        return 5

    def load(self, index, generator):
        side = 20 + 5 * index
        y, x = np.mgrid[:side, :side] - side / 2
        image = np.tile(PALETTE[UNKNOWN], (side, side, 1))
        return PasteObject(image, np.hypot(y, x) < side / 2, None, {"source": "blob"})


def write_frames(folder, number=4, seed=0):
    """Frames of rectangles and discs of known classes, some cut off by the border."""
    generator = np.random.default_rng(seed)
    frames = []
    for index in range(number):
        label = np.full(SHAPE, 7, np.uint8)
        for value in generator.choice([26, 24, 17, 11], 6):
            h, w = generator.integers(4, 40, 2)
            y, x = generator.integers(-5, SHAPE[0] - 3), generator.integers(-5, SHAPE[1] - 3)
            label[max(y, 0) : y + h, max(x, 0) : x + w] = value
        paths = folder / f"{index}.png", folder / f"{index}_label.png"
        Image.fromarray(PALETTE[label]).save(paths[0])
        Image.fromarray(label).save(paths[1])
        frames.append(paths)
    return frames


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("frames"))


def test_a_segment_is_one_whole_component_with_its_own_label(frames):
    source = ClosedSetObjects(frames, read_label, KNOWN, min_area=20)
    assert len(source) > 5
    for index in range(len(source)):
        item = source.load(index)
        assert (item.image[item.mask] == PALETTE[item.label]).all()
        assert item.label in (26, 24, 17) and item.mask.sum() >= 20
        assert item.mask.any(0).all() and item.mask.any(1).all()  # the tight box
    assert source.skipped["cut off by their frame's border"]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    frame=st.integers(0, 3),
    scale=st.sampled_from([(1.0, 1.0), (0.5, 1.5)]),
    placement=st.sampled_from(["uniform", "road"]),
    size=st.sampled_from(["native", "perspective"]),
    rarest_first=st.booleans(),
    parts=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_every_label_stays_true_to_the_pixel(
    frames, seed, frame, scale, placement, size, rarest_first, parts
):
    """Without a feather each pixel's colour is that of its label, whatever is pasted over what."""
    source = ClosedSetObjects(frames, read_label, KNOWN, min_area=20, rarest_first=rarest_first)
    options = CutPasteOptions(
        ratio=1.0, count=(0, 2), closed_set_count=(1, 4), feather=(0, 0), min_side=8,
        scale=scale, placement=placement, size=size, parts=parts,
    )  # fmt: skip
    label = read_label(frames[frame][1])
    image = PALETTE[label]
    out, out_label, records, problems = sample_and_paste(
        image, label, np.random.default_rng(seed), options, [Blob()],
        closed_set=[source], frame=frame,
    )  # fmt: skip
    assert not problems and records
    assert (out == PALETTE[out_label]).all()
    own = [item for item in records if item["source"] == "closed_set"]
    assert all(source.frame_of(item["annotation_id"]) != frame for item in own)
    assert not any("part" in item for item in own), "known segments are pasted whole"
    unknown = {item.get("part", False) for item in records if item["source"] == "blob"}
    assert parts == 0.5 or unknown <= {parts == 1.0}
    for item in own:
        assert item["label"] in (26, 24, 17)
    assert sum(item["visible_pixels"] for item in records) >= (out_label != label).sum()


def test_rarest_first_pastes_each_class_equally_often(frames):
    source = ClosedSetObjects(frames, read_label, KNOWN, min_area=20, rarest_first=True)
    generator = np.random.default_rng(0)
    values = [source.segments[source.sample(generator), 1] for _ in range(900)]
    _, counts = np.unique(values, return_counts=True)
    assert len(counts) == 3 and counts.min() > 250


def test_a_label_that_changed_after_indexing_is_named_not_pasted(tmp_path):
    frames = write_frames(tmp_path)
    source = ClosedSetObjects(frames, read_label, KNOWN)
    Image.fromarray(np.full(SHAPE, 7, np.uint8)).save(frames[source.frame_of(0)][1])
    with pytest.raises(ValueError, match="has changed"):
        source.load(0)


def test_unreadable_labels_are_named_and_the_rest_is_taken(tmp_path):
    frames = write_frames(tmp_path)
    frames[0][1].write_text("no image")
    source = ClosedSetObjects([*frames, (frames[0][0], None)], read_label, KNOWN)
    assert "0_label.png" in source.problems["labels unreadable"][0]
    assert (source.segments[:, 0] > 0).all()


def test_sets_without_such_classes_are_refused(frames):
    with pytest.raises(ValueError, match="class of this dataset.*road"):
        ClosedSetObjects(frames, read_label, {"road": 7})
    with pytest.raises(ValueError, match="no object to paste.*1e"):
        ClosedSetObjects(frames, read_label, KNOWN, min_area=1e6)


def test_the_source_travels_to_worker_processes(frames):
    source = ClosedSetObjects(frames, partial(read_label), KNOWN, min_area=20)
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.load(0).mask == source.load(0).mask).all()
