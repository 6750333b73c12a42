"""Files of every kind: ours, broken and hostile ones."""

import pickle
import random

import pytest
import torch
from checkpoint_models import assert_same_outputs, saved, tiny

from anoseg_d2.checkpoint import load_into, model_meta, read_checkpoint
from anoseg_d2.checkpoint.files import write_checkpoint


def test_a_run_folder_stands_for_its_last_checkpoint(tmp_path):
    model = tiny(seed=3)
    saved(tiny(), tmp_path, "model_0000001")
    saved(model, tmp_path, "model_0000002")
    other = tiny(seed=9)
    load_into(other, read_checkpoint(tmp_path))
    assert_same_outputs(model, other)


def test_safetensors_hold_our_metadata_too(tmp_path):
    model = tiny("arcface", (64, 96))
    payload = {"model": model.state_dict(), "meta": model_meta(model)}
    write_checkpoint(payload, tmp_path / "weights.safetensors")
    checkpoint = read_checkpoint(tmp_path / "weights.safetensors")
    assert (checkpoint.format, checkpoint.spec.grid) == ("anoseg", (4, 6))
    other = tiny("arcface", (64, 96), seed=4)
    load_into(other, checkpoint)
    assert_same_outputs(model, other)


def test_a_newer_format_asks_for_an_update(tmp_path):
    model = tiny()
    meta = model_meta(model) | {"version": 99}
    write_checkpoint({"model": model.state_dict(), "meta": meta}, tmp_path / "new.pth")
    with pytest.raises(ValueError, match="version 99.*update"):
        read_checkpoint(tmp_path / "new.pth")


class Harmful:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, legacy):
    trap, path = tmp_path / "trap", tmp_path / "weights.pth"
    payload = {"state_dict": tiny().state_dict(), "hyper_parameters": Harmful(trap)}
    torch.save(payload, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="refused.*anoseg convert .*--allow-pickle"):
        read_checkpoint(path)
    assert not trap.exists()
    assert read_checkpoint(path, allow_pickle=True).format == "anoseg"
    assert trap.exists()


def test_a_plain_pickle_is_refused_and_not_run(tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(Harmful(trap)))
    with pytest.raises(ValueError, match=r"weights\.pkl"):
        read_checkpoint(path)
    assert not trap.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, suffix, keep):
    model, path = tiny(), tmp_path / f"weights{suffix}"
    write_checkpoint({"model": model.state_dict(), "meta": model_meta(model)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=path.name):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "holds no tensor"),
        ([1, 2], "holds a list, not a state dict"),
        ({"epoch": 3}, "entry 'epoch' is a int"),
        ({"conv1.weight": torch.zeros(2)}, "fit no known format"),
        ({"backbone.norm.weight": torch.zeros(2).to_sparse()}, "not dense"),
        ({"backbone.pos_embed": torch.zeros(1).expand(1, 10**9, 9)}, "claims"),
        ({"backbone.pos_embed": torch.zeros(4)}, "3 dimensions"),
        ({"backbone.norm.weight": torch.zeros(2, dtype=torch.complex64)}, "not dense"),
    ],
)
def test_content_that_is_no_checkpoint_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=rf"(?s)weights\.pth.*{message}"):
        read_checkpoint(tmp_path / "weights.pth")


def test_other_bytes_are_named(tmp_path):
    for seed in range(300):  # each first byte is another instruction to the unpickler
        (tmp_path / "photo.pth").write_bytes(random.Random(seed).randbytes(4096))
        with pytest.raises(ValueError, match=r"photo\.pth"):
            read_checkpoint(tmp_path / "photo.pth")
    with pytest.raises(ValueError, match=r"photo\.pth"):
        read_checkpoint(tmp_path / "photo.pth")


def test_what_is_not_there_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*expected"):
        read_checkpoint(tmp_path / "nowhere.pth")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"holds no weights.*found notes\.txt"):
        read_checkpoint(tmp_path)
