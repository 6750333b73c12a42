"""A damaged file loads equal or ends in an error that names it; a hostile one costs little."""

import json
import math
import shutil
import struct
import zipfile

import pytest
import torch
from checkpoint_models import save_adapter
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from anoseg_d2.checkpoint import (
    AnosegCheckpointer,
    load_into,
    model_meta,
    read_checkpoint,
    save_weights,
    weights_hash,
)
from anoseg_d2.checkpoint.files import write_checkpoint
from anoseg_d2.checkpoint.spec import read_fact
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.lora import inject_lora
from anoseg_d2.modeling.vit import build_vit


def tiny():
    torch.manual_seed(0)
    vit = build_vit("S", image_size=(32, 32), depth=1, width=4, heads=1, num_registers=1)
    return EoMT(backbone=vit, head="arcface", num_known=2, num_queries=2, num_blocks=1).eval()


def ours_pth(folder):
    AnosegCheckpointer(tiny(), str(folder)).save("model", iteration=7)
    return folder / "model.pth", True


def ours_safetensors(folder):
    save_weights(tiny(), folder / "model.safetensors")
    return folder / "model.safetensors", False


def adapter_file(folder):
    model = tiny()
    inject_lora(model.backbone, rank=1)
    save_adapter(model, folder / "adapter.safetensors")
    return folder / "adapter.safetensors", False


def legacy_file(folder):
    state = tiny().state_dict()
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    return folder / "legacy.pth", False


def foreign_safetensors(folder):
    save_file(tiny().state_dict(), folder / "foreign.safetensors")
    return folder / "foreign.safetensors", False


def identity(checkpoint, checksum):
    """What must be equal; where the format has no checksum, all but the values of tensors."""
    if checksum:
        return checkpoint.format, weights_hash(checkpoint.state_dict), checkpoint.meta
    shapes = {name: (t.dtype, t.shape) for name, t in checkpoint.state_dict.items()}
    return checkpoint.format, len(shapes)


# What `make` functions made, once for all examples of a test.
MADE = {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [ours_pth, ours_safetensors, adapter_file, legacy_file, foreign_safetensors]
)
@settings(max_examples=250, deadline=None, derandomize=True)
@given(data=st.data())
def test_one_changed_byte_or_a_cut_is_harmless_or_named(tmp_path_factory, make, data):
    folder = tmp_path_factory.getbasetemp() / make.__name__
    if not folder.exists():
        folder.mkdir()
        path, checksum = make(folder)
        MADE[make] = path, checksum, identity(read_checkpoint(path), checksum)
    path, checksum, expected = MADE[make]
    content = bytearray(path.read_bytes())
    # Headers, where most fields are, are tried as often as the weights.
    places = st.one_of(
        st.integers(0, min(2000, len(content) - 1)),
        st.integers(0, len(content) - 1),
        st.integers(max(0, len(content) - 3000), len(content) - 1),
    )
    place = data.draw(places)
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    damaged = folder / f"damaged{path.suffix}"
    damaged.write_bytes(content)
    try:
        found = read_checkpoint(damaged)
    except ValueError as error:
        assert "damaged" in str(error)
        return
    if checksum:
        assert identity(found, checksum) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "index", "last"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_small_files_next_to_the_weights_are_read_or_named(tmp_path_factory, name, data):
    folder = tmp_path_factory.getbasetemp() / f"folder_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    transformers_names = {
        "embeddings.patch_embeddings.projection.weight": torch.zeros(4, 3, 16, 16),
        "embeddings.position_embeddings.weight": torch.zeros(4, 4),
        "query.weight": torch.zeros(2, 4),
        "class_predictor.weight": torch.zeros(3, 4),
    }
    weights = folder / "model.safetensors"
    save_file(transformers_names, weights)
    files = {
        "config.json": {
            "model_type": "eomt",
            "image_size": 32,
            "patch_size": 16,
            "num_attention_heads": 2,
            "id2label": {"0": "road", "1": "car"},
            "anoseg_d2": {"has_anomaly": False},
        },
        "preprocessor_config.json": {"rescale_factor": 0.004, "image_mean": [0.5, 0.5, 0.5]},
        "model.safetensors.index.json": {"weight_map": {"query.weight": "part.safetensors"}},
    }
    if name == "index":
        weights.rename(folder / "part.safetensors")
        target = folder / "model.safetensors.index.json"
        target.write_text(json.dumps(files[target.name]))
    elif name == "last":
        target = folder / "last_checkpoint"
        target.write_text("model.safetensors")
    else:
        target = folder / name
        target.write_text(json.dumps(files[name]))
    content = bytearray(target.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] = data.draw(st.integers(0, 255))
    else:
        del content[place:]
    target.write_bytes(content)
    try:
        read_checkpoint(folder)
    except (ValueError, FileNotFoundError) as error:
        assert folder.name in str(error)


@pytest.mark.parametrize(
    "name, value",
    [
        ("config.json", {"num_attention_heads": "two"}),
        ("config.json", {"patch_size": 0}),
        ("config.json", {"image_size": [32]}),
        ("config.json", {"id2label": ["road"]}),
        ("config.json", {"id2label": {"road": "0"}}),
        ("config.json", {"layer_norm_eps": "small"}),
        ("config.json", [1, 2]),
        ("preprocessor_config.json", {"rescale_factor": 0}),
        ("preprocessor_config.json", {"image_mean": ["a", 1, 2]}),
        ("preprocessor_config.json", {"image_std": 3}),
    ],
)
def test_values_of_a_wrong_type_in_json_are_named(tmp_path, name, value):
    state = {
        "embeddings.patch_embeddings.projection.weight": torch.zeros(4, 3, 16, 16),
        "query.weight": torch.zeros(2, 4),
    }
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(ValueError, match=str(tmp_path)):
        read_checkpoint(tmp_path)


def test_deep_json_is_named(tmp_path):
    save_file(
        {"embeddings.patch_embed.weight": torch.zeros(1), "query.weight": torch.zeros(2, 4)},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1"},
        {"heads": "three"},
        {"grid": [2]},
        {"lora": {"modules": 3}},
        {"adapter": True},
        {"class_names": 7},
    ],
)
def test_metadata_of_a_wrong_type_name_the_file(tmp_path, change):
    model = tiny()
    payload = {"model": model.state_dict(), "meta": model_meta(model) | change}
    write_checkpoint(payload, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth"):
        read_checkpoint(tmp_path / "odd.pth")


def test_integer_keys_are_named(tmp_path):
    torch.save({1: torch.zeros(2), "backbone.a": torch.zeros(2)}, tmp_path / "keys.pth")
    with pytest.raises(ValueError, match=r"keys\.pth.*tensor name 1 is not a string"):
        read_checkpoint(tmp_path / "keys.pth")


# ---- sizes that a file only claims ----------------------------------------------------------


def test_a_compressed_bomb_is_refused_before_it_is_unpacked(tmp_path):
    source, _ = ours_pth(tmp_path)
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, bytes(50_000_000) if "data/0" in entry.filename else data)
    assert bomb.stat().st_size < 1_000_000
    with pytest.raises(ValueError, match=r"bomb\.pth.*compressed"):
        read_checkpoint(bomb)


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """The central directory may name one large entry many times."""
    path = tmp_path / "overlap.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"x" * 4096)
        first = archive.filelist[0]
        for index in range(8):
            copy = zipfile.ZipInfo(f"a/data/{index}")
            for field in ("CRC", "compress_size", "file_size", "header_offset"):
                setattr(copy, field, getattr(first, field))
            archive.filelist.append(copy)
    with pytest.raises(ValueError, match=r"overlap\.pth.*claim more bytes"):
        read_checkpoint(path)


def test_a_safetensors_header_that_claims_too_much_is_refused(tmp_path):
    header = {"query.weight": {"dtype": "F32", "shape": [10**9, 4], "data_offsets": [0, 4 * 10**9]}}
    text = json.dumps(header).encode()
    path = tmp_path / "claims.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    with pytest.raises(ValueError, match=r"claims\.safetensors"):
        read_checkpoint(path)
    path.write_bytes(struct.pack("<Q", 2**40) + b"{" + bytes(64))
    with pytest.raises(ValueError, match=r"claims\.safetensors"):
        read_checkpoint(path)


def test_an_old_torch_file_that_claims_too_much_is_refused(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    small, large = b"K\x03", b"J" + struct.pack("<i", 2_000_000_000)  # numel as BININT1, BININT
    assert content.count(b"cpu" + content.split(b"cpu")[1][:2] + small) <= 1
    index = content.index(small, content.index(b"cpu"))
    path.write_bytes(content[:index] + large + content[index + len(small) :])
    with pytest.raises(ValueError, match=r"old\.pth"):
        read_checkpoint(path)


def test_a_sparse_tensor_of_any_size_is_refused_without_unpacking(tmp_path):
    huge = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**9, 99))
    torch.save({"query.weight": huge}, tmp_path / "sparse.pth")
    with pytest.raises(ValueError, match=r"sparse\.pth.*not dense"):
        read_checkpoint(tmp_path / "sparse.pth")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/random"])
def test_a_device_is_not_read(device):
    with pytest.raises(ValueError, match=f"{device} is not a regular file"):
        read_checkpoint(device)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_never_enter_a_model(tmp_path, value):
    model = tiny()
    state = model.state_dict()
    state["query.weight"] = torch.full_like(state["query.weight"], value)
    write_checkpoint({"model": state, "meta": model_meta(model)}, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match="query.weight: holds NaN or infinite"):
        load_into(tiny(), read_checkpoint(tmp_path / "nan.pth"))


def test_a_pickle_of_many_nested_lists_is_named(tmp_path):
    (tmp_path / "deep.pth").write_bytes(b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".")
    with pytest.raises(ValueError, match=r"deep\.pth"):
        read_checkpoint(tmp_path / "deep.pth")


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_fact_that_is_no_float_is_named(digits):
    with pytest.raises(ValueError, match="norm_eps"):
        read_fact("norm_eps", 10**digits)
