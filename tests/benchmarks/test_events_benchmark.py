"""The benchmark of events: objects stand where the camera says, and figures count by hand."""

import numpy as np
import pytest

from anoseg_d2.data.cut_paste import PasteObject


@pytest.fixture
def events(load_benchmark):
    return load_benchmark("events")


def masks(**places):
    """{identity: (20, 30) mask of a square at x}."""
    found = {}
    for name, x in places.items():
        mask = found.setdefault(int(name[1:]), np.zeros((20, 30), bool))
        mask[5:15, x : x + 12] = True
    return found


def test_identities_are_counted_over_the_frames_in_which_an_object_is_visible(events):
    truth = np.zeros((20, 30), np.int32)
    truth[5:15, 5:17] = 1
    linked = [masks(_1=5), {}, masks(_1=6), masks(_2=5, _1=17), masks(_1=5)]
    nothing = np.zeros_like(truth)
    figures = events.figures_of_objects([truth] * 5 + [nothing], [*linked, masks(_3=5)])
    assert figures["objects"] == 1 and figures["visible_frames"] == 5
    assert figures["fraction_under_one_identity"] == 3 / 5
    assert figures["fraction_of_detected_frames"] == 3 / 4
    assert figures["fraction_from_its_first_to_its_last_frame"] == 1
    assert figures["switches"] == figures["most_switches_of_an_object"] == 2


def test_an_object_stands_on_the_road_and_grows_as_it_comes_closer(events):
    item = PasteObject(np.full((40, 20, 3), 250, np.uint8), np.ones((40, 20), bool))
    boxes = []
    for distance in (40.0, 20.0, 10.0):
        frame, truth = np.zeros((270, 480, 3), np.uint8), np.zeros((270, 480), np.int32)
        events.stand(frame, truth, item, 3, (distance, 0.0, 1.4))
        assert ((frame > 200).all(-1) == (truth == 3)).all()
        rows, columns = np.nonzero(truth)
        boxes.append((np.ptp(rows) + 1, rows.max() + 1, columns.mean()))
    heights, feet, middles = zip(*boxes, strict=True)
    # The camera is as high as the object, whose top therefore stays on the horizon.
    assert heights == pytest.approx((15, 30, 60), abs=1)
    assert np.subtract(feet, heights) == pytest.approx(0.58 * 270, abs=1.5)
    assert middles == pytest.approx((239.5,) * 3, abs=1)
