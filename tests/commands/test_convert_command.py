"""Checkpoints of others, converted to ours, and ours to adapters and back: same outputs."""

import json

import pytest
import torch
from checkpoint_models import save_adapter, to_official

from anoseg_d2 import AnomalyPredictor
from anoseg_d2.checkpoint import (
    AnosegCheckpointer,
    load_into,
    read_checkpoint,
    weights_hash,
)
from anoseg_d2.checkpoint.from_config import add_delta
from anoseg_d2.commands import convert
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.lora import inject_lora
from anoseg_d2.modeling.vit import build_vit

transformers = pytest.importorskip("transformers")
MERGE = ("--to", "anoseg", "--merge")


def tiny(head="linear", image_size=(64, 64), seed=0, num_registers=4, **kwargs):
    torch.manual_seed(seed)
    backbone = build_vit(
        "S", image_size=image_size, depth=3, width=24, heads=3, num_registers=num_registers
    )
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    kwargs = {"num_known": 5, "num_queries": 6, "num_blocks": 2, **kwargs}
    return EoMT(backbone=backbone, head=head, **kwargs).eval()


def hugging_face_model(seed=0, **kwargs):
    torch.manual_seed(seed)
    config = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 64,
        "patch_size": 16,
        "num_blocks": 2,
        "num_queries": 6,
        "id2label": dict(enumerate(["road", "pavement", "car", "person", "sky"])),
    }
    model = transformers.EomtForUniversalSegmentation(transformers.EomtConfig(**(config | kwargs)))
    for name, parameter in model.named_parameters():
        if not name.startswith("upscale"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.attn_mask_probs.zero_()
    return model.eval()


IMAGES = 255 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def ours(model):
    return model.eval().predict_masks(IMAGES)[-1]


@torch.no_grad()
def theirs(model):
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    result = model(pixel_values=(IMAGES / 255 - mean) / std)
    return result.masks_queries_logits, result.class_queries_logits


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def assert_equal(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.abs().max() > 1e-2  # outputs that say something
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def saved(model, folder):
    AnosegCheckpointer(model, str(folder)).save("model")
    return folder / "model.pth"


def run(*arguments):
    return convert.main([str(argument) for argument in arguments])


# ---- Hugging Face ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("registers, num_blocks", [(4, 2), (0, 3)])
def test_a_hugging_face_folder_gives_their_logits(tmp_path, registers, num_blocks):
    source = hugging_face_model(num_register_tokens=registers, num_blocks=num_blocks)
    source.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.format == "huggingface"
    names = ["road", "pavement", "car", "person", "sky"]
    expected = {"heads": 3, "num_blocks": num_blocks, "num_known": 5, "class_names": names}
    assert {key: getattr(checkpoint.spec, key) for key in expected} == expected
    model = tiny(num_registers=registers, num_blocks=num_blocks, seed=1)
    report = load_into(model, checkpoint)
    assert set(report.names("ignored")) == {"attn_mask_probs", "criterion.empty_weight"}
    assert_equal(ours(model), theirs(source))


@pytest.mark.parametrize(
    "options",
    [
        {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.3, 0.2, 0.1)},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": (100.0, 90.0, 80.0), "image_std": (50.0, 40.0, 30.0)},
        {"rescale_factor": 1 / 127.5, "image_mean": (1.0, 1.0, 1.0), "image_std": (1.0, 1.0, 1.0)},
    ],
    ids=["other statistics", "not normalised", "not rescaled", "-1 to 1"],
)
def test_images_are_normalised_as_the_folder_says(tmp_path, options):
    source = hugging_face_model()
    source.save_pretrained(tmp_path)
    processor = transformers.EomtImageProcessor(
        size={"shortest_edge": 64, "longest_edge": None}, do_split_image=True, **options
    )
    processor.save_pretrained(tmp_path)
    image = IMAGES[0].round().to(torch.uint8)
    with torch.no_grad():
        inputs = processor(image, return_tensors="pt")["pixel_values"]
        result = source(pixel_values=inputs)
        model = AnomalyPredictor.from_pretrained(str(tmp_path), ["MODEL.DEVICE", "cpu"]).model
        masks, classes = model.predict_masks(image[None])[-1]
    torch.testing.assert_close(masks, result.masks_queries_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(classes, result.class_queries_logits, rtol=0, atol=1e-4)


def test_a_sharded_hugging_face_folder_loads(tmp_path):
    source = hugging_face_model()
    source.save_pretrained(tmp_path, max_shard_size="40KB")
    assert not (tmp_path / "model.safetensors").exists()
    model = tiny(seed=1)
    load_into(model, read_checkpoint(tmp_path))
    assert_equal(ours(model), theirs(source))
    next(tmp_path.glob("model-00001-*")).unlink()
    with pytest.raises(FileNotFoundError, match="model-00001.*not next to it"):
        read_checkpoint(tmp_path)


def test_gated_layers_of_the_giant_are_read(tmp_path):
    source = hugging_face_model(use_swiglu_ffn=True)
    source.save_pretrained(tmp_path)
    predictor = AnomalyPredictor.from_pretrained(str(tmp_path))
    assert predictor.cfg.MODEL.EOMT.SIZE == "G"
    assert_equal(ours(predictor.model), theirs(source))


def test_another_model_type_is_refused(tmp_path):
    hugging_face_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "videomt"}))
    with pytest.raises(ValueError, match="model_type 'videomt'.*eomt_dinov3"):
        read_checkpoint(tmp_path)


# ---- official -------------------------------------------------------------------------------


def official_file(model, path):
    """Write a model as EoMT's authors do: with Lightning, or for the hub."""
    state = to_official(read_checkpoint(saved(model, path.parent)))
    torch.save({"state_dict": state} if path.suffix == ".ckpt" else state, path)
    return path


@pytest.mark.parametrize("name", ["model.ckpt", "pytorch_model.bin"])
def test_the_official_format_is_read(tmp_path, name):
    model, back = tiny(has_anomaly=False), tiny(seed=2)
    checkpoint = read_checkpoint(official_file(model, tmp_path / name))
    assert (checkpoint.format, checkpoint.spec.num_blocks) == ("eomt_official", 2)
    report = load_into(back, checkpoint)
    assert set(report.names("loaded")) == set(model.state_dict())
    assert_equal(ours(model), ours(back))


def test_official_input_statistics_are_compared(tmp_path):
    path = official_file(tiny(), tmp_path / "official.ckpt")
    content = torch.load(path)
    content["state_dict"]["network.encoder.pixel_mean"] += 0.1
    torch.save(content, path)
    with pytest.raises(ValueError, match="pixel_mean.*trained"):
        load_into(tiny(), read_checkpoint(path))


def test_official_becomes_ours_with_all_it_tells(tmp_path):
    model = tiny()
    first, second = tmp_path / "official.ckpt", tmp_path / "ours.safetensors"
    content = torch.load(official_file(model, first))
    state = content["state_dict"]
    state = {k.replace("network.", "network._orig_mod."): v for k, v in state.items()}
    del state["network._orig_mod.attn_mask_probs"]
    torch.save({"state_dict": state, "epoch": 3, "callbacks": {}}, first)
    arguments = ["--to", "anoseg", "--output", second]
    assert run(first, *arguments) == 2  # width 24 is no DINOv2: heads unknown
    assert run(first, *arguments, "--num-blocks", 2, "--num-heads", 3) == 0
    spec = read_checkpoint(second).spec
    assert (spec.head, spec.num_blocks, spec.heads) == ("linear", 2, 3)
    back = tiny(seed=2)
    load_into(back, read_checkpoint(second))
    assert_equal(ours(model), ours(back))


# ---- heads and adapters ---------------------------------------------------------------------


def adapted(head="linear"):
    model = tiny(head)
    inject_lora(model.backbone, targets=("q", "v", "fc1"), rank=2, alpha=5.0)
    model.backbone.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_merging_writes_a_plain_checkpoint(tmp_path, capsys, suffix):
    model, merged = adapted("arcface"), tmp_path / f"merged{suffix}"
    assert convert.main([str(saved(model, tmp_path)), *MERGE, "--output", str(merged)]) == 0
    assert "merged 6 adapters" in capsys.readouterr().out
    checkpoint, plain = read_checkpoint(merged), tiny("arcface", seed=2)
    assert not checkpoint.spec.has_adapters
    assert set(load_into(plain, checkpoint).counts()) == {"loaded"}
    assert_equal(ours(model), ours(plain))


def test_merging_takes_an_adapter_and_its_base(tmp_path, capsys):
    model = adapted("arcface")
    base, adapter, merged = (tmp_path / name for name in ("base", "adapter.pth", "merged.pth"))
    base = saved(tiny("arcface"), base)  # adapted() starts from the same seed
    save_adapter(model, adapter)
    arguments = [str(adapter), "--output", str(merged)]
    assert convert.main([*arguments, *MERGE]) == 2
    assert "give --base" in capsys.readouterr().err
    assert convert.main([*arguments, *MERGE, "--base", str(base)]) == 0
    plain = tiny("arcface", seed=2)
    load_into(plain, read_checkpoint(merged))
    assert_equal(ours(model), ours(plain))
    other = saved(tiny("arcface", seed=5), tmp_path / "other")
    arguments += ["--base", str(other), "--overwrite"]
    assert convert.main([*arguments, *MERGE]) == 2
    assert "hash of the frozen weights differs" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_adapter_file_and_its_base_are_the_full_checkpoint_bit_by_bit(tmp_path, capsys, suffix):
    base, full = saved(tiny("arcface"), tmp_path / "base"), saved(adapted("arcface"), tmp_path)
    adapter, whole = tmp_path / f"adapter{suffix}", tmp_path / f"whole{suffix}"
    assert run(full, "--to", "adapter", "--output", adapter) == 0
    assert adapter.stat().st_size < full.stat().st_size / 2
    assert run(adapter, "--base", base, "--to", "anoseg", "--output", whole) == 0
    expected, found = read_checkpoint(full), read_checkpoint(whole)
    assert found.state_dict.keys() == expected.state_dict.keys()
    assert weights_hash(found.state_dict) == weights_hash(expected.state_dict)
    assert found.meta == expected.meta
    assert run(adapter, "--to", "anoseg", "--output", tmp_path / "alone.pth") == 0  # stays one
    assert read_checkpoint(tmp_path / "alone.pth").format == "anoseg_adapter"
    other = saved(tiny("arcface", seed=5), tmp_path / "other")
    arguments = ("--to", "anoseg", "--output", whole, "--overwrite")
    assert run(adapter, "--base", other, *arguments) == 2
    assert "is not the base" in capsys.readouterr().err
    assert run(full, "--base", base, *arguments) == 2
    assert "drop --base" in capsys.readouterr().err


def test_a_model_without_adapters_has_no_adapter_file(tmp_path, capsys):
    arguments = ("--to", "adapter", "--output", tmp_path / "adapter.pth")
    assert run(saved(tiny(), tmp_path), *arguments) == 2
    assert "has no LoRA adapters" in capsys.readouterr().err


# ---- deltas and mistakes --------------------------------------------------------------------


def test_a_delta_is_noticed_and_added_to_its_base(tmp_path, caplog):
    base, final = tiny(), tiny(seed=4)
    for model in (base, final):
        for name, parameter in model.named_parameters():
            if name.endswith(("norm1.weight", "norm2.weight")):
                torch.nn.init.ones_(parameter)
    whole, other = saved(final, tmp_path), saved(base, tmp_path / "base")
    content = torch.load(official_file(final, tmp_path / "delta.ckpt"))
    for name, tensor in base.state_dict().items():
        if name.startswith("backbone."):
            content["state_dict"][f"network.encoder.{name}"] -= tensor
    torch.save(content, tmp_path / "delta.ckpt")
    model = tiny(seed=6)
    load_into(model, read_checkpoint(whole))
    assert "delta" not in caplog.text
    delta = read_checkpoint(tmp_path / "delta.ckpt")
    load_into(model, delta)
    assert "looks like a delta" in caplog.text
    load_into(model, add_delta(delta, read_checkpoint(other)))
    assert_equal(ours(model), ours(final))
    with pytest.raises(ValueError, match="is not the base"):
        add_delta(delta, read_checkpoint(saved(tiny(image_size=(96, 96)), tmp_path / "b")))


def test_an_existing_output_is_kept(tmp_path, capsys):
    source, target = saved(tiny(), tmp_path), tmp_path / "mine.pth"
    target.write_text("precious")
    assert run(source, "--to", "anoseg", "--output", target) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert run(source, "--to", "anoseg", "--output", target, "--overwrite") == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--num-blocks", "0"], "--num-blocks is 0; it must be an integer in 1..1000"),
        (["--num-blocks", "3"], "says 2"),
        (["--num-heads", "-1"], "--num-heads is -1; it must be an integer in 1..1000"),
        (["--image-size", "-64", "64"], "--image-size is -64; it must be an integer in 1..16384"),
        (["--import", "no_such_module_of_mine"], "cannot import 'no_such_module_of_mine'"),
        (["--output", "model.txt"], "must be a file that ends in .pth"),
        (["--output", "."], "must be a file"),
        (["--half"], "--half is for --to adapter"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(tmp_path, capsys, arguments, message):
    source = saved(tiny(), tmp_path)
    output = ["--to", "anoseg", "--output", tmp_path / "out.pth"]
    assert run(source, *output, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and message in printed.err and not printed.out
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("options", [MERGE[:2], MERGE], ids=["convert", "merge"])
def test_files_that_are_no_checkpoints_are_one_line_and_exit_status_2(tmp_path, capsys, options):
    (tmp_path / "bytes.pth").write_bytes(b"\x80\x02nothing")
    (tmp_path / "empty.pth").touch()
    torch.save({1: torch.zeros(2)}, tmp_path / "integer_key.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    output = [*options, "--output", str(tmp_path / "out.pth")]
    for name in (
        "bytes.pth",
        "empty.pth",
        "integer_key.pth",
        "list.pth",
        "absent.pth",
        "/dev/null",
    ):
        assert convert.main([str(tmp_path / name), *output]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and name in error


def test_a_module_of_ones_own_is_imported_first(tmp_path, monkeypatch):
    (tmp_path / "my_head_module.py").write_text("import pathlib\nimported = True\n")
    monkeypatch.chdir(tmp_path)
    arguments = ("--to", "anoseg", "--output", tmp_path / "o.pth", "--import", "my_head_module")
    assert run(saved(tiny(), tmp_path), *arguments) == 0
