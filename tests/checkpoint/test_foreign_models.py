"""Models of other projects say all they are: what changes their outputs is used, or refused."""

import numpy as np
import pytest
import torch
import transformers
from checkpoint_models import assert_same_outputs, saved, tiny, to_official

from anoseg_d2 import AnomalyPredictor
from anoseg_d2.checkpoint import load_into, read_checkpoint
from anoseg_d2.commands import convert

PIXELS = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(3))


def vit_tensors(model):
    state = model.state_dict()
    return {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}


def random_(module, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return module.eval()


def convert_to(target, *arguments):
    output = str(arguments[-1])
    return convert.main([*map(str, arguments[:-1]), "--to", target, "--output", output])


# ---- names that wrappers leave --------------------------------------------------------------


def wrap_blocks(state, text):
    return {name.replace("blocks.0.", f"blocks.0.{text}"): t for name, t in state.items()}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda vit: {f"_fsdp_wrapped_module.{n}": t for n, t in vit.items()},
        lambda vit: wrap_blocks(vit, "_checkpoint_wrapped_module."),
    ],
    ids=["fsdp", "activation checkpointing"],
)
def test_names_that_wrappers_leave_are_read(tmp_path, wrapped):
    source, model = tiny(seed=1), tiny(seed=2)
    torch.save(wrapped(vit_tensors(source)), tmp_path / "vit.pth")
    load_into(model, read_checkpoint(tmp_path / "vit.pth"))
    assert all(torch.equal(t, vit_tensors(source)[n]) for n, t in vit_tensors(model).items())


# ---- DINOv2 of transformers -----------------------------------------------------------------


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("in_memory", [False, True], ids=["folder", "state dict"])
def test_a_dinov2_of_transformers_gives_its_features(tmp_path, registers, gated, in_memory):
    options = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
    options |= {"image_size": 56, "patch_size": 14, "use_swiglu_ffn": gated}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **options)
        theirs = random_(transformers.Dinov2WithRegistersModel(config))
    else:
        theirs = random_(transformers.Dinov2Model(transformers.Dinov2Config(**options)))
    theirs.save_pretrained(tmp_path)
    if in_memory:
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    checkpoint = read_checkpoint(tmp_path)
    spec = checkpoint.spec
    assert (checkpoint.format, spec.depth, spec.heads) == ("dinov2_transformers", 3, 3)
    assert (spec.grid, spec.pos_prefix, spec.num_registers) == ((4, 4), 1, registers)
    if gated:  # MLPs of another width than any of our sizes
        return
    model = tiny(image_size=(56, 56), patch_size=14, num_registers=registers)
    load_into(model, checkpoint)
    with torch.no_grad():
        expected = theirs(pixel_values=PIXELS).last_hidden_state
        found = model.backbone.forward_features(PIXELS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_another_activation_is_refused_by_name(tmp_path):
    options = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = transformers.Dinov2Config(hidden_act="relu", image_size=56, **options)
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hidden_act 'relu'"):
        read_checkpoint(tmp_path)


# ---- attention masks that a training left on ------------------------------------------------


@pytest.fixture
def masked(tmp_path):
    """A folder of transformers whose masks are on, as its fine-tuning leaves them."""
    options = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
    options |= {"image_size": 64, "patch_size": 16, "num_blocks": 2, "num_queries": 6}
    config = transformers.EomtConfig(num_labels=5, **options)
    theirs = random_(transformers.EomtForUniversalSegmentation(config))
    theirs.attn_mask_probs.copy_(torch.tensor([0.5, 1.0]))
    theirs.save_pretrained(tmp_path / "masked")
    return tmp_path / "masked"


def test_masks_that_are_on_are_refused_unless_they_are_left_out_knowingly(masked):
    with pytest.raises(ValueError, match=r"attn_mask_probs 0.5, 1\).*MASKED_ATTENTION"):
        AnomalyPredictor.from_pretrained(str(masked), ["MODEL.DEVICE", "cpu"])
    allowed = ["MODEL.DEVICE", "cpu", "MODEL.ALLOW_UNUSED_WEIGHTS", ["attn_mask_probs"]]
    AnomalyPredictor.from_pretrained(str(masked), allowed)
    load_into(tiny(), read_checkpoint(masked))  # to be trained


def test_masks_that_are_on_stay_on_in_our_format(masked, tmp_path):
    assert convert_to("anoseg", masked, tmp_path / "ours.pth") == 0
    with pytest.raises(ValueError, match="attn_mask_probs"):
        AnomalyPredictor.from_pretrained(str(tmp_path / "ours.pth"), ["MODEL.DEVICE", "cpu"])
    assert read_checkpoint(tmp_path / "ours.pth").spec.mask_probs == (0.5, 1.0)


# ---- grids of positions that are not square -------------------------------------------------


def test_the_settings_of_a_lightning_file_state_an_oblong_grid(tmp_path):
    model = tiny(image_size=(32, 128), seed=1)  # 2 x 8 patches, as many as 4 x 4
    official = {"state_dict": to_official(read_checkpoint(saved(model, tmp_path)))}
    torch.save(official | {"hyper_parameters": {"img_size": [32, 128]}}, tmp_path / "model.ckpt")
    checkpoint = read_checkpoint(tmp_path / "model.ckpt")
    assert checkpoint.spec.grid == (2, 8)
    other = tiny(image_size=(32, 128), seed=2)
    load_into(other, checkpoint)
    assert_same_outputs(model, other)


@pytest.mark.parametrize("size", [(32, 128), (32, 96)], ids=["as many as a square", "no square"])
def test_a_grid_that_no_file_states_is_asked_for(tmp_path, size):
    source = tiny(image_size=size, seed=1)
    bare = tmp_path / "bare.pth"
    torch.save(source.state_dict(), bare)
    model = tiny(image_size=(32, 128) if size == (32, 128) else (64, 64))
    with pytest.raises(ValueError, match="convert .*--image-size"):
        load_into(model, read_checkpoint(bare))
    stated, wrong = tmp_path / "stated.pth", tmp_path / "wrong.pth"
    sizes = ["--image-size", *size, "--num-blocks", 2, "--num-heads", 3]
    assert convert_to("anoseg", bare, *sizes, stated) == 0
    other = tiny(image_size=size, seed=3)
    load_into(other, read_checkpoint(stated))
    assert np.array_equal(other.backbone.pos_embed.detach(), source.backbone.pos_embed.detach())
    sizes[1:3] = [16, 16]
    assert convert_to("anoseg", bare, *sizes, wrong) == 2
