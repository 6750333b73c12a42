"""Steps whose gradient is not finite."""

import pytest
import torch
from runs import small_run

from anoseg_d2.engine import Trainer, check_inputs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_touches_neither_weights_nor_checkpoint(
    tmp_path, precision, broken
):
    amp = ("SOLVER.AMP.ENABLED", precision == "bf16", "SOLVER.AMP.PRECISION", "bf16")
    cfg = small_run(tmp_path, "run", "SOLVER.CHECKPOINT_PERIOD", 1, *amp)
    check_inputs(cfg, training=True)

    class Broken(Trainer):
        def run_step(self):
            if self.iter == 3:
                scale = float("nan") if broken == "loss" else 1.0
                forward = type(self.model).forward
                self.model.forward = lambda *args: {
                    k: v * scale for k, v in forward(self.model, *args).items()
                }
                if broken == "gradient":
                    self.model.query.weight.register_hook(lambda grad: grad * float("inf"))
                self.before = {k: v.clone() for k, v in self.model.state_dict().items()}
            super().run_step()

    trainer = Broken(cfg)
    trainer.resume_or_load(resume=False)
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "\n" not in message and message.startswith("step 3: the loss is ")
    assert message.count(".png") == 2 and "model_0000002.pth" in message
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, trainer.before[name]), name
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000002.pth"
    assert not (tmp_path / "run" / "model_final.pth").exists()


def test_the_gradient_norm_before_the_clip_is_logged(tmp_path):
    cfg = small_run(tmp_path)
    check_inputs(cfg, training=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    norms = [value for value, _ in trainer.storage.history("grad_norm").values()]
    assert len(norms) == 5 and min(norms) > cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE


def test_out_of_memory_names_the_keys_that_need_less(tmp_path, monkeypatch):
    cfg = small_run(tmp_path)
    check_inputs(cfg, training=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)

    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr(trainer.model, "forward", fail)
    with pytest.raises(MemoryError, match="SOLVER.ACCUMULATION 2 halves.*RECOMPUTE.*CROP_SIZE"):
        trainer.train()


def test_the_memory_of_a_run_is_said_after_its_first_step(tmp_path, caplog):
    caplog.set_level("INFO")
    cfg = small_run(tmp_path)
    check_inputs(cfg, training=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert "This run needs about" in caplog.text and "activations" in caplog.text
    # More saved than the inputs, less than everything the process holds.
    images = 2 * 3 * 32 * 32 * 4
    assert images < trainer._trainer.activation_bytes < 100 * 2**20
