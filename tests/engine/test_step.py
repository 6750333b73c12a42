"""Steps whose gradient is not finite."""

import pytest
import torch
from runs import small_run

from anoseg_d2.engine import Trainer, check_inputs


@pytest.mark.slow
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


def test_a_float16_overflow_only_skips_the_step(tmp_path):
    amp = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "fp16", "SOLVER.MAX_ITER", 1)
    trainer = started_trainer(tmp_path, *amp)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.model.query.weight.register_hook(lambda grad: grad * float("inf"))
    trainer.train()
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert trainer._trainer.scaler.get_scale() < 2.0**16


def test_in_float16_gradients_taken_at_once_have_the_scale_of_the_loss(tmp_path):
    amp = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "fp16", "SOLVER.MAX_ITER", 6)
    trainer = started_trainer(tmp_path, *amp, "MODEL.EOMT.RECOMPUTE", "heads")
    largest, scales = [], []
    weight = trainer.model.mask_head[0].weight
    weight.register_post_accumulate_grad_hook(lambda w: largest.append(w.grad.abs().max().item()))
    trainer.model.register_forward_pre_hook(
        lambda _, args, options: scales.append(options.get("loss_scale")), with_kwargs=True
    )
    trainer.train()
    # The first scale overflows and is halved until it does not; each step uses the one of its time.
    scale = trainer._trainer.scaler.get_scale()
    assert 1024 < scale == scales[-1] < 2.0**16
    norms = [value for value, _ in trainer.storage.history("grad_norm").values()]
    # One entry of the scaled gradient is far above the norm of all of the gradient without scale.
    assert largest[-1] > 10 * norms[-1]


def test_the_gradient_norm_before_the_clip_is_logged(tmp_path):
    cfg = small_run(tmp_path)
    check_inputs(cfg, training=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    norms = [value for value, _ in trainer.storage.history("grad_norm").values()]
    assert len(norms) == 5 and min(norms) > cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE


def started_trainer(folder, *overrides):
    cfg = small_run(folder, "run", *overrides)
    check_inputs(cfg, training=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer
