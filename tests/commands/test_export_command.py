"""The command that exports: what it writes, says and refuses, and the consumer of the docs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_models import save_adapter
from PIL import Image
from tiny_models import set_info

from anoseg_d2.checkpoint import AnosegCheckpointer, weights_hash
from anoseg_d2.commands import export as tool
from anoseg_d2.export.check import draw_image, open_session
from anoseg_d2.export.spec import Difference, ExportCheckError
from anoseg_d2.modeling.lora import merge_lora
from anoseg_d2.prediction.predictor import AnomalyPredictor
from anoseg_d2.utils.files import file_hash

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["road", "pavement", "sky"]


@pytest.fixture
def checkpoint(tiny_eomt, tmp_path):
    """A saved model with adapters, class names and statistics."""
    model = tiny_eomt(has_anomaly=True, lora={"rank": 2}, vit={"depth": 2}, num_blocks=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    set_info(model, class_names=NAMES)
    set_info(model, score_statistics={"rba": (-1.0, 0.2), "anomaly": (0.1, 0.1)})
    AnosegCheckpointer(model.eval(), str(tmp_path), save_to_disk=True).save("model")
    return str(tmp_path / "model.pth")


def export(*arguments):
    return tool.main([str(argument) for argument in arguments])


def consumer():
    """The code block of docs/export.md."""
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    return re.search(r"```python title=consumer.py\n(.*?)```", text, re.DOTALL).group(1)


def write_results(folder, **thresholds):
    """An evaluation that states these thresholds at 95 % TPR."""
    scores = {name: {"tpr_thresholds": {"95": value}} for name, value in thresholds.items()}
    folder.mkdir()
    text = json.dumps({"datasets": {"road": {"scores": scores}}})
    (folder / "results.json").write_text(text)
    return folder / "results.json"


def found_hash(checkpoint):
    """sha256 over the weights with adapters merged."""
    model = AnomalyPredictor.from_pretrained(checkpoint, ["MODEL.DEVICE", "cpu"]).model
    return weights_hash(merge_lora(model).state_dict())


BLOCK = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] not in {"numpy", "onnxruntime", *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
for name in ("torch", "anoseg_d2", "detectron2", "onnx", "PIL"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is not blocked")
"""


@pytest.mark.slow
def test_onnx_runs_in_the_consumer_of_the_docs_without_this_project(checkpoint, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    output = tmp_path / "model.onnx"
    write_results(tmp_path / "report", rba=-0.75, anomaly=0.125)
    assert export(checkpoint, "--output", output) == 0
    said = re.sub(" +", " ", capsys.readouterr().out)  # without the padding of the table
    assert re.search(r"\| rba \| 1x40x64 \| -[\d.]+\.\.-?[\d.]+ \| [\d.e-]+ \| 0\.001 \|", said)
    assert re.search(r"\| sem_seg \| 1x64x36 \| \d\.\.\d \|", said) and "ONNX opset 18" in said

    image = draw_image(40, 60, seed=5).permute(1, 2, 0).numpy()
    np.save(tmp_path / "image.npy", image)
    assert len([line for line in consumer().splitlines() if line]) == 10
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + consumer()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    classes, window, weights = done.stdout.splitlines()
    assert json.loads(classes) == NAMES and json.loads(window) == [32, 32]
    assert weights == found_hash(checkpoint)
    expected = AnomalyPredictor.from_pretrained(checkpoint, ["MODEL.DEVICE", "cpu"])
    scores = expected(image[..., ::-1])["scores"]
    for name, threshold in (("rba", -0.75), ("anomaly", 0.125)):
        maps = np.load(tmp_path / f"{name}.npz")
        np.testing.assert_allclose(maps["score"], scores[name], atol=1e-4)
        assert np.array_equal(maps["anomaly"], maps["score"] >= threshold)


@pytest.mark.slow
def test_a_config_file_with_overrides_and_a_photograph(checkpoint, tmp_path, capsys):
    config = tmp_path / "model.yaml"
    sizes = "{SIZE: S, DEPTH: 2, WIDTH: 32, HEADS: 2, NUM_REGISTERS: 1, NUM_CLASSES: 3, "
    sizes += "ANOMALY_CLASS: true, NUM_QUERIES: 5, NUM_BLOCKS: 1}"
    lora = "{ENABLED: true, RANK: 2}"
    config.write_text(f"MODEL: {{EOMT: {sizes}, LORA: {lora}}}\nINPUT: {{CROP_SIZE: [32, 32]}}\n")
    photograph = tmp_path / "photo.png"
    Image.fromarray(draw_image(50, 70).permute(1, 2, 0).numpy()).save(photograph)
    output = tmp_path / "model.onnx"
    options = ["--config-file", config, "--scores", "rba+anomaly", "--confidence"]
    options += ["--image-size", 32, 32, "--check-image", photograph, "--output", output]
    assert export(checkpoint, *options, "TEST.WINDOW_OVERLAP", "0.5") == 0
    assert "| rba+anomaly | 1x32x32 |" in re.sub(" +", " ", capsys.readouterr().out)
    about = open_session(output).get_modelmeta().custom_metadata_map
    assert json.loads(about["outputs"]) == ["sem_seg", "rba+anomaly", "confidence"]
    assert json.loads(about["class_names"]) == NAMES


@pytest.fixture
def given_thresholds(monkeypatch):
    """What the command hands to `export_model`, which is not run."""
    given = []

    def export_model(*_, thresholds, threshold_dataset, **__):
        given.append((thresholds, threshold_dataset))
        raise ExportCheckError([])

    monkeypatch.setattr("anoseg_d2.export.write.export_model", export_model)
    return given


def test_thresholds_come_from_the_evaluation_next_to_the_weights_or_from_results(
    checkpoint, tmp_path, given_thresholds
):
    write_results(tmp_path / "report", rba=-0.75, anomaly=0.125)
    other = write_results(tmp_path / "other", rba=-0.5)
    export(checkpoint, "--output", tmp_path / "m.onnx")
    export(checkpoint, "--output", tmp_path / "m.onnx", "--scores", "rba", "--results", other)
    both = {"rba": -0.75, "anomaly": 0.125}
    assert given_thresholds == [(both, "road"), ({"rba": -0.5}, "road")]


def test_without_an_evaluation_there_are_no_thresholds_but_given_results_must_hold_them(
    checkpoint, tmp_path, capsys, given_thresholds
):
    export(checkpoint, "--output", tmp_path / "m.onnx")
    assert given_thresholds == [({}, None)]
    other = write_results(tmp_path / "other", rba=-0.5)
    assert export(checkpoint, "--output", tmp_path / "m.onnx", "--results", other) == 2
    assert "other/results.json" in capsys.readouterr().err and len(given_thresholds) == 1


def test_a_score_that_was_not_evaluated_has_no_threshold_but_the_others_keep_theirs(
    checkpoint, tmp_path, given_thresholds, caplog
):
    write_results(tmp_path / "report", rba=-0.75)
    export(checkpoint, "--output", tmp_path / "m.onnx")
    assert given_thresholds == [({"rba": -0.75}, "road")]
    assert "no threshold of anomaly is stored" in caplog.text


def test_thresholds_of_other_weights_are_not_stored(checkpoint, tmp_path, given_thresholds, caplog):
    place = write_results(tmp_path / "report", rba=-0.75, anomaly=0.125)
    results = json.loads(place.read_text())
    place.write_text(json.dumps({**results, "model": {"weights_file_sha256": "0" * 64}}))
    export(checkpoint, "--output", tmp_path / "m.onnx")
    assert given_thresholds == [({}, None)] and "is of other weights" in caplog.text
    mine = file_hash(checkpoint)
    place.write_text(json.dumps({**results, "model": {"weights_file_sha256": mine}}))
    export(checkpoint, "--output", tmp_path / "m.onnx")
    assert given_thresholds[1] == ({"rba": -0.75, "anomaly": 0.125}, "road")


def test_thresholds_of_other_settings_are_not_stored_and_named_ones_bring_theirs(
    checkpoint, tmp_path, given_thresholds, caplog, capsys
):
    place = write_results(tmp_path / "report", rba=-0.75)
    results = json.loads(place.read_text())
    place.write_text(json.dumps({**results, "config": "TEST: {ANOMALY: {GUIDED_FILTER: 0.5}}"}))
    command = (checkpoint, "--output", tmp_path / "m.onnx", "--scores", "rba")
    export(*command)
    assert given_thresholds == [({}, None)] and "GUIDED_FILTER was 0.5, is 0.0" in caplog.text
    export(*command, "--results", place)
    assert given_thresholds[1] == ({"rba": -0.75}, "road")
    named = ("--results", place, "TEST.ANOMALY.GUIDED_FILTER", "0")
    assert export(*command, *named) == 2
    assert "GUIDED_FILTER was 0.5, is 0" in capsys.readouterr().err


def test_an_export_of_few_bits_says_that_its_thresholds_are_of_others(
    checkpoint, tmp_path, given_thresholds, caplog
):
    write_results(tmp_path / "report", rba=-0.75)
    export(checkpoint, "--output", tmp_path / "m.onnx", "--scores", "rba", "--int8")
    assert given_thresholds and "weights of 32 bits" in caplog.text


def test_a_filter_of_the_evaluation_is_refused_for_open_sizes(checkpoint, tmp_path, capsys):
    place = write_results(tmp_path / "report", rba=-0.75)
    results = json.loads(place.read_text())
    place.write_text(json.dumps({**results, "config": "TEST: {ANOMALY: {GUIDED_FILTER: 0.5}}"}))
    options = ("--scores", "rba", "--results", place)
    assert export(checkpoint, "--output", tmp_path / "m.onnx", *options) == 2
    said = capsys.readouterr().err
    assert "GUIDED_FILTER is 0.5" in said and "size" in said
    assert not (tmp_path / "m.onnx").exists()


def test_a_failed_check_ends_with_status_1_and_without_a_file(
    checkpoint, tmp_path, capsys, monkeypatch
):
    def fail(*_, **__):
        bad = Difference("rba", (1, 32, 32), -1.0, 0.0, 0.5, 1e-3)
        raise ExportCheckError([bad])

    monkeypatch.setattr("anoseg_d2.export.write.check_file", fail)
    monkeypatch.setattr("anoseg_d2.export.write.trace", lambda model: None)
    monkeypatch.setattr(
        "anoseg_d2.export.write.write_onnx", lambda program, path, *_: path.write_text("bad")
    )
    before = sorted(tmp_path.iterdir())
    assert export(checkpoint, "--output", tmp_path / "model.onnx") == 1
    said = capsys.readouterr()
    assert "| rba | 1x32x32 | -1..0 | 0.5 | 0.001 |" in re.sub(" +", " ", said.out)
    assert said.err.startswith("error: the exported model differs") and said.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


MISTAKES = {
    "--output m.txt": "must end in .onnx",
    "--output absent/m.onnx": "the folder absent does not exist",
    "--output model.pth": "must end in .onnx",
    "--output there.onnx": "exists; remove it or pass --overwrite",
    "--output m.onnx --scores rab": "unknown score 'rab'; known: msp",
    "--output m.onnx --scores rba+msp": "needs mean and spread of msp",
    "--output m.onnx --scores ,": "--scores is empty; leave it out for the default",
    "--output m.onnx --batch many": "--batch is 'many'; give a number in 1..1024 or `dynamic`",
    "--output m.onnx --batch 2": "takes one image at a time",
    "--output m.onnx --batch 0": "--batch is '0'; give a number in 1..1024",
    "--output m.onnx --batch 1000000000": "--batch is '1000000000'; give a number in 1..1024",
    "--output m.onnx --image-size 0 5": "--image-size is 0; it must be an integer in 1..16384",
    "--output m.onnx --image-size 1 100000": "--image-size is 100000; it must be an integer",
    "--output m.onnx --tolerance nan": "--tolerance is nan; it must be a number above 0",
    "--output m.onnx --tolerance -1": "--tolerance is -1.0; it must be a number above 0",
    "--output m.onnx --check-image no.png": "no.png",
    "--output m.onnx --config-file no.yaml": "no.yaml does not exist",
    "--output m.onnx MODEL.NONE 1": "unknown config key MODEL.NONE",
}


@pytest.mark.parametrize("options", MISTAKES)
def test_mistakes_are_one_line_and_status_2(checkpoint, tmp_path, capsys, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").touch()
    before = sorted(tmp_path.iterdir())
    assert export(checkpoint, *options.split()) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: ") and MISTAKES[options] in said[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_a_pipe_is_not_replaced(checkpoint, tmp_path, capsys):
    os.mkfifo(tmp_path / "model.onnx")
    assert export(checkpoint, "--output", tmp_path / "model.onnx", "--overwrite") == 2
    assert "model.onnx exists and is not a regular file" in capsys.readouterr().err
    assert (tmp_path / "model.onnx").is_fifo()


def test_a_missing_checkpoint_is_named(tmp_path, capsys):
    assert export(tmp_path / "no.pth", "--output", tmp_path / "m.onnx") == 2
    assert "no.pth" in capsys.readouterr().err


def test_an_adapter_file_is_sent_to_the_merge(tiny_eomt, tmp_path, capsys):
    save_adapter(tiny_eomt(lora={"rank": 2}), tmp_path / "adapter.pth")
    assert export(tmp_path / "adapter.pth", "--output", tmp_path / "m.onnx") == 2
    assert "holds only adapters; join them with their base first: anoseg convert" in (
        capsys.readouterr().err
    )


def test_help_states_the_opset_and_the_sizes(capsys):
    with pytest.raises(SystemExit) as stopped:
        export("--help")
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "opset 18" in said and "--image-size H W" in said and "AnomalyPredictor" in said


def test_a_file_gives_the_scores_that_its_weights_ask_for(checkpoint, tmp_path, monkeypatch):
    specs = []
    monkeypatch.setattr(
        "anoseg_d2.export.write.export_model", lambda _, __, spec, **___: specs.append(spec) or []
    )
    asking, content = tmp_path / "asking.pth", torch.load(checkpoint, weights_only=True)
    content["meta"]["inference"] = {"TEST.ANOMALY.SCORES": ["entropy"]}
    torch.save(content, asking)
    for weights in (checkpoint, asking):
        assert export(weights, "--output", tmp_path / "m.onnx") == 0
    assert [spec.scores for spec in specs] == [("rba", "anomaly"), ("entropy",)]
