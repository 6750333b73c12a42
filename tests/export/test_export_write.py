"""Exported files give what the model gives; a file that does not is not kept."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_models import STATISTICS, answers, assert_same, photographs
from tiny_models import set_info

from anoseg_d2.checkpoint import load_into, read_checkpoint
from anoseg_d2.checkpoint.metadata import weights_hash
from anoseg_d2.data.image_io import read_image
from anoseg_d2.evaluation.alarm_rate import to_unit
from anoseg_d2.export import write as export
from anoseg_d2.export.check import open_session, run_file
from anoseg_d2.export.graph import ExportModel
from anoseg_d2.export.spec import OPSET, ExportCheckError, ExportSpec
from anoseg_d2.export.write import describe, export_model
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.patch_heads.memory import PatchMemory
from anoseg_d2.modeling.vit import build_vit


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.slow
def test_the_guided_filter_is_in_the_file(make_model, tmp_path, half):
    model = make_model(guided_filter=0.5, flip=True)
    spec = ExportSpec(("rba",), batch=2, image_size=(50, 90), half=half)
    # Writing checks the file against the model and raises where they differ.
    export_model(model, tmp_path / "filtered.onnx", spec, tolerance=0.05 if half else None)
    nodes = {node.op_type for node in onnx.load(tmp_path / "filtered.onnx").graph.node}
    assert "AveragePool" in nodes


@pytest.mark.slow
def test_int8_is_a_quarter_of_the_size_and_keeps_the_metadata(make_model, tmp_path):
    model = make_model(vit={"width": 64})
    model.patch_maps["memory"] = PatchMemory(torch.randn(9, 64), 0)
    sizes = {}
    for int8 in (False, True):
        path = tmp_path / f"{int8}.onnx"
        spec = ExportSpec(("rba", "memory"), int8=int8)
        differences = export_model(
            model, path, spec, thresholds={"rba": -0.5}, tolerance=10 if int8 else None
        )
        assert {d.output for d in differences} == {"sem_seg", "rba", "memory"}
        found = open_session(path).get_modelmeta().custom_metadata_map
        assert found["precision"] == ("int8" if int8 else "float32")
        assert json.loads(found["thresholds_tpr95"]) == {"rba": -0.5}
        sizes[int8] = path.stat().st_size
    assert sizes[True] < 0.8 * sizes[False]  # convolutions and the graph stay as they are


def test_int8_is_refused_where_it_cannot_be():
    with pytest.raises(ValueError, match="one of half and int8"):
        ExportSpec(("rba",), half=True, int8=True)


@pytest.mark.parametrize(
    "name, message", [("rab", "unknown score 'rab'; known: "), ("anomaly", "needs a model with")]
)
def test_scores_that_the_model_cannot_give_are_refused(make_model, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        export_model(make_model(), tmp_path / "m.onnx", ExportSpec((name,)))
    assert not list(tmp_path.iterdir())


def test_an_ensemble_without_statistics_is_refused(make_model, tmp_path):
    model = make_model(has_anomaly=True)
    set_info(model, score_statistics={})
    with pytest.raises(ValueError, match="needs mean and spread of rba, anomaly"):
        export_model(model, tmp_path / "m.onnx", ExportSpec(("rba+anomaly",)))
    assert not list(tmp_path.iterdir())


def test_metadata_says_what_a_consumer_must_know(make_model):
    model = make_model(has_anomaly=True, lora={"rank": 2})
    spec = ExportSpec(("rba", "rba+anomaly"), batch=None, image_size=(50, 90), confidence=True)
    wrapped = ExportModel(model, spec)
    names = ["road", "pavement", "car", "person", "sky"]
    found = describe(wrapped, names, {"rba": -0.5}, "road_anomaly")
    assert json.loads(found["thresholds_tpr95"]) == {"rba": -0.5}
    assert json.loads(found["thresholds_dataset"]) == "road_anomaly"
    assert found["input"] == "image, NCHW, RGB, 0..255; normalised inside"
    assert json.loads(found["input_shape"]) == ["batch", 3, 50, 90]
    assert json.loads(found["outputs"]) == ["sem_seg", "rba", "rba+anomaly", "confidence"]
    assert json.loads(found["class_names"])[2] == "car"
    assert json.loads(found["num_known"]) == 5 and json.loads(found["has_anomaly"]) is True
    assert json.loads(found["score_statistics"]) == {k: list(v) for k, v in STATISTICS.items()}
    assert json.loads(found["settings"])["TEST.FLIP"] is False
    assert json.loads(found["resized"]) == [32, 58]
    assert json.loads(found["origins"]) == [[0, 0], [0, 26]]
    assert found["weights_sha256"] == weights_hash(wrapped.model.state_dict())


# ---- the check ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_that_differs_is_not_kept(make_model, tmp_path, monkeypatch):
    def run_wrongly(*arguments):
        return {name: values + values.dtype.type(2e-3) for name, values in run(*arguments).items()}

    run = run_file
    monkeypatch.setattr("anoseg_d2.export.check.run_file", run_wrongly)
    spec = ExportSpec(("rba_sum", "entropy"))
    with pytest.raises(ExportCheckError, match=r"rba_sum by 0\.002.*allowed 0\.001"):
        export_model(make_model(), tmp_path / "m.onnx", spec)
    assert not list(tmp_path.iterdir())


def test_what_was_there_stays_when_the_check_fails(make_model, tmp_path, monkeypatch):
    def fail(path, *_):
        assert path.is_file()
        raise ExportCheckError([])

    monkeypatch.setattr(export, "check_file", fail)
    monkeypatch.setattr(export, "trace", lambda model: None)
    monkeypatch.setattr(export, "write_onnx", lambda program, path, *_: path.write_text("newer"))
    (tmp_path / "m.onnx").write_text("older")
    with pytest.raises(ExportCheckError):
        export_model(make_model(), tmp_path / "m.onnx", ExportSpec(("rba",)))
    assert [p.read_text() for p in tmp_path.iterdir()] == ["older"]


def test_a_file_without_external_weights_drops_those_of_an_older_one(tmp_path):
    written, output = tmp_path / "new", tmp_path / "m.onnx"
    for names in (["m.onnx", "m.onnx.data"], ["m.onnx"]):
        written.mkdir(exist_ok=True)
        for name in names:
            (written / name).write_text(name)
        export.publish(written, output)
        assert sorted(p.name for p in tmp_path.glob("m.*")) == names


# ---- ONNX -----------------------------------------------------------------------------------

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

RANDOM = {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike"}
RANDOM |= {"RandomUniform", "RandomUniformLike"}


def assert_sound(path):
    """A graph of the stated opset that checks, draws nothing and aligns no corners."""
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert not RANDOM & {node.op_type for node in model.graph.node}
    resizes = [node for node in model.graph.node if node.op_type == "Resize"]
    modes = {
        (a.name, a.s) for n in resizes for a in n.attribute if a.name.startswith("coordinate_tra")
    }
    assert resizes and {mode for _, mode in modes} <= {b"half_pixel", b"pytorch_half_pixel"}
    stored = {entry.key: entry.value for entry in model.metadata_props}
    assert stored["opset"] == str(OPSET) and len(stored["weights_sha256"]) == 64
    return model


def shapes(values):
    return [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in values
    ]


@pytest.mark.slow
def test_window_sized_linear_head_any_batch_every_score(make_model, tmp_path):
    model = make_model(has_anomaly=True, lora={"rank": 2})
    names = (*model.score_names, "rba+anomaly")
    path, spec = tmp_path / "m.onnx", ExportSpec(names, batch=None, confidence=True)
    differences = export_model(model, path, spec)
    assert {d.shape[0] for d in differences} == {1, 2}
    images = photographs(3, 32, 32)
    assert_same(run_file(path, images, spec.outputs), answers(model, images, names))
    graph = assert_sound(path).graph
    assert not any("lora" in tensor.name for tensor in graph.initializer)
    assert shapes(graph.input) == [["batch", 3, 32, 32]]
    assert shapes(graph.output) == [["batch", 32, 32]] * len(spec.outputs)
    assert [value.name for value in graph.output] == spec.outputs


@pytest.mark.slow
def test_portrait_windows_logit_norm_head_floats_in_external_weights(make_model, tmp_path):
    model = make_model("logit_norm", has_anomaly=True)
    path = tmp_path / "m.onnx"
    spec = ExportSpec(("rba", "anomaly"), batch=2, image_size=(90, 50), input="float32")
    export_model(model, path, spec, external_bytes=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx.data").stat().st_size > 50_000
    images = photographs(2, 90, 50)
    assert_same(run_file(path, images.float(), spec.outputs), answers(model, images, spec.scores))
    assert shapes(assert_sound(path).graph.input) == [[2, 3, 90, 50]]


SIZES = [(32, 32), (77, 41), (20, 90), (150, 33), (40, 200)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"flip": True, "window_overlap": 0.4},
        {"scales": (2.0,), "window_overlap": 0.3, "window_taper": True},
        {"scales": (1.0, 1.5), "window_overlap": 0.3, "flip": True},
    ],
    ids=["plain", "flip and overlap", "scale", "scales"],
)
def test_one_file_gives_what_the_model_gives_on_photographs_of_any_size(
    make_model, tmp_path, options
):
    model = make_model("arcface", has_anomaly=True, **options)
    model.patch_maps["memory"] = PatchMemory(torch.randn(9, 32), 0)
    path = tmp_path / "m.onnx"
    spec = ExportSpec(("rba", "anomaly", "memory"), any_size=True, confidence=True)
    differences = export_model(model, path, spec)
    assert {d.shape for d in differences} == {(1, 40, 64), (1, 64, 36)}
    graph = assert_sound(path).graph
    assert shapes(graph.input) == [[1, 3, "height", "width"]]
    assert shapes(graph.output) == [[1, "height", "width"]] * 5
    for size in SIZES:
        images = photographs(1, *size)
        expected = answers(model, images, spec.scores)
        assert_same(run_file(path, images, spec.outputs), expected)


@pytest.mark.slow
def test_any_size_takes_floats_and_rounds_them_as_the_model_does(make_model, tmp_path):
    model, path = make_model(), tmp_path / "m.onnx"
    export_model(model, path, ExportSpec(("rba",), any_size=True, input="float32"))
    images = photographs(1, 41, 77) + 0.3
    assert_same(run_file(path, images, ["sem_seg", "rba"]), answers(model, images, ["rba"]))


@pytest.mark.slow
def test_rotary_positions_of_dinov3_are_constants_of_the_graph(make_model, tmp_path):
    model = make_model("arcface", vit={"backbone": "dinov3", "width": 48}, lora={"rank": 2})
    path, spec = tmp_path / "m.onnx", ExportSpec(("rba",), batch=2, image_size=(40, 64))
    export_model(model, path, spec)
    images = photographs(2, 40, 64)
    assert_same(run_file(path, images, spec.outputs), answers(model, images, spec.scores))
    assert not {"Sin", "Cos"} & {node.op_type for node in assert_sound(path).graph.node}


@pytest.mark.slow
def test_half_precision_is_half_the_size_and_near(make_model, tmp_path):
    model = make_model("arcface")
    path, spec = tmp_path / "m.onnx", ExportSpec(("rba", "entropy"), half=True)
    export_model(model, path, spec)
    images = photographs(1, 32, 32)
    found, expected = run_file(path, images, spec.outputs), answers(model, images, spec.scores)
    for name in spec.scores:
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected[name], atol=0.05)
    tensors = assert_sound(path).graph.initializer
    halves = sum(t.data_type == onnx.TensorProto.FLOAT16 for t in tensors)
    weights = [p for name, p in model.named_parameters() if not name.startswith("class_head")]
    assert halves >= len(weights) // 2
    large = {t.name for t in tensors if t.data_type == 1 and np.prod(t.dims) > 2000}
    assert not large


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(make_model, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {package} .*pip install -e '\.\[export"):
        export_model(make_model(), tmp_path / "m.onnx", ExportSpec(("rba",)))


def test_the_real_vit_s_on_a_photograph(tmp_path):
    root = Path(os.environ.get("ANOSEG_DATA", Path(__file__).parents[2] / "shared" / "data"))
    weights = root / "weights" / "dinov2_vits14_fp16.safetensors"
    if not weights.is_file():
        pytest.skip(f"{weights} is absent; set ANOSEG_DATA")
    model = EoMT(
        backbone=build_vit("S", image_size=(96, 96), num_registers=0), head="arcface", num_blocks=3
    ).eval()
    load_into(model, read_checkpoint(weights))
    photograph = read_image(sorted((root / "camvid" / "val").glob("*.png"))[0])
    photograph = torch.from_numpy(photograph).permute(2, 0, 1)
    spec = ExportSpec(("rba", "entropy"), image_size=(120, 160))
    differences = export_model(model, tmp_path / "s.onnx", spec, check_image=photograph)
    assert all(d.passed for d in differences)
    assert max(d.largest for d in differences if d.output == "rba") < 5e-4
    assert (tmp_path / "s.onnx").stat().st_size > 85e6


def test_a_folder_that_takes_no_file_is_named_with_the_file(make_model):
    with pytest.raises(OSError, match=r"/proc/x\.onnx"):
        export_model(make_model(), "/proc/x.onnx", ExportSpec(("rba",)))


@pytest.mark.slow
def test_a_threshold_travels_and_decides_on_every_pixel_as_the_model_does(make_model, tmp_path):
    model = make_model()
    scores = answers(model, photographs(1, 32, 32), ["rba"])["rba"]
    # Halfway between two neighbouring values: no rounding can decide there.
    values = np.unique(scores)
    place = np.argmax(np.diff(values)[len(values) // 2 :]) + len(values) // 2
    record = {"threshold": float(np.float32(values[place : place + 2].mean()))}
    record |= {"median": float(np.median(scores)), "alarm_rate": 0.1, "settings": {}}
    set_info(model, thresholds={"rba": record})
    for unit_scale in (False, True):
        path = tmp_path / f"{unit_scale}.onnx"
        export_model(model, path, ExportSpec(("rba",), unit_scale=unit_scale))
        found = run_file(path, photographs(1, 32, 32), ["rba"])["rba"]
        stored = open_session(path).get_modelmeta().custom_metadata_map["thresholds"]
        about = json.loads(stored)["rba"]
        assert about["threshold"] == (0.5 if unit_scale else record["threshold"])
        assert np.array_equal(found >= about["threshold"], scores >= record["threshold"])
        if unit_scale:
            expected = to_unit(scores, record["threshold"], record["median"])
            np.testing.assert_allclose(found, expected, atol=1e-4)
    spec = ExportSpec(("rba",), any_size=True, one_byte=True)
    export_model(model, path, spec)
    found = run_file(path, photographs(1, 32, 32), spec.outputs)
    assert found["rba_byte"].dtype == np.uint8 and np.ptp(found["rba_byte"]) > 50
    assert np.array_equal(found["rba_byte"] >= 128, found["rba"] >= record["threshold"])
    with pytest.raises(ValueError, match="anoseg threshold"):
        ExportModel(make_model(), ExportSpec(("rba",), unit_scale=True))
