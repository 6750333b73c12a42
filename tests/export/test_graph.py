"""Parts of the exported graph."""

import pytest
import torch
from exported_models import answers, assert_same, photographs
from tiny_models import set_inference

from anoseg_d2.checkpoint.metadata import weights_hash
from anoseg_d2.export.graph import ExportModel
from anoseg_d2.export.spec import ExportSpec
from anoseg_d2.modeling.patch_heads.memory import PatchMemory, plain_blocks


@pytest.mark.parametrize("head", ["linear", "logit_norm", "arcface"])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
@pytest.mark.parametrize("has_anomaly", [False, True])
def test_the_traced_module_equals_the_model(make_model, head, lora, has_anomaly):
    model = make_model(head, lora=lora, has_anomaly=has_anomaly)
    names = tuple(model.score_names)
    images = photographs(2, 32, 32)
    spec = ExportSpec(names, confidence=True, batch=2)
    found = dict(zip(spec.outputs, ExportModel(model, spec)(images), strict=True))
    assert_same({k: v.numpy() for k, v in found.items()}, answers(model, images, names))


@pytest.mark.parametrize("size", [(50, 90), (97, 40), (32, 80), (20, 24)])
@pytest.mark.parametrize("overlap,flip", [(0.0, False), (0.4, False), (0.0, True)])
def test_windows_inside_equal_the_model(make_model, size, overlap, flip):
    model = make_model(window_overlap=overlap, flip=flip, window_taper=overlap > 0)
    images = photographs(2, *size)
    spec = ExportSpec(("rba", "energy"), batch=2, image_size=size, input="float32")
    found = dict(zip(spec.outputs, ExportModel(model, spec)(images.float()), strict=True))
    assert_same({k: v.numpy() for k, v in found.items()}, answers(model, images, spec.scores))


@pytest.mark.parametrize("scales", [(2.0,), (1.0, 1.5, 2.0)])
def test_scales_inside_the_graph_equal_the_model(make_model, scales):
    model = make_model(scales=scales, flip=True)
    images = photographs(2, 40, 50)
    spec = ExportSpec(("rba", "entropy"), batch=2, image_size=(40, 50), confidence=True)
    found = dict(zip(spec.outputs, ExportModel(model, spec)(images), strict=True))
    assert_same({k: v.numpy() for k, v in found.items()}, answers(model, images, spec.scores))


@pytest.mark.parametrize("flip", [False, True])
def test_the_memory_inside_the_graph_equals_the_model(make_model, flip):
    model = make_model(flip=flip)
    last = len(model.backbone.blocks) - 1
    plain = plain_blocks(model.backbone, model.num_blocks, [last])
    rows, unit = torch.randn(2, 9, 32), torch.ones(2)
    model.patch_maps["memory"] = PatchMemory(rows, (0, last), 0 * unit, unit, plain=plain)
    images = photographs(1, 50, 90)
    spec = ExportSpec(("rba", "memory"), image_size=(50, 90))
    found = dict(zip(spec.outputs, ExportModel(model, spec)(images), strict=True))
    assert_same({k: v.numpy() for k, v in found.items()}, answers(model, images, spec.scores))


def test_an_image_size_that_takes_thousands_of_windows_is_refused(make_model):
    with pytest.raises(ValueError, match="1x2000000 pixels is too elongated"):
        ExportModel(make_model(), ExportSpec(("rba",), image_size=(1, 2_000_000)))


def test_a_model_in_mixed_precision_is_refused(make_model):
    model = make_model()
    set_inference(model, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="TEST.AMP is True"):
        ExportModel(model, ExportSpec(("rba",)))


def test_a_second_look_is_refused(make_model):
    model = make_model()
    set_inference(model, second_look=2.0)
    with pytest.raises(ValueError, match="TEST.SECOND_LOOK.SCALE is 2.0"):
        ExportModel(model, ExportSpec(scores=("rba",)))


def test_the_model_itself_is_left_as_it_was(make_model):
    model = make_model(lora={"rank": 2})
    before, names = weights_hash(model.state_dict()), list(model.score_names)
    ExportModel(model, ExportSpec(("rba",), half=True))
    assert weights_hash(model.state_dict()) == before and model.score_names == names
    assert {p.dtype for p in model.parameters()} == {torch.float32}
