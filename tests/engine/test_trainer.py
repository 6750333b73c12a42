"""Optimiser steps, whole runs, and what survives a resume."""

import os
import signal

import pytest
import tiny_models
import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from PIL import Image
from runs import small_run
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anoseg_d2.checkpoint import AnosegCheckpointer
from anoseg_d2.checkpoint.from_config import resolve_weights
from anoseg_d2.checkpoint.metadata import model_tensors
from anoseg_d2.config import check_config
from anoseg_d2.data.builtin import register_cards
from anoseg_d2.data.loader import training_dicts
from anoseg_d2.engine import Trainer, check_inputs
from anoseg_d2.engine.solver import build_optimizer, build_scheduler
from anoseg_d2.engine.step import StepTrainer
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.patch_heads import PATCH_PREFIX
from anoseg_d2.prediction.predictor import AnomalyPredictor

LORA = ("MODEL.LORA.ENABLED", True, "MODEL.LORA.RANK", 2)


def run_steps(cfg, batches, *, model=None, loss_scale=64.0, **options):
    """Train through StepTrainer, one list of micro-batches per step; the trainer at the end."""
    torch.manual_seed(0)
    model = EoMT(cfg) if model is None else model
    core = model.module if isinstance(model, DistributedDataParallel) else model
    optimizer = build_optimizer(cfg, core)
    scheduler = build_scheduler(cfg, optimizer)
    options.setdefault("clip_norm", cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE)
    options.setdefault("accumulation", len(batches[0]) if batches else 1)
    trainer = StepTrainer(model, [], optimizer, **options)
    if trainer.scaler.is_enabled():  # its default of 65536 skips the first steps to find its way
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=loss_scale)
    trainer.data_loader = [micro for step in batches for micro in step]
    with EventStorage():
        for step in range(len(batches)):
            trainer.iter = step
            core.set_progress(step / max(len(batches) - 1, 1))
            trainer.run_step()
            scheduler.step()
    return trainer


def state(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_states(found, expected, tolerance=1e-5):
    """Equal to a tolerance, save for key biases: softmax cancels them, so that their gradient is
    rounding noise, which Adam blows up to its full step."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        ours = found[name]
        if name.endswith("qkv.bias"):
            (ours, _, last), (value, _, other) = ours.chunk(3), value.chunk(3)
            torch.testing.assert_close(last, other, rtol=0, atol=tolerance, msg=name)
        torch.testing.assert_close(ours, value, rtol=0, atol=tolerance, msg=name)


def training_config(*overrides):
    """Deterministic: no attention masks; a learning rate that shows."""
    return tiny_models.tiny_cfg(
        *("MODEL.EOMT.MASKED_ATTENTION", False, "SOLVER.BASE_LR", 1e-3, "SOLVER.MAX_ITER", 5),
        *overrides,
    )


def samples_of_steps(steps=5, count=4):
    """Images with differing numbers of classes; one of each four has no label at all."""
    batches = [tiny_models.tiny_batch(count, seed=step) for step in range(steps)]
    for batch in batches:
        batch[1]["sem_seg"][:] = 255
        batch[2]["sem_seg"][batch[2]["sem_seg"] == 1] = 0
    return batches


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "logit_norm", "arcface"])
def test_four_accumulated_images_are_one_batch_of_four(head):
    cfg = training_config("MODEL.HEAD.NAME", head)
    batches = samples_of_steps(3)
    whole = run_steps(cfg, [[batch] for batch in batches])
    parts = run_steps(cfg, [[[sample] for sample in batch] for batch in batches])
    assert parts.accumulation == 4 and whole.accumulation == 1
    initial = state(run_steps(cfg, []).model)
    found, expected = state(parts.model), state(whole.model)
    assert (expected["query.weight"] - initial["query.weight"]).abs().max() > 1e-4
    assert_same_states(found, expected)


def _train_on_rank(rank, folder):
    """Half of every batch on one of two gloo processes; rank 0 writes the weights."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    for name in ("linear", "lora"):
        cfg = training_config(*(LORA if name == "lora" else ()), "MODEL.LORA.DROPOUT", 0.0)
        torch.manual_seed(0)
        model = DistributedDataParallel(EoMT(cfg), broadcast_buffers=False)
        halves = [[batch[2 * rank : 2 * rank + 2]] for batch in samples_of_steps()]
        trainer = run_steps(cfg, halves, model=model)
        if rank == 0:
            torch.save(trainer.model.module.state_dict(), f"{folder}/{name}.pth")
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_processes_with_half_the_batch_each_are_one_with_all_of_it(tmp_path):
    torch.multiprocessing.spawn(_train_on_rank, (str(tmp_path),), nprocs=2)
    for name in ("linear", "lora"):
        cfg = training_config(*(LORA if name == "lora" else ()), "MODEL.LORA.DROPOUT", 0.0)
        torch.manual_seed(0)
        model = EoMT(cfg)
        initial = state(model)
        run_steps(cfg, [[batch] for batch in samples_of_steps()], model=model)
        found = torch.load(tmp_path / f"{name}.pth", weights_only=True)
        assert_same_states(found, state(model))
        assert (found["query.weight"] - initial["query.weight"]).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_global_norm_is_clipped_once_after_unscaling(dtype, micro_batches):
    batch = tiny_models.tiny_batch(2)
    micro = [batch] if micro_batches == 1 else [batch[:1], batch[1:]]
    trainer = run_steps(training_config(), [micro], clip_norm=0.01, dtype=dtype)
    norms = torch.stack([p.grad.norm() for p in trainer.model.parameters()])
    assert norms.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert trainer.scaler.is_enabled() == (dtype == torch.float16)


def test_clipping_keeps_the_direction_and_can_be_off():
    batch = [[tiny_models.tiny_batch(2)]]
    clipped = run_steps(training_config(), batch, clip_norm=0.01).model
    free = run_steps(training_config(), batch, clip_norm=0.0).model
    ours = torch.cat([p.grad.flatten() for p in clipped.parameters()])
    theirs = torch.cat([p.grad.flatten() for p in free.parameters()])
    assert theirs.norm() > 0.1
    torch.testing.assert_close(ours / ours.norm(), theirs / theirs.norm(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_trains_near_to_float32(dtype):
    batches = [[batch] for batch in samples_of_steps()]
    initial = state(run_steps(training_config(), []).model)
    exact = state(run_steps(training_config(), batches).model)
    mixed = state(run_steps(training_config(), batches, dtype=dtype).model)
    for name in ("query.weight", "backbone.blocks.2.mlp.fc1.weight", "mask_head.4.weight"):
        step, other = exact[name] - initial[name], mixed[name] - initial[name]
        assert torch.cosine_similarity(step.flatten(), other.flatten(), dim=0) > 0.7, name
    assert {value.dtype for value in mixed.values()} == {torch.float32}


def test_overflow_in_fp16_skips_the_step_and_halves_the_scale():
    cfg, batch = training_config(), [[tiny_models.tiny_batch(2)]]
    before = state(run_steps(cfg, []).model)
    trainer = run_steps(cfg, batch, dtype=torch.float16, loss_scale=2.0**40)
    assert trainer.scaler.get_scale() == 2.0**39
    assert_same_states(state(trainer.model), before, tolerance=0)


def test_average_follows_its_recursion():
    cfg = training_config()
    torch.manual_seed(0)
    model = EoMT(cfg)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.6))
    history = []

    class Recorder(AveragedModel):
        def update_parameters(self, source):
            super().update_parameters(source)
            history.append(source.query.weight.detach().clone())

    ema.__class__ = Recorder
    run_steps(cfg, [[batch] for batch in samples_of_steps(4)], model=model, ema=ema)
    expected = history[0]
    for weights in history[1:]:
        expected = 0.6 * expected + 0.4 * weights
    assert len(history) == 4
    torch.testing.assert_close(ema.module.query.weight, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(ema.module.query.weight, model.query.weight)


SETTINGS = {
    "plain": ((), {}),
    "warm-ups": (("SOLVER.WARMUP_NEW", 0.2, "SOLVER.WARMUP_VIT", 0.2), {}),
    "no clip": ((), {"clip_norm": 0.0}),
    "accumulated": ((), {"accumulation": 2}),
    "bf16": ((), {"dtype": torch.bfloat16}),
    "fp16": ((), {"dtype": torch.float16}),
    "checkpointed": (("MODEL.EOMT.RECOMPUTE", "all"), {}),
    "masked attention": (("MODEL.EOMT.MASKED_ATTENTION", True), {}),
    "arcface, learned scale": (
        ("MODEL.HEAD.NAME", "arcface", "MODEL.HEAD.ARCFACE.LEARN_SCALE", True),
        {},
    ),
    "cosine form": (("MODEL.HEAD.NAME", "logit_norm", "MODEL.HEAD.LOGIT_NORM.FORM", "cosine"), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_after_twenty_steps_all_adapters_have_moved_and_all_frozen_is_bit_equal(setting):
    overrides, options = SETTINGS[setting]
    cfg = training_config(*LORA, *overrides, "SOLVER.MAX_ITER", 20)
    torch.manual_seed(0)
    model = EoMT(cfg)
    before = state(model)
    parts = options.get("accumulation", 1)
    steps = [[tiny_models.tiny_batch(1, seed=10 * s + m) for m in range(parts)] for s in range(20)]
    run_steps(cfg, steps, model=model, **options)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum("lora_" in name for name in trained) == 3 * 4 * 2
    for name, value in model.state_dict().items():
        assert value.isfinite().all(), name
        assert torch.equal(value, before[name]) == (name not in trained), name


def scenes():
    """Two 64 x 64 scenes of three classes, each of its own colour under noise, and their labels."""
    colors = torch.tensor([[90, 90, 90], [200, 40, 40], [60, 160, 60]])
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    labels[0, :32], labels[0, 32:56, 8:32] = 2, 1
    labels[1, :, 40:], labels[1, 8:32, 4:36] = 2, 1
    noise = torch.randint(-30, 30, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    images = (colors[labels] + noise).clamp(0, 255).to(torch.uint8).permute(0, 3, 1, 2)
    return [{"image": i, "sem_seg": s} for i, s in zip(images, labels, strict=True)]


def mean_iou(model, samples):
    """Percent, over the three classes."""
    found = torch.stack([result["sem_seg"] for result in model.eval()(samples)])
    labels = torch.stack([sample["sem_seg"] for sample in samples])
    shares = [
        ((found == c) & (labels == c)).sum() / ((found == c) | (labels == c)).sum()
        for c in range(3)
    ]
    return 100 * torch.stack(shares).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("head", ["linear", "logit_norm", "arcface"])
def test_two_images_are_memorised(head, lora):
    samples, steps = scenes(), 60
    cfg = tiny_models.tiny_cfg(
        *("MODEL.HEAD.NAME", head, "MODEL.LORA.ENABLED", lora, "MODEL.LORA.LR_FACTOR", 1.0),
        *("INPUT.CROP_SIZE", (64, 64), "MODEL.EOMT.WIDTH", 64),
        *("SOLVER.MAX_ITER", steps, "SOLVER.BASE_LR", 2e-3),
    )
    torch.manual_seed(0)
    model = EoMT(cfg)
    assert mean_iou(model, samples) < 50
    run_steps(cfg, [[samples]] * steps, model=model, clip_norm=1.0)
    assert mean_iou(model, samples) > 95


@pytest.mark.parametrize(
    "size,registers,expected",
    [
        ("S", 4, "timm://vit_small_patch14_reg4_dinov2.lvd142m"),
        ("L", 0, "timm://vit_large_patch14_dinov2.lvd142m"),
    ],
)
def test_dinov2_weights_follow_size_and_registers(tiny_cfg, size, registers, expected):
    cfg = tiny_cfg("MODEL.EOMT.SIZE", size, "MODEL.EOMT.NUM_REGISTERS", registers)
    cfg.merge_from_list(["MODEL.WEIGHTS", "dinov2"])
    assert resolve_weights(cfg) == expected
    cfg.merge_from_list(["MODEL.WEIGHTS", "some/model.pth"])
    assert resolve_weights(cfg) == "some/model.pth"


# ---- whole runs on a dataset of four images ------------------------------------------------

CARD = """
name: {name}
root: "{root}"
images: "images/{{id}}.png"
labels: "labels/{{id}}.png"
classes: [road, car, sky]
label_values: {{0: road, 1: car, 2: sky}}
void: [255]
"""


@pytest.fixture
def run_cfg(tmp_path):
    """Factory of configs of a run on four small images, five steps long."""
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for index, sample in enumerate(tiny_models.tiny_batch(4)):
        image = sample["image"].permute(1, 2, 0).numpy()
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"{index}.png")
        label = sample["sem_seg"].to(torch.uint8).numpy()
        Image.fromarray(label).save(tmp_path / "data" / "labels" / f"{index}.png")
    name = f"engine_{os.path.basename(tmp_path)}"
    card = tmp_path / "card.yaml"
    card.write_text(CARD.format(name=name, root=tmp_path / "data"))

    def build(output, *overrides):
        cfg = training_config("OUTPUT_DIR", str(tmp_path / output), "DATASETS.CARDS", [str(card)])
        cfg.merge_from_list(["DATASETS.TRAIN", (name,), "DATASETS.TEST", (), "MODEL.WEIGHTS", ""])
        cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0])
        cfg.merge_from_list(["SOLVER.CHECKPOINT_PERIOD", 1000, *overrides])
        cfg.freeze()
        check_inputs(cfg, training=True)
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        return cfg

    return build


def trained(cfg, resume=False, hook=None):
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    if hook is not None:
        trainer.register_hooks([hook])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


class PressCtrlC(HookBase):
    """Send SIGINT in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def before_step(self):
        if self.trainer.iter == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("SOLVER.ACCUMULATION", 2, "SOLVER.EMA.ENABLED", True, *LORA, "MODEL.LORA.DROPOUT", 0.0),
    ],
    ids=["plain", "accumulated, averaged, adapted"],
)
def test_a_run_stopped_by_ctrl_c_and_resumed_ends_as_one_that_ran_through(run_cfg, overrides):
    through = trained(run_cfg("through", *overrides))
    cfg = run_cfg("stopped", *overrides)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trained(cfg, hook=PressCtrlC(2))
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = trained(cfg, resume=True)
    assert resumed.start_iter == 3
    for name, value in state(through.model).items():
        torch.testing.assert_close(state(resumed.model)[name], value, rtol=0, atol=0, msg=name)
    if through.ema is not None:
        for name, value in state(through.ema).items():
            torch.testing.assert_close(state(resumed.ema)[name], value, rtol=0, atol=0, msg=name)
    rates = [[g["lr"] for g in t.optimizer.param_groups] for t in (through, resumed)]
    assert rates[0] == rates[1]


def test_average_starts_from_the_loaded_weights_not_from_chance(run_cfg, tmp_path):
    torch.manual_seed(5)
    source = Trainer(run_cfg("source"))
    source.checkpointer.save("model_start")
    path = tmp_path / "source" / "model_start.pth"
    trainer = Trainer(run_cfg("averaged", "SOLVER.EMA.ENABLED", True, "MODEL.WEIGHTS", str(path)))
    trainer.resume_or_load(resume=False)
    assert torch.equal(trainer.ema.module.query.weight, source.model.query.weight)
    assert torch.equal(trainer.model.query.weight, source.model.query.weight)


def test_a_batch_that_accumulation_does_not_divide_is_refused(run_cfg):
    with pytest.raises(ValueError, match="IMS_PER_BATCH 2.*divisible.*ACCUMULATION 3"):
        Trainer(run_cfg("uneven", "SOLVER.ACCUMULATION", 3))


def test_the_progress_of_a_run_reaches_model_and_head(run_cfg):
    seen = []

    class Watch(HookBase):
        def after_step(self):
            model = self.trainer.model
            seen.append((model.progress, model.class_head.progress))

    trained(run_cfg("progress", "MODEL.HEAD.NAME", "arcface"), hook=Watch())
    assert [first for first, _ in seen] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert all(first == second for first, second in seen)


def test_a_run_knows_its_memory_and_its_seconds_per_step(run_cfg):
    trainer = trained(run_cfg("cost"))
    facts = trainer.cost.facts()
    peaks = [value for value, _ in trainer.storage.history("peak_memory_mib").values()]
    assert facts["peak_memory"] == peaks[-1] == max(peaks) > 100  # MiB: torch alone
    assert 0 < facts["step_seconds"] < 60


def test_an_infinite_loss_stops_the_run(run_cfg):
    class Break(HookBase):
        def before_step(self):
            nn.init.constant_(self.trainer.model.query.weight, float("nan"))

    with pytest.raises(FloatingPointError, match="NaN"):
        trained(run_cfg("diverged"), hook=Break())


def test_everything_else_trains_to_the_same_bits_with_the_ratio_head():
    batches = [[tiny_models.tiny_batch(2, num_classes=4, seed=step)] for step in range(4)]
    states = []
    for ratio in (False, True):
        cfg = training_config("MODEL.EOMT.ANOMALY_CLASS", True, "MODEL.RATIO.ENABLED", ratio)
        model = run_steps(cfg, batches, clip_norm=1e-3).model
        states.append({name: value.detach() for name, value in model_tensors(model).items()})
    own = {name for name in states[1] if name not in states[0]}
    assert own and all(name.startswith(PATCH_PREFIX + "ratio.") for name in own)
    for name, expected in states[0].items():
        assert torch.equal(states[1][name], expected), name


@pytest.fixture
def run_alone(tmp_path):
    """Config that trains only the ratio head, on a model without the anomaly class."""
    cfg = small_run(tmp_path, "run", "MODEL.RATIO.ALONE", True, anomaly=True)
    torch.manual_seed(0)
    start = EoMT(tiny_models.tiny_cfg("MODEL.EOMT.NUM_CLASSES", 2))
    AnosegCheckpointer(start, str(tmp_path)).save("start")
    cfg.MODEL.WEIGHTS = str(tmp_path / "start.pth")
    return cfg, start


def test_alone_the_ratio_head_leaves_the_checkpoint_as_it_is(run_alone):
    cfg, start = run_alone
    check_inputs(cfg, training=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    for name, value in start.state_dict().items():
        assert torch.equal(after[name], value), name
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if name.startswith(PATCH_PREFIX + "ratio.")}
    predictor = AnomalyPredictor.from_pretrained(cfg.OUTPUT_DIR + "/model_final.pth")
    assert "ratio" in predictor.score_names and "anomaly" not in predictor.score_names


def test_a_ratio_head_without_anything_to_learn_from_is_refused(tmp_path):
    for key in ("ENABLED", "ALONE"):
        cfg = small_run(tmp_path, "run", f"MODEL.RATIO.{key}", True)
        register_cards(cfg)
        with pytest.raises(ValueError, match="MODEL.RATIO .*CUT_PASTE.ENABLED"):
            training_dicts(cfg)
    with pytest.raises(ValueError, match="leave LORA off"):
        check_config(tiny_models.tiny_cfg("MODEL.RATIO.ALONE", True, "MODEL.LORA.ENABLED", True))
