"""Which detectron2 keys are read: found out by recording, so that the others can be refused."""

import pytest
from detectron2.config import CfgNode, get_cfg
from runs import small_run

from anoseg_d2.checkpoint import AnosegCheckpointer
from anoseg_d2.config import FIXED, KEYS
from anoseg_d2.engine import Trainer, check_inputs, set_up_run
from anoseg_d2.modeling import EoMT
from anoseg_d2.utils.config_files import flat_items

# Read by detectron2 itself when a config is merged.
ELSEWHERE = {"VERSION"}


class Recording(CfgNode):
    """A config that notes which of its values are read as attributes.

    The checks of ranges, and what shows or saves a config, read its items and leave no note.
    """

    read: set[str] = set()

    def __init__(self, init_dict=None, key_list=None, new_allowed=False):
        super().__init__(init_dict, key_list, new_allowed)
        self.__dict__["prefix"] = "".join(f"{key}." for key in key_list or ())

    def __getattr__(self, name):
        value = super().__getattr__(name)
        if not isinstance(value, dict):
            self.read.add(self.__dict__["prefix"] + name)
        return value


@pytest.mark.slow
def test_what_is_not_refused_is_exactly_what_a_run_reads(tmp_path, fresh_loggers):
    cfg = small_run(tmp_path, "run", "TEST.EVAL_PERIOD", 2, tested=True)
    AnosegCheckpointer(EoMT(cfg), str(tmp_path)).save("start")
    cfg.MODEL.WEIGHTS = str(tmp_path / "start.pth")
    cfg = Recording(cfg)
    check_inputs(cfg, training=True)
    set_up_run(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()

    theirs = {key for key, _ in flat_items(get_cfg())}
    allowed = {key for key in theirs if key in KEYS and KEYS[key].rule is not FIXED} - ELSEWHERE
    assert Recording.read & theirs == allowed
