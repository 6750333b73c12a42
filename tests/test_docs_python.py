"""Every Python block of the docs runs, and what trains does so by the command shown next to it."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from runs import small_run

from anoseg_d2 import AnomalyPredictor, cli
from anoseg_d2.checkpoint import model_meta
from anoseg_d2.config import KEYS
from anoseg_d2.data.cut_paste import OBJECT_SOURCES
from anoseg_d2.data.loader import build_train_loader
from anoseg_d2.engine import argument_parser, check_inputs, run
from anoseg_d2.modeling.heads import CLASS_HEADS
from anoseg_d2.modeling.patch_heads import PATCH_HEADS
from anoseg_d2.modeling.scores import SCORES
from anoseg_d2.prediction import VideoWriter
from anoseg_d2.utils.files import write_json

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "GETTING_STARTED.md", "MODEL_ZOO.md", "docs/*.md", "datasets/*.md")
TRAINER = "class Trainer(BaseTrainer):"
REGISTRIES = (CLASS_HEADS, OBJECT_SOURCES, PATCH_HEADS, SCORES)
PHOTO = ("street.jpg", "--weights", "model_final.pth")


def blocks_of(path: Path) -> list[str]:
    return re.findall(r"^```python[^\n]*\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


BLOCKS = {
    f"{path.relative_to(ROOT).as_posix()} {number}": block
    for pattern in PAGES
    for path in sorted(ROOT.glob(pattern))
    for number, block in enumerate(blocks_of(path))
}
TRAINERS = {name: block for name, block in BLOCKS.items() if TRAINER in block}
PARTS = {name: block for name, block in BLOCKS.items() if name not in TRAINERS}


def my_train(folder: Path, *blocks: str) -> Path:
    """A copy of train_net.py with the classes of these blocks in the place of its `Trainer`."""
    text = (ROOT / "train_net.py").read_text(encoding="utf-8")
    head, guard = text.index("class Trainer"), text.index('if __name__ == "__main__":')
    own = blocks[0]
    if len(blocks) > 1:
        named = (b.replace(TRAINER, f"class T{i}(BaseTrainer):") for i, b in enumerate(blocks))
        own = (
            "\n".join(named) + f"class Trainer({', '.join(f'T{i}' for i in range(len(blocks)))}):\n"
        )
        own += "    pass\n\n\n"
    path = folder / "my_train.py"
    path.write_text(text[:head] + own + "\n\n" + text[guard:], encoding="utf-8")
    return path


def commands(folder: Path, *overrides) -> list[list[str]]:
    """The commands that docs/extending.md shows for a trainer, on a tiny model and dataset."""
    cfg = small_run(folder, "run", "SOLVER.MAX_ITER", 2, *overrides, tested=True)
    (folder / "tiny.yaml").write_text(cfg.dump())
    lines = re.findall(
        r"^python (my_train\.py .*)$", (ROOT / "docs/extending.md").read_text(), re.M
    )
    lines = [line.replace("eomt_baseline", "tiny.yaml") for line in lines]
    lines = [line.replace("model_final.pth", "run/model_final.pth") for line in lines]
    return [shlex.split(line, comments=True) for line in lines]


def loaded(path: Path):
    spec = importlib.util.spec_from_file_location("my_train", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_blocks_of_both_kinds():
    assert len(TRAINERS) >= 7 and len(PARTS) >= 5
    shown = {
        word for name, block in TRAINERS.items() for word in re.findall(r"def (build_\w+)", block)
    }
    assert shown == {
        *("build_train_loader", "build_evaluator", "build_optimizer", "build_lr_scheduler"),
        *("build_hooks", "build_model"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TRAINERS))
def test_a_trainer_of_the_docs_trains_and_evaluates_on_one_process(
    name, tmp_path, monkeypatch, registries
):
    one, _, evaluation, with_key = commands(tmp_path)
    if "KEYS" in TRAINERS[name]:
        one = with_key
    module = loaded(my_train(tmp_path, TRAINERS[name]))
    monkeypatch.chdir(tmp_path)
    for words in (one, evaluation):
        assert run(module.Trainer, argument_parser().parse_args(words[1:])) == 0
    assert (tmp_path / "run" / "model_final.pth").is_file()


@pytest.mark.slow
def test_the_trainers_of_the_docs_combined_train_on_two_processes(tmp_path):
    chosen = [block for block in TRAINERS.values() if "SemSegEvaluator" not in block]
    my_train(tmp_path, *chosen)
    two = commands(tmp_path)[1]
    assert two[-2:] == ["--num-gpus", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *two]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = (tmp_path / "run" / "metrics.json").read_text()
    for word in ("mean_rba", "query_norm", "loss_entropy"):
        assert word in figures, word


# --- blocks that are not trainers --------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, tiny_eomt, monkeypatch):
    """A folder with the photograph and the checkpoint that the docs name."""
    model = tiny_eomt(has_anomaly=True)
    torch.save(
        {"model": model.state_dict(), "meta": model_meta(model)}, tmp_path / "model_final.pth"
    )
    photo = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "street.jpg"), photo)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def registries(monkeypatch):
    """What a block registers, and the module it is in, are forgotten after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    before = [(registry, set(registry)) for registry in REGISTRIES]
    keys = set(KEYS)
    yield
    for registry, names in before:
        for name in set(registry) - names:
            registry.remove(name)
    for name in set(KEYS) - keys:
        del KEYS[name]
    for name in ("my_score", "my_head", "my_patch_head"):
        sys.modules.pop(name, None)


def executed(name: str) -> dict:
    scope: dict = {}
    exec(compile(PARTS[name], name, "exec"), scope)
    return scope


@pytest.mark.parametrize("name", [name for name, block in PARTS.items() if "import cv2" in block])
def test_a_predictor_of_the_docs_predicts(name, folder):
    result = executed(name)["result"]
    assert result["scores"]["rba"].shape == result["sem_seg"].shape == (40, 56)


def test_the_events_of_the_docs_are_plain_records(folder):
    (name,) = (name for name, block in PARTS.items() if "EventLinker" in block)
    with VideoWriter("drive.mp4", 10) as writer:
        for _ in range(2):
            writer.write(cv2.imread("street.jpg"))
    assert isinstance(executed(name)["records"], list)


def test_the_object_source_of_the_docs_is_chosen_by_its_key(tmp_path, registries):
    (name,) = (name for name, block in PARTS.items() if "OBJECT_SOURCES" in block)
    executed(name)
    node = "INPUT.CUT_PASTE"
    pasted = (f"{node}.ENABLED", True, f"{node}.SOURCE", "squares", f"{node}.RATIO", 1.0)
    cfg = small_run(tmp_path, "run", *pasted, "MODEL.EOMT.ANOMALY_CLASS", True)
    check_inputs(cfg, training=True)
    (sample, *_) = next(iter(build_train_loader(cfg)))
    assert (sample["sem_seg"] == 3).any()
    cfg.INPUT.CUT_PASTE.SOURCE = "circles"
    with pytest.raises(ValueError, match=r"object source 'circles'.*squares"):
        build_train_loader(cfg)


def test_the_catalog_entry_of_the_docs_is_one_of_detectron2():
    (name,) = (name for name, block in PARTS.items() if "my_streets" in block)
    scope = executed(name)
    for catalog in (scope["DatasetCatalog"], scope["MetadataCatalog"]):
        assert "my_streets" in catalog.list()
        catalog.remove("my_streets")


@pytest.mark.parametrize("name", [name for name, block in PARTS.items() if "second_best" in block])
def test_a_score_of_the_docs_evaluates(name, folder, registries):
    (folder / "my_score.py").write_text(PARTS[name])
    (score,) = re.findall(r'register_score\("(\w+)"', PARTS[name])
    assert cli.main(["predict", *PHOTO, "--score", score, "--import", "my_score"]) == 0
    assert len(list((folder / "output").rglob("overlay/*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "page,module,score,overrides,restored",
    [
        (
            *("docs/heads.md", "my_head", "rba"),
            ("MODEL.HEAD.NAME", "cosine_proxy", "MODEL.HEAD.COSINE.SCALE", "10"),
            lambda model: model.class_head.options.scale == 10,
        ),
        (
            *("docs/extending.md", "my_patch_head", "probe"),
            ("MODEL.PROBE.ENABLED", "True", "MODEL.PROBE.WEIGHT", "2"),
            lambda model: model.patch_maps["probe"].options.weight == 2,
        ),
    ],
    ids=["class head", "patch head"],
)
def test_a_head_of_the_docs_trains_resumes_and_keeps_its_options(
    page, module, score, overrides, restored, folder, registries
):
    (block,) = [b for n, b in PARTS.items() if n.startswith(page) and "_HEADS.register" in b]
    (folder / f"{module}.py").write_text(block)
    cfg = small_run(folder, "run", "SOLVER.MAX_ITER", 2, tested=True)
    (folder / "tiny.yaml").write_text(cfg.dump())
    train = ["train", "--config-file", "tiny.yaml", "--import", module]
    assert cli.main([*train, *overrides]) == 0
    assert cli.main([*train, "--resume", *overrides, "SOLVER.MAX_ITER", "3"]) == 0
    assert restored(AnomalyPredictor.from_pretrained("run/model_final.pth").model)
    weights = ["--weights", "run/model_final.pth", "--import", module]
    assert cli.main(["predict", "street.jpg", *weights, "--score", score]) == 0


@pytest.mark.slow
def test_the_consumer_of_the_docs_reads_an_exported_file(folder, capsys):
    (name,) = [name for name, block in PARTS.items() if "onnxruntime" in block]
    (opening,) = [name for name, block in PARTS.items() if "from_exported" in block]
    others = [name for name, block in PARTS.items() if "openvino" in block]
    evaluated = {"a": {"scores": {"rba": {"tpr_thresholds": {"95": -0.5}}}}}
    write_json(folder / "report" / "results.json", {"datasets": evaluated})
    export = ["export", "model_final.pth", "--output", "model.onnx"]
    assert cli.main([*export, "--scores", "rba"]) == 0
    np.save("image.npy", cv2.imread("street.jpg")[..., ::-1])
    executed(name)
    found = np.load("rba.npz")
    assert found["score"].shape == found["anomaly"].shape == (40, 56)
    scores = executed(opening)["predictor"]("street.jpg")["scores"]
    np.testing.assert_allclose(scores["rba"], found["score"], atol=1e-4)
    pytest.importorskip("openvino", reason="openvino is not installed")
    for name in others:
        np.testing.assert_allclose(executed(name)["score"], found["score"], atol=1e-4)


def test_the_set_of_the_docs_is_in_the_catalog():
    (name,) = [name for name, block in PARTS.items() if "DatasetCatalog.register" in block]
    executed(name)
    try:
        assert DatasetCatalog.get("my_streets")[0]["sem_seg_file_name"] == "a.png"
        assert MetadataCatalog.get("my_streets").stuff_classes == ["road", "car", "sky"]
    finally:
        DatasetCatalog.remove("my_streets")
        MetadataCatalog.remove("my_streets")


def test_no_block_is_left_out():
    covered = ("import cv2", "@register_score", "_HEADS.register", "onnxruntime")
    covered += ("from_exported", "openvino")
    covered += ("EventLinker", "OBJECT_SOURCES.register", "DatasetCatalog.register")
    assert [n for n, block in PARTS.items() if not any(word in block for word in covered)] == []
