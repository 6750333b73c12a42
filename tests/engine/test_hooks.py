"""What happens around the steps: which weights are kept as the best, and which way is better."""

from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from anoseg_d2.engine.hooks import BestCheckpointHook


class Checkpointer:
    """Notes the step of everything that it is told to save."""

    def __init__(self):
        self.saved: list[tuple[str, int]] = []

    def save(self, name, **facts):
        self.saved.append((name, facts["iteration"]))


ONE_SET = SimpleNamespace(DATASETS=SimpleNamespace(TEST=("set",)))


def evaluated(figure, values, period=2, hook=None):
    """Run the hook through a training that evaluates `values` after every `period` steps."""
    last = period * len(values)
    hook = hook or BestCheckpointHook(Checkpointer(), figure, period)
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(
            iter=0, start_iter=0, max_iter=last, storage=storage, cfg=ONE_SET
        )
        hook.before_train()
        for step in range(last):
            hook.trainer.iter = storage.iter = step
            if (step + 1) % period == 0 and step + 1 < last:
                storage.put_scalar(figure, values[(step + 1) // period - 1], smoothing_hint=False)
            hook.after_step()
        hook.trainer.iter = storage.iter = last
        storage.put_scalar(figure, values[-1], smoothing_hint=False)
        hook.after_train()
    return hook


@pytest.mark.parametrize(
    "figure,values,best",
    [
        ("set/anomaly/rba.fpr95", [40.0, 12.0, 30.0, 25.0], 12.0),
        ("closed_set/ECE", [9.0, 8.0, 2.5, 7.0], 2.5),
        ("set/anomaly/rba.auprc", [40.0, 62.0, 30.0, 25.0], 62.0),
        ("closed_set/mIoU", [9.0, 8.0, 12.5, 7.0], 12.5),
    ],
)
def test_the_best_step_is_kept_wherever_it_is(figure, values, best):
    hook = evaluated(figure, values)
    assert hook.best == best
    name, iteration = hook.checkpointer.saved[-1]
    assert name == "model_best" and iteration == 2 * values.index(best) + 1


@pytest.mark.parametrize("figure", ["set/anomaly/rba.fpr95", "closed_set/mIoU"])
def test_a_figure_that_is_missing_is_never_the_best(figure):
    hook = evaluated(figure, [float("nan"), 20.0, float("nan"), 20.0])
    assert hook.best == 20.0 and [step for _, step in hook.checkpointer.saved] == [3]


def test_a_resumed_run_compares_with_the_best_so_far():
    first = evaluated("closed_set/ECE", [5.0, 3.0])
    resumed = BestCheckpointHook(Checkpointer(), "closed_set/ECE", 2)
    resumed.load_state_dict(first.state_dict())
    evaluated("closed_set/ECE", [4.0, 2.0, 6.0], hook=resumed)
    assert resumed.checkpointer.saved == [("model_best", 3)]


def test_an_unknown_figure_is_refused_with_the_evaluated_ones():
    hook = BestCheckpointHook(Checkpointer(), "closed_set/miou", 2)
    with EventStorage() as storage, pytest.raises(ValueError, match="closed_set/mIoU"):
        hook.trainer = SimpleNamespace(
            iter=1, start_iter=0, max_iter=8, storage=storage, cfg=ONE_SET
        )
        storage.put_scalar("closed_set/mIoU", 3.0)
        hook.after_step()


@pytest.mark.parametrize(
    ("values", "last"),
    [
        ([5.0, 4.0, 3.0, 9.0, 9.0, 9.0], 7),
        ([5.0, 4.0, 6.0, 5.0, 6.0, 9.0], 11),
        ([5.0, 4.0, 6.0, 5.0, 7.0, 9.0], 12),
        ([float("nan"), float("nan"), 6.0, 7.0], 5),
    ],
)
def test_patience_moves_the_end_to_the_next_step(values, last):
    hook = BestCheckpointHook(Checkpointer(), "closed_set/mIoU", 2, patience=2)
    evaluated("set/closed_set/mIoU", values, hook=hook)  # the name of the only set is left out
    assert hook.trainer.max_iter == last
