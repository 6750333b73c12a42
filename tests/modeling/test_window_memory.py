"""Windows in bounded memory: batches that lower themselves, strips of the output."""

import logging

import pytest
import torch

from anoseg_d2.modeling import inference
from anoseg_d2.modeling.inference import is_out_of_memory

CPU_ERROR = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 99 bytes. Error code 12 (Cannot allocate memory)"
)


def limited(model, most, error):
    """Let `model` fail above `most` windows at once; returns the batches that were tried."""
    tried, predict = [], model.predict_masks

    def predict_masks(images, final_only=False):
        tried.append(len(images))
        if len(images) > most:
            raise error
        return predict(images, final_only)

    model.predict_masks = predict_masks
    return tried


@pytest.fixture
def panorama():
    return {"image": torch.randint(256, (3, 32, 32 * 7), dtype=torch.uint8)}


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_ERROR)],
    ids=["gpu", "cpu"],
)
def test_out_of_memory_lowers_the_batch_once_and_for_all(tiny_eomt, panorama, caplog, error):
    model = tiny_eomt().eval()
    expected = model([panorama])[0]
    tried = limited(model, 2, error)
    with caplog.at_level(logging.WARNING):
        found = model([panorama, panorama])
    assert tried == [7, 3, 1, 1, 1, 1, 1, 1, 1] + [1] * 7
    assert model.window_batch == 1
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 7 windows per forward; going on with INPUT.WINDOW_BATCH 3",
        "out of memory with 3 windows per forward; going on with INPUT.WINDOW_BATCH 1",
    ]
    for output in found:
        torch.testing.assert_close(output["scores"], expected["scores"])
        assert torch.equal(output["sem_seg"], expected["sem_seg"])


def test_memory_that_ends_between_windows_counts_none_twice(tiny_eomt, panorama, monkeypatch):
    model = tiny_eomt().eval()
    expected = model([panorama])[0]["scores"]
    combine, calls = inference.scores.combine_masks, []

    def combine_masks(*maps):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError(CPU_ERROR)
        return combine(*maps)

    monkeypatch.setattr(inference.scores, "combine_masks", combine_masks)
    torch.testing.assert_close(model([panorama])[0]["scores"], expected)
    assert len(calls) == 8 and model.window_batch == 3


def test_one_window_that_does_not_fit_is_an_error_with_the_way_out(tiny_eomt, panorama):
    model = tiny_eomt().eval()
    limited(model, 0, RuntimeError(CPU_ERROR))
    with pytest.raises(RuntimeError, match=r"single window of 32x32.*INPUT\.CROP_SIZE.*allocate"):
        model([panorama])


def test_other_errors_are_not_taken_for_want_of_memory(tiny_eomt, panorama):
    model = tiny_eomt().eval()
    tried = limited(model, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        model([panorama])
    assert tried == [7] and not is_out_of_memory(RuntimeError("expected 3 dimensions"))


@pytest.mark.parametrize("size", [(4320, 7680), (7680, 4320), (512, 4096)], ids=str)
def test_large_images_are_read_in_strips_of_bounded_size(tiny_eomt, monkeypatch, size):
    model = tiny_eomt(score_names=("rba",)).eval()
    strips = []

    def read_scores(maps, channels):
        strips.append(tuple(maps.shape[1:]))
        flat = maps[:, 0]
        return {"sem_seg": flat.long(), "scores": {"rba": flat}, "confidence": flat}

    monkeypatch.setattr(model, "read_scores", read_scores)
    output = model([{"image": torch.zeros(3, *size, dtype=torch.uint8)}])[0]
    assert output["scores"]["rba"].shape == output["sem_seg"].shape == size
    assert sum(rows for _, rows, _ in strips) == size[0]
    assert max(maps * rows * width for maps, rows, width in strips) <= inference.STRIP_ELEMENTS
