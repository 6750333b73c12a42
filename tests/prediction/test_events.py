"""Events on made videos: one identity through motion, gaps, pieces and crossings, and no ghosts."""

import json

import cv2
import numpy as np
import pytest

from anoseg_d2.prediction.detections import find_detections
from anoseg_d2.prediction.events import EventLinker, VideoEvents

HEIGHT, WIDTH = 120, 200


def texture(seed, height=HEIGHT, width=WIDTH):
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 2)
    return (noise / noise.std() * 40 + 128).clip(0, 255).astype(np.uint8)


SCENE = texture(0, HEIGHT, 2 * WIDTH)


def film(*things, frames=24, pan=0):
    """Yield (frame, score): textured squares (x, y, dx, dy, side) over a scene that moves by pan.

    A thing may have a function of the frame number that says what of its score is seen: all of it
    (True), nothing (False), or a list of slices of its rows.
    """
    for number in range(frames):
        frame = SCENE[:, pan * number :][:, :WIDTH].copy()
        score = np.zeros((HEIGHT, WIDTH), np.float32)
        for index, (x, y, dx, dy, side, *seen) in enumerate(things):
            x, y = x + dx * number, y + dy * number
            left, top, right, bottom = max(x, 0), max(y, 0), min(x + side, WIDTH), y + side
            if right <= left:
                continue
            cut = np.s_[top - y : bottom - y, left - x : right - x]
            frame[top:bottom, left:right] = texture(index + 1, side, side)[cut] // 2 + 60
            shown = seen[0](number) if seen else True
            rows = [np.s_[:]] if shown is True else shown or []
            for part in rows:
                score[top:bottom, left:right][part] = 0.6 + 0.01 * number
        yield frame, score


def link(*things, min_frames=3, max_gap=8, **options):
    """Link a film; returns its events, and the identity of each component by frame."""
    linker = EventLinker(0.5, min_size=10, max_gap=max_gap, min_frames=min_frames)
    ended, seen = [], []
    for frame, score in film(*things, **options):
        found, over = linker(frame, score)
        seen.append({event.identity: detection.box for event, detection in found})
        ended += over
    return ended + linker.close(), seen


@pytest.mark.parametrize("pan", [0, 3])
def test_a_moving_thing_is_one_event(pan):
    events, _ = link((20, 40, 4, 1, 24), pan=pan)
    (event,) = events
    record = event.record()
    assert (record["first_frame"], record["last_frame"], record["frames"]) == (0, 23, 24)
    assert record["box"] == [20 + 4 * 23, 40 + 23, 24, 24] and record["peak_frame"] == 23
    assert record["peak_score"] == pytest.approx(0.83)
    assert record["mean_score"] == pytest.approx(np.mean([0.6 + 0.01 * n for n in range(24)]))
    assert record["boxes"][1] == [1, 24, 41, 24, 24]


def test_a_small_thing_faster_than_its_own_size_is_followed_by_its_flow():
    events, _ = link((10, 40, 7, 0, 20), frames=20)
    assert len(events) == 1


def test_two_things_that_pass_each_other_keep_their_identities():
    _, seen = link((10, 20, 5, 0, 22), (170, 60, -5, 0, 22))
    assert all(found.keys() == {1, 2} for found in seen)
    for number, found in enumerate(seen):
        assert {found[1][1], found[2][1]} == {20, 60}
        assert found[1][1] == seen[0][1][1], number


def test_a_short_gap_keeps_the_identity_and_a_long_one_ends_the_event():
    def gap(first, last):
        return lambda number: not first <= number <= last

    (event,), _ = link((20, 40, 4, 0, 24, gap(8, 13)))
    assert list(event.boxes) == [*range(8), *range(14, 24)]
    events, _ = link((20, 40, 3, 0, 24, gap(6, 17)), frames=30)
    assert [(e.first, e.last) for e in events] == [(0, 5), (18, 29)]


def test_a_thing_that_leaves_does_not_lend_its_identity_to_the_next():
    late = (160, 40, 0, 0, 24, lambda number: number >= 12)
    events, _ = link((150, 40, 8, 0, 24), late, frames=24, max_gap=3)
    assert [event.identity for event in events] == [1, 2]
    assert events[0].last < 12 <= events[1].first


def test_a_thing_in_pieces_is_one_event_and_its_box_holds_them_all():
    def pieces(number):
        return [np.s_[:10], np.s_[14:]] if 6 <= number < 18 else True

    (event,), _ = link((20, 40, 3, 0, 24, pieces))
    assert len(event.boxes) == 24
    assert event.boxes[10] == (50, 40, 24, 24)


def test_things_whose_components_merge_for_a_while_part_with_their_old_identities():
    # The second one passes in front of the first.
    events, seen = link((10, 30, 4, 0, 24), (150, 36, -4, 0, 24), frames=34)
    assert len(events) == 2 and len(seen[16]) == 1
    assert seen[0][1][:2] == (10, 30) and seen[0][2][:2] == (150, 36)
    assert seen[-1][1][:2] == (142, 30) and seen[-1][2][:2] == (18, 36)


def test_things_that_were_one_component_far_away_part_into_two_events():
    events, seen = link((60, 40, -2, 0, 20), (80, 40, 2, 0, 20), frames=20)
    assert len(events) == 2 and len(seen[0]) == 1
    assert len(seen[-1]) == 2


def test_flicker_is_no_event():
    events, _ = link((60, 40, 0, 0, 24, lambda number: number in (4, 5)))
    assert not events


def test_every_component_of_a_frame_has_an_event():
    linker = EventLinker(0.5, min_size=10)
    for frame, score in film((20, 20, 2, 0, 20), (90, 60, 0, 1, 20), frames=5):
        found, _ = linker(frame, score)
        expected = find_detections(score, 0.5, 10)
        assert [detection.box for _, detection in found] == [d.box for d in expected]


def test_the_records_of_a_video_are_plain_and_have_its_times():
    with VideoEvents("drive.mp4", 10.0, 0.5, 10) as events:
        for number, (frame, score) in enumerate(film((20, 40, 4, 0, 24), frames=12)):
            events(0.1 * number, frame, score)
        assert not events.records
    (record,) = json.loads(json.dumps(events.records))
    assert record["video"] == "drive.mp4" and record["event"] == 1
    assert record["start"] == 0 and record["end"] == pytest.approx(1.1)
