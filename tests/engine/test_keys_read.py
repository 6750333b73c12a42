"""Which detectron2 keys are read: found out by recording, so that the others can be refused."""

import pytest
import yacs.config
from detectron2.config import get_cfg
from runs import small_run

from anoseg_d2.checkpoint import AnosegCheckpointer
from anoseg_d2.config import FIXED, KEYS
from anoseg_d2.engine import Trainer, check_inputs, set_up_run
from anoseg_d2.modeling import EoMT
from anoseg_d2.utils.config_files import flat_items

# Read by detectron2 itself when a config is merged.
ELSEWHERE = {"VERSION"}


def name_nodes(cfg, prefix=""):
    """Note on every node of a config what it is called."""
    cfg.__dict__["_called"] = prefix
    for key, value in cfg.items():
        if isinstance(value, dict):
            name_nodes(value, f"{prefix}{key}.")


@pytest.mark.slow
def test_what_is_not_refused_is_exactly_what_a_run_reads(tmp_path, monkeypatch, fresh_loggers):
    read = set()
    plain = yacs.config.CfgNode.__getattr__

    def recorded(node, name):
        value = plain(node, name)
        if "_called" in node.__dict__ and not isinstance(value, dict):
            read.add(node.__dict__["_called"] + name)
        return value

    weights = tmp_path / "start.pth"
    cfg = small_run(tmp_path, "run", "TEST.EVAL_PERIOD", 2, "VIS_PERIOD", 2, tested=True)
    AnosegCheckpointer(EoMT(cfg), str(tmp_path)).save("start")
    cfg.MODEL.WEIGHTS = str(weights)
    monkeypatch.setattr(yacs.config.CfgNode, "__getattr__", recorded)
    name_nodes(cfg)
    check_inputs(cfg, training=True)
    read.clear()  # the check of ranges has looked at every key
    monkeypatch.setattr("anoseg_d2.engine.trainer.check_config", lambda cfg: None)
    monkeypatch.setattr("anoseg_d2.engine.run_log.changed_keys", lambda cfg: {})
    monkeypatch.setattr(type(cfg), "dump", lambda cfg: "")
    set_up_run(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()

    theirs = {key for key, _ in flat_items(get_cfg())}
    allowed = {key for key in theirs if key in KEYS and KEYS[key].rule is not FIXED} - ELSEWHERE
    assert read & theirs == allowed
