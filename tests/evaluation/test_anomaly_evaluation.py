"""The anomaly evaluator: what it takes, refuses, warns about and leaves in its folder."""

import json

import numpy as np
import pytest
import small_sets
import torch
from detectron2.utils import comm
from evaluated_sets import labels_of, outputs_of, run

from anoseg_d2.data import builtin
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.run_folder import dataset_folder
from anoseg_d2.utils.files import read_json


def test_pixels_and_images_are_counted(tmp_path):
    images = small_sets.anomaly_set(tmp_path, count=3)
    evaluator, _ = run(images, outputs_of(images))
    labels = np.concatenate([label.ravel() for label in labels_of(images)])
    result = evaluator.result
    assert result["images"] == 3
    assert result["anomaly_pixels"] == (labels == 1).sum() == 288
    assert result["known_pixels"] == (labels == 0).sum()
    assert result["void_pixels"] == (labels == 255).sum() == 3 * 64


def test_what_is_printed_is_finite_and_flat(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    _, printed = run(images, outputs_of(images))
    assert {"msp.auprc", "rba.fpr95", "msp.mean_F1"} <= set(printed["anomaly"])
    assert np.isfinite(list(printed["anomaly"].values())).all()


def test_scores_can_be_tensors_and_chosen_by_name(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images)
    tensors = [
        {**o, "scores": {k: torch.from_numpy(v) for k, v in o["scores"].items()}} for o in outputs
    ]
    chosen, _ = run(images, tensors, score_names=["rba"])
    both, _ = run(images, outputs)
    assert chosen.result["scores"] == {"rba": both.result["scores"]["rba"]}


def test_a_set_without_anomaly_has_none_and_says_why(tmp_path):
    small_sets.anomaly_set(tmp_path)
    images = small_sets.write_set(
        tmp_path,
        "test_anomaly",
        [np.zeros((8, 8), np.uint8)],
        evaluator_type="anomaly",
        label_rule=small_sets.ANOMALY_RULE,
    )
    evaluator, printed = run(images, outputs_of(images), tmp_path / "run")
    entry = evaluator.result["scores"]["msp"]
    assert entry["auprc"] is None and entry["mean_F1"] is None
    assert "no anomaly pixel" in entry["why"]
    assert printed == {"anomaly": {}}
    json.loads((tmp_path / "run/inference/test_anomaly/result.json").read_text(), parse_constant=1)


def test_full_lost_and_found_is_on_the_obstacle_track():
    builtin.register_all()
    assert AnomalyEvaluator("lost_and_found").track == "obstacle"
    assert AnomalyEvaluator("fishyscapes_lostandfound").track == "anomaly"


def test_an_unknown_track_is_refused(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    small_sets.register(
        "test_anomaly", images, label_rule=small_sets.ANOMALY_RULE, component_track="sky"
    )
    with pytest.raises(ValueError, match="component_track 'sky'.*anomaly"):
        AnomalyEvaluator("test_anomaly")


def test_inverted_labels_get_a_warning(tmp_path, caplog):
    labels = [np.ones((8, 8), np.uint8)]
    labels[0][:2] = 0
    images = small_sets.write_set(
        tmp_path, "test_anomaly", labels, label_rule=small_sets.ANOMALY_RULE
    )
    evaluator, _ = run(images, outputs_of(images))
    assert "48 of 64 labelled pixels are anomalous" in evaluator.result["warnings"][0]
    assert "inverted" in caplog.text


def test_infinite_scores_count_as_extremes_and_their_number_is_stated(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images, names=("msp",))
    plain, _ = run(images, outputs)
    assert plain.result["warnings"] == []
    order = [np.max([o["scores"]["msp"].max() for o in outputs]), np.inf]
    for output, label in zip(outputs, labels_of(images), strict=True):
        score = output["scores"]["msp"]
        score[score == order[0]] = order[1]
        score[label == 255] = -np.inf  # void pixels do not count
    infinite, _ = run(images, outputs)
    entry = infinite.result["scores"]["msp"]
    assert entry["infinite_pixels"] == 1
    assert entry["auprc"] == plain.result["scores"]["msp"]["auprc"]
    assert "1 labelled pixels have an infinite msp" in infinite.result["warnings"][0]


def test_names_that_leave_the_folder_are_refused(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    with pytest.raises(ValueError, match="score name '../up'"):
        AnomalyEvaluator("test_anomaly", ["../up"])
    with pytest.raises(ValueError, match="score name '../up'"):
        AnomalyEvaluator("test_anomaly").process(
            images[:1], outputs_of(images[:1], names=("../up",))
        )
    with pytest.raises(ValueError, match="dataset name '../up'"):
        dataset_folder(tmp_path, "../up")


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    small_sets.anomaly_set(tmp_path)
    folder = tmp_path / "run/inference/test_anomaly"
    (folder / ".kept-maps-x").mkdir(parents=True)
    (folder / ".kept-maps-x" / "0.npz").write_bytes(b"")
    (folder / ".draft.tmp").write_bytes(b"mine")
    AnomalyEvaluator("test_anomaly", output_dir=tmp_path / "run").reset()
    assert {path.name for path in folder.iterdir()} == {".draft.tmp"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o["scores"].update(msp=np.zeros((3, 3), np.float32)), "3, 3.*40, 64"),
        (lambda o: o["scores"]["msp"].__setitem__((0, 0), np.nan), "NaN"),
        (lambda o: o["scores"].pop("msp"), "no score msp.*rba"),
    ],
    ids=["size", "nan", "missing"],
)
def test_a_wrong_map_names_its_image(tmp_path, change, message):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images)
    change(outputs[1])
    evaluator = AnomalyEvaluator("test_anomaly", ["msp", "rba"])
    with pytest.raises(ValueError, match=f"(?s)test_anomaly_1.*{message}"):
        evaluator.process(images, outputs)


def test_no_temporary_map_is_left(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    run(images, outputs_of(images), tmp_path / "run", keep_images=False)
    assert [p.name for p in (tmp_path / "run/inference/test_anomaly").iterdir()] == ["result.json"]


def test_reset_forgets_earlier_images(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images)
    evaluator = AnomalyEvaluator("test_anomaly", output_dir=tmp_path / "run")
    evaluator.process(images[:2], outputs[:2])
    evaluator.reset()
    evaluator.process(images[2:], outputs[2:])
    evaluator.evaluate()
    assert evaluator.result["images"] == 2
    kept = tmp_path / "run/inference/test_anomaly/images"
    assert sorted(p.name for p in kept.iterdir()) == ["test_anomaly_2.npz", "test_anomaly_3.npz"]


def _rank(rank: int, folder: str, images: list[dict], shares: list[list[int]], queue) -> None:
    """One of two processes: evaluates its share and sends what rank 0 found."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    try:
        small_sets.register(
            "test_anomaly",
            images,
            ignore_label=255,
            evaluator_type="anomaly",
            label_rule=small_sets.ANOMALY_RULE,
        )
        outputs = outputs_of(images)
        evaluator = AnomalyEvaluator("test_anomaly", output_dir=f"{folder}/two")
        evaluator.reset()
        evaluator.process([images[i] for i in shares[rank]], [outputs[i] for i in shares[rank]])
        evaluator.evaluate()
        if comm.is_main_process():
            queue.put(evaluator.result)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("shares", [[[0, 2], [3, 1]], [[], [0, 1, 2, 3]]], ids=["even", "empty"])
def test_two_processes_equal_one(tmp_path, shares):
    images = small_sets.anomaly_set(tmp_path)
    one, _ = run(images, outputs_of(images), tmp_path / "one")
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(rank, str(tmp_path), images, shares, queue))
        for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    result = queue.get(timeout=120)
    for process in ranks:
        process.join()
    assert result == one.result
    stored = [
        read_json(tmp_path / run / "inference/test_anomaly/result.json") for run in ("one", "two")
    ]
    assert stored[0] == stored[1]
