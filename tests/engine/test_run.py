"""One run checks once, in one process or many, for our `Trainer` and for a user's own."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from runs import small_run

from anoseg_d2 import EoMT, Trainer
from anoseg_d2.config import CHECKS, check_config
from anoseg_d2.data.builtin import register_cards
from anoseg_d2.engine import argument_parser, run
from anoseg_d2.utils.files import read_json

ROOT = Path(__file__).parents[2]
OPENED = []  # what Python opens; an audit hook cannot be taken away again
sys.addaudithook(lambda event, found: OPENED.append(str(found[0])) if event == "open" else None)


def command(*words):
    return argument_parser().parse_args([str(word) for word in words])


@pytest.fixture
def counted():
    """Counts how often a whole config is checked."""
    checked = []
    CHECKS.append(checked.append)
    yield checked
    CHECKS.remove(checked.append)


@pytest.mark.slow
def test_a_run_reads_its_yaml_checks_its_config_and_lists_each_dataset_once(tmp_path, counted):
    cfg = small_run(tmp_path, "run", "TEST.EVAL_PERIOD", 3, tested=True)
    register_cards(cfg)
    (name,), cfg.DATASETS.CARDS = cfg.DATASETS.TRAIN, []
    (tmp_path / "base.yaml").write_text(cfg.dump())
    config = tmp_path / "run.yaml"
    config.write_text("_BASE_: base.yaml\nSOLVER:\n  MAX_ITER: 5\n")
    listed, load = [], DatasetCatalog.pop(name)
    DatasetCatalog.register(name, lambda: listed.append(name) or load())
    OPENED.clear()
    counted.clear()
    assert run(Trainer, command("--config-file", config)) == 0
    assert (tmp_path / "run" / "report" / "results.json").is_file()
    assert len(counted) == 1
    assert listed == [name]
    for path in (config, tmp_path / "base.yaml"):
        assert OPENED.count(str(path)) == 1, path
    assert DatasetCatalog.get(name) and listed == [name, name]  # after the run, as always


def test_a_config_is_checked_again_only_after_a_change(tiny_cfg, counted):
    cfg = tiny_cfg()
    counted.clear()
    check_config(cfg)
    check_config(pickle.loads(pickle.dumps(cfg.clone())))
    assert len(counted) == 1
    cfg.MODEL.EOMT.NUM_QUERIES = 4
    check_config(cfg)
    assert len(counted) == 2
    cfg.MODEL.EOMT.NUM_QUERIES = 0
    for build in (check_config, EoMT, Trainer):
        with pytest.raises(ValueError, match="NUM_QUERIES is 0"):
            build(cfg)


MINE = """
    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        class Count(DatasetEvaluator):
            def reset(self):
                self.count = 0

            def process(self, inputs, outputs):
                self.count += len(outputs)

            def evaluate(self):
                Path(cfg.OUTPUT_DIR, f"mine{comm.get_rank()}").write_text(str(self.count))

        return Count()
"""


@pytest.mark.slow  # on two processes: tests/test_docs_python.py
def test_a_copy_of_train_net_in_another_folder_runs_its_own_trainer(tmp_path):
    lines = (ROOT / "train_net.py").read_text().splitlines(keepends=True)
    imports = lines.index("import sys\n")
    lines.insert(imports, "from pathlib import Path\nfrom detectron2.utils import comm\n")
    lines.insert(imports, "from detectron2.evaluation import DatasetEvaluator\n")
    text = "".join(lines).replace(
        "class Trainer(BaseTrainer):\n", f"class Trainer(BaseTrainer):{MINE}"
    )
    (tmp_path / "my_train.py").write_text(text)
    cfg = small_run(tmp_path, "run", "SOLVER.MAX_ITER", 2, tested=True)
    (tmp_path / "run.yaml").write_text(cfg.dump())
    words = [sys.executable, "my_train.py", "--config-file", "run.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "mine0").read_text() == "4"


@pytest.mark.slow
def test_the_trainer_of_a_run_may_be_evaluated_too(tmp_path):
    cfg = small_run(tmp_path, "run", "SOLVER.MAX_ITER", 2, tested=True)
    (tmp_path / "run.yaml").write_text(cfg.dump())

    class Mine(Trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None, **more):
            return super().test(cfg, model, evaluators, **{**more, "facts": {"mine": 1}})

    words = ("--config-file", tmp_path / "run.yaml")
    assert run(Mine, command(*words)) == 0
    weights = ("MODEL.WEIGHTS", tmp_path / "run" / "model_final.pth")
    assert run(Mine, command(*words, "--eval-only", *weights)) == 0
    assert read_json(tmp_path / "run" / "report" / "results.json")["model"]["mine"] == 1
