"""`--eval-only`: its figures belong to the weights that results.json names."""

import hashlib
import platform
import shlex
import subprocess
import sys

import detectron2
import numpy as np
import pytest
import small_sets
import torch
from runs import small_run
from tiny_models import set_info

import anoseg_d2
from anoseg_d2.checkpoint import AnosegCheckpointer, save_weights, weights_hash
from anoseg_d2.commands import train
from anoseg_d2.data.builtin import register_cards
from anoseg_d2.engine import load_evaluated
from anoseg_d2.engine.evaluate import describe_model, git_state, measure_ensembles
from anoseg_d2.modeling import EoMT
from anoseg_d2.prediction.predictor import AnomalyPredictor
from anoseg_d2.utils.files import read_json

NAME = "evaluated_anomaly"
ARGV = ["train_net.py", "--eval-only", "DATASETS.TEST", f"('{NAME}',)"]


def config_of(folder, *overrides):
    return small_run(folder, "run", "SEED", 7, *overrides, tested=True)


def model_of(cfg, seed):
    torch.manual_seed(seed)
    return EoMT(cfg)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder in which the command has evaluated start.pth on a closed and an anomaly set."""
    folder = tmp_path_factory.mktemp("evaluated")
    small_sets.anomaly_set(folder, NAME, count=2, shape=(32, 48))
    cfg = config_of(folder, "MODEL.WEIGHTS", str(folder / "start.pth"))
    cfg.DATASETS.TEST = (*cfg.DATASETS.TEST, NAME)
    (folder / "run.yaml").write_text(cfg.dump())
    AnosegCheckpointer(model_of(cfg, 1), str(folder)).save("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ARGV)
        assert evaluate(folder) == 0
    return folder


def evaluate(folder, *more):
    command = ["--config-file", str(folder / "run.yaml"), "--eval-only", *map(str, more)]
    return train.main(command)


def results(folder, output="run"):
    return read_json(folder / output / "report" / "results.json")


def figures(folder, output="run"):
    found = results(folder, output)
    return {key: found[key] for key in ("datasets", "closed_set")}


@pytest.mark.slow
def test_the_results_say_what_was_evaluated_by_what_and_how(work):
    found = results(work)
    assert set(found["datasets"]) == {NAME} and len(found["closed_set"]) == 1
    assert found["datasets"][NAME]["scores"]["msp"]["auprc"] > 0
    about, path = found["model"], work / "start.pth"
    assert about["weights"] == about["weights_file"] == str(path)
    assert about["weights_file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert about["weights_sha256"] == weights_hash(model_of(config_of(work), 1).state_dict())
    assert about["averaged"] is False and about["seed"] == 7
    assert shlex.split(about["command"]) == ARGV
    assert about["versions"] == {
        "anoseg_d2": anoseg_d2.__version__,
        "detectron2": detectron2.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    assert "git" in about and "untrained_tensors" not in about


@pytest.mark.slow
def test_with_resume_the_last_checkpoint_is_evaluated_and_not_model_weights(work):
    trained, output = model_of(config_of(work), 2), work / "trained"
    AnosegCheckpointer(trained, str(output)).save("model_0000004")  # and tags it as the last
    assert evaluate(work, "--resume", "OUTPUT_DIR", output) == 0
    about = results(work, "trained")["model"]
    assert about["weights_file"] == str(output / "model_0000004.pth")
    assert about["weights_sha256"] == weights_hash(trained.state_dict())
    named = ("MODEL.WEIGHTS", output / "model_0000004.pth", "OUTPUT_DIR", work / "named")
    assert evaluate(work, *named) == 0
    assert figures(work, "trained") == figures(work, "named") != figures(work)


def test_averaged_weights_are_called_so_whatever_their_file_is_called(work):
    name = "renamed.safetensors"
    cfg = config_of(work, "MODEL.WEIGHTS", str(work / name))
    model, fresh = model_of(cfg, 3), model_of(cfg, 4)
    assert not describe_model(cfg, fresh)["averaged"]
    set_info(model, averaged=True)
    save_weights(model, work / name)
    facts = load_evaluated(cfg, fresh)
    assert describe_model(cfg, fresh)["averaged"]
    assert facts["trainable_parameters"] is None  # an evaluation trains nothing


def test_untrained_weights_end_in_one_line_and_leave_no_figure(work, capsys):
    torch.save(model_of(config_of(work), 1).backbone.state_dict(), work / "vit.pth")
    bare = ("MODEL.WEIGHTS", work / "vit.pth", "OUTPUT_DIR", work / "bare")
    assert evaluate(work, *bare) == 2
    assert "MODEL.ALLOW_UNTRAINED True" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list((work / "bare").rglob("result*.json"))
    cfg = config_of(work, *map(str, bare[:2]), "MODEL.ALLOW_UNTRAINED", True)
    model = model_of(cfg, 1)
    facts = load_evaluated(cfg, model)
    assert facts["weights"] == str(work / "vit.pth")
    assert "query.weight" in facts["untrained_tensors"]
    assert "backbone.cls_token" not in facts["untrained_tensors"]


@pytest.mark.slow
def test_an_evaluation_takes_crop_and_registers_from_the_checkpoint(work):
    cfg = config_of(work, "INPUT.CROP_SIZE", (32, 64), "MODEL.EOMT.NUM_REGISTERS", 0)
    AnosegCheckpointer(model_of(cfg, 5), str(work)).save("other")
    forgotten = ("MODEL.WEIGHTS", work / "other.pth", "OUTPUT_DIR", work / "forgotten")
    assert evaluate(work, *forgotten) == 0
    said = ("INPUT.CROP_SIZE", (32, 64), "MODEL.EOMT.NUM_REGISTERS", 0)
    assert evaluate(work, *forgotten[:2], "OUTPUT_DIR", work / "said", *said) == 0
    assert figures(work, "forgotten") == figures(work, "said")
    own = (*said[2:], "INPUT.CROP_SIZE", "(32, 32)", "OUTPUT_DIR", work / "own")
    assert evaluate(work, *forgotten[:2], *own) == 0
    assert figures(work, "own") != figures(work, "said")


def test_git_state_is_that_of_the_package_and_of_no_repository_around_it(tmp_path):
    def git(*arguments):
        who = ("-c", "user.name=me", "-c", "user.email=me@example.org")
        command = ["git", *who, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (tmp_path / "readme").write_text("")
    assert git_state(package) is None
    git("init", "-q")
    git("add", "readme")
    git("commit", "-q", "-m", "Begin")
    assert git_state(package) is None  # installed inside somebody's repository
    git("add", "package")
    git("commit", "-q", "-m", "Add the package")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert git_state(package) == commit
    (package / "__init__.py").write_text("changed = True\n")
    assert git_state(package) == f"{commit}-dirty"


# ---- statistics of ensembles ------------------------------------------------------------------


def test_statistics_are_those_of_unfiltered_maps_and_leave_the_filters_on(tmp_path):
    scores = ("TEST.ANOMALY.SCORES", ["rba+msp"])
    filters = ("TEST.ANOMALY.GUIDED_FILTER", 0.5)
    found = []
    for more in ((), filters):
        cfg = small_run(tmp_path, "run", *scores, *more, tested=True)
        register_cards(cfg)
        model = model_of(cfg, 1).eval()
        options = model.inference
        measure_ensembles(cfg, model)
        assert model.inference == options
        found.append(model.info)
    assert found[0] == found[1] and set(found[0].score_statistics) == {"rba", "msp"}


def test_statistics_of_other_settings_or_tensors_are_left_out(tmp_path, caplog):
    scores = ("TEST.ANOMALY.SCORES", ["rba+msp"], "MODEL.WEIGHTS", str(tmp_path / "w.pth"))
    cfg = small_run(tmp_path, "run", *scores, tested=True)
    register_cards(cfg)
    model = model_of(cfg, 1).eval()
    measure_ensembles(cfg, model)
    save_weights(model, tmp_path / "w.pth")
    predictor = AnomalyPredictor.from_pretrained(cfg.MODEL.WEIGHTS, scores[:2])
    assert predictor.model.info.score_statistics == model.info.score_statistics
    assert "do not hold" not in caplog.text
    for key, value, word in (
        ("TEST.FLIP", True, "TEST.FLIP was False, is True"),
        ("MODEL.HEAD.NAME", "arcface", "tensors are others"),
    ):
        caplog.clear()
        more = ("MODEL.ALLOW_UNTRAINED", True, key, value)
        predictor = AnomalyPredictor(small_run(tmp_path, "run", *scores, *more))
        assert not predictor.model.info.score_statistics and word in caplog.text
    set_info(model, statistics_settings=None)  # a file of an older version
    save_weights(model, tmp_path / "w.pth")
    predictor = AnomalyPredictor(small_run(tmp_path, "run", *scores, "TEST.FLIP", True))
    assert predictor.model.info.score_statistics and "does not say at which" in caplog.text
