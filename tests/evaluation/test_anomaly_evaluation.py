"""The anomaly evaluator against scikit-learn on all pixels, and what it keeps for the report."""

import json
from collections import namedtuple

import numpy as np
import pytest
import small_sets
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from anoseg_d2.data import builtin
from anoseg_d2.data.image_io import read_label
from anoseg_d2.data.label_rules import LABEL_RULES
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.components import ComponentMetrics
from anoseg_d2.evaluation.kept_maps import KeptMaps
from anoseg_d2.evaluation.metrics import PixelMetrics
from anoseg_d2.evaluation.run_folder import dataset_folder
from anoseg_d2.evaluation.thumbnails import (
    FailureGallery,
    image_average_precision,
    load_thumbnails,
    save_thumbnails,
    thumbnail_name,
)
from anoseg_d2.utils.files import read_json


def labels_of(images):
    return [read_label(image["sem_seg_file_name"]) for image in images]


def outputs_of(images, **kwargs):
    return [small_sets.outputs_for(label, i, **kwargs) for i, label in enumerate(labels_of(images))]


def pooled(images, outputs, name):
    labels = np.concatenate([label.ravel() for label in labels_of(images)])
    scores = np.concatenate([output["scores"][name].ravel() for output in outputs])
    return labels[labels != 255], scores[labels != 255]


def run(images, outputs, output_dir=None, **kwargs):
    evaluator = AnomalyEvaluator("test_anomaly", output_dir=output_dir, **kwargs)
    evaluator.reset()
    evaluator.process(images, outputs)
    return evaluator, evaluator.evaluate()


def test_figures_are_scikit_learns_on_all_pixels(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images)
    evaluator, _ = run(images, outputs)
    for name, entry in evaluator.result["scores"].items():
        labels, scores = pooled(images, outputs, name)
        fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
        assert entry["auprc"] == pytest.approx(100 * average_precision_score(labels, scores))
        assert entry["auroc"] == pytest.approx(100 * roc_auc_score(labels, scores))
        assert entry["fpr95"] == pytest.approx(100 * fpr[np.argmax(tpr >= 0.95)])
        lowest, highest = entry["auprc_bounds"]
        assert lowest <= entry["auprc"] <= highest


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


def test_components_are_counted_at_the_best_threshold_of_the_whole_set(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images, names=("msp",), signal=6.0)
    evaluator, _ = run(images, outputs)
    pixels, expected = PixelMetrics(), ComponentMetrics("anomaly")
    for label, output in zip(labels_of(images), outputs, strict=True):
        pixels.update(output["scores"]["msp"], label)
    cut = pixels.compute()["best_f1_cut"]
    for label, output in zip(labels_of(images), outputs, strict=True):
        expected.update(output["scores"]["msp"], label, cut)
    found, entry = expected.compute(), evaluator.result["scores"]["msp"]
    assert entry["sIoU"] == pytest.approx(100 * found["sIoU"]) and entry["sIoU"] >= 0
    assert entry["mean_F1"] == pytest.approx(100 * found["mean_F1"])


def test_the_obstacle_track_has_its_own_sizes(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = [{"scores": {"s": (label == 1).astype(np.float32)}} for label in labels_of(images)]
    whole, _ = run(images, outputs)  # 144 pixels: too small a prediction on the anomaly track
    MetadataCatalog.get("test_anomaly").set(component_track="obstacle")
    small, _ = run(images, outputs)
    assert whole.result["scores"]["s"]["mean_F1"] == 0.0
    assert small.result["scores"]["s"]["mean_F1"] == 100.0


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


def test_components_are_stated_at_three_overlaps(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images, names=("msp",), signal=6.0)
    evaluator, _ = run(images, outputs)
    expected = ComponentMetrics("anomaly")
    pixels = PixelMetrics()
    for label, output in zip(labels_of(images), outputs, strict=True):
        pixels.update(output["scores"]["msp"], label)
    for label, output in zip(labels_of(images), outputs, strict=True):
        expected.update(output["scores"]["msp"], label, pixels.compute()["best_f1_cut"])
    found = expected.compute()
    stated = evaluator.result["scores"]["msp"]["components_at"]
    for name, index in (("25", 0), ("50", 5), ("75", 10)):
        assert stated[name] == {
            "F1": 100 * found["F1"][index],
            "TP": found["tp"][index],
            "FN": found["fn"][index],
            "FP": found["fp"][index],
        }


def test_full_lost_and_found_is_on_the_obstacle_track():
    builtin.register_all()
    assert AnomalyEvaluator("lost_and_found")._track == "obstacle"
    assert AnomalyEvaluator("fishyscapes_lostandfound")._track == "anomaly"


def test_an_unknown_track_is_refused(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    small_sets.register(
        "test_anomaly", images, label_rule=small_sets.ANOMALY_RULE, component_track="sky"
    )
    with pytest.raises(ValueError, match="component_track 'sky'; known: anomaly, obstacle"):
        AnomalyEvaluator("test_anomaly")


def test_two_codings_in_one_set_are_refused(tmp_path):
    labels = [np.zeros((8, 8), np.uint8) for _ in range(2)]
    labels[0][:2], labels[1][:2] = 1, 2
    images = small_sets.write_set(
        tmp_path, "test_anomaly", labels, label_rule=LABEL_RULES["road_anomaly"]
    )
    outputs = [{"scores": {"s": np.zeros((8, 8), np.float32)}}] * 2
    with pytest.raises(ValueError, match="some labels hold 1 and others 2"):
        AnomalyEvaluator("test_anomaly").process(images, outputs)
    continued, earlier = (AnomalyEvaluator("test_anomaly", components=False) for _ in range(2))
    earlier.process(images[:1], outputs[:1])
    continued.load_state_dict(earlier.state_dict())
    with pytest.raises(ValueError, match="some labels hold 1 and others 2"):
        continued.process(images[1:], outputs[1:])


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
    for name in (".kept-maps-x", ".spill-x", "exact_scores_x"):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.npy").write_bytes(b"")
    (folder / ".result.json.abc.tmp").write_bytes(b"")
    AnomalyEvaluator("test_anomaly", output_dir=tmp_path / "run").reset()
    assert not list(folder.iterdir())


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


def test_too_full_a_disk_leaves_components_out_and_says_why(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr("anoseg_d2.evaluation.kept_maps.shutil.disk_usage", lambda path: usage)
    images = small_sets.anomaly_set(tmp_path)
    evaluator, _ = run(images, outputs_of(images))
    entry = evaluator.result["scores"]["msp"]
    assert entry["sIoU"] is None and "disk" in entry["why"] and entry["auprc"] > 0


def test_kept_maps_come_back(tmp_path):
    maps = KeptMaps(tmp_path, 1, "test")
    score, label = np.array([[0.1, np.inf]], np.float32), np.array([[0, 1]], np.uint8)
    maps.add("first", {"a": score, "b": -score}, label)
    read = [(image, name, label.tolist(), score.tolist()) for image, label, name, score in maps]
    truth = [[0, 1]]
    assert read == [
        ("first", "a", truth, score.tolist()),
        ("first", "b", truth, (-score).tolist()),
    ]
    maps.close()
    assert not list(tmp_path.iterdir())


def test_the_largest_false_component_of_each_image_is_kept_at_native_size(tmp_path):
    labels = [np.zeros((60, 80), np.uint8) for _ in range(10)]
    for label in labels:
        label[2:12, 2:12] = 1
    images = small_sets.write_set(
        tmp_path,
        "test_anomaly",
        labels,
        evaluator_type="anomaly",
        label_rule=small_sets.ANOMALY_RULE,
        component_track="obstacle",
    )
    outputs = []
    for index, label in enumerate(labels):
        score = (label == 1).astype(np.float32)
        score[12, 5:11] = 1  # touches the anomaly
        score[30:40, 20 : 26 + index] = 2
        score[50:56, 60:69] = 3  # smaller
        outputs.append({"scores": {"s": score}})
    run(images, outputs, tmp_path / "run", keep_images=False)
    stored = read_json(tmp_path / "run/inference/test_anomaly/result.json")
    found = stored["false_components"]["s"]
    assert [f["image_id"] for f in found] == [f"test_anomaly_{i}" for i in range(9, 1, -1)]
    assert found[0] == {
        "image_id": "test_anomaly_9",
        "box": [30, 20, 10, 15],
        "area": 150,
        "mean_score": 2.0,
    }


def test_reset_forgets_earlier_images(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images)
    evaluator = AnomalyEvaluator("test_anomaly", output_dir=tmp_path / "run")
    evaluator.process(images[:2], outputs[:2])
    evaluator.reset()
    evaluator.process(images[2:], outputs[2:])
    evaluator.evaluate()
    assert evaluator.result["images"] == len(evaluator.per_image) == 2
    kept = tmp_path / "run/inference/test_anomaly/images"
    assert sorted(p.name for p in kept.iterdir()) == ["test_anomaly_2.npz", "test_anomaly_3.npz"]


def test_going_on_from_saved_counts_equals_one_pass(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images)
    whole, _ = run(images, outputs, components=False)
    first = AnomalyEvaluator("test_anomaly", components=False)
    first.process(images[:2], outputs[:2])
    second = AnomalyEvaluator("test_anomaly", components=False)
    second.load_state_dict(first.state_dict())
    second.process(images[2:], outputs[2:])
    second.evaluate()
    assert second.result == whole.result and second.per_image == whole.per_image


def test_exact_closes_the_bounds(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    outputs = outputs_of(images, names=("msp",))
    evaluator, _ = run(images, outputs, tmp_path / "run", exact=True, components=False)
    labels, scores = pooled(images, outputs, "msp")
    expected = 100 * average_precision_score(labels, scores)
    assert evaluator.result["scores"]["msp"]["auprc"] == pytest.approx(expected, abs=1e-9)


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
            queue.put((evaluator.result, evaluator.per_image))
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
    result, per_image = queue.get(timeout=120)
    for process in ranks:
        process.join()
    assert result == one.result and per_image == one.per_image
    stored = [
        read_json(tmp_path / run / "inference/test_anomaly/result.json") for run in ("one", "two")
    ]
    assert stored[0] == stored[1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_average_precision_of_an_image_is_scikit_learns_with_ties(seed, values):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, values, (5, 6)).astype(np.float32)
    label = rng.choice([0, 1, 255], (5, 6)).astype(np.uint8)
    label[0, 0] = 1
    counted = label != 255
    expected = average_precision_score(label[counted], score[counted])
    assert image_average_precision(score, label) == pytest.approx(expected)


def test_an_image_without_anomaly_has_no_average_precision():
    assert image_average_precision(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8)) is None


def scene():
    """A known pixel that scores high, one object that is seen, one that is not."""
    label = np.zeros((60, 80), np.uint8)
    label[5:10, 5:10] = label[40:45, 60:65] = 1
    score = np.zeros(label.shape, np.float32)
    score[5:10, 5:10], score[40:45, 60:65] = 0.9, 0.1
    score[30, 20] = 0.8
    score[10, 5] = 5.0  # next to an object: its blurred border, not a mistake
    return np.zeros((60, 80, 3), np.uint8), label, score


def test_the_gallery_finds_the_false_pixel_and_the_missed_object():
    photo, label, score = scene()
    gallery = FailureGallery(crop=16)
    gallery.update("a", photo, label, {"s": score})
    false, missed = gallery.entries["false", "s"][0], gallery.entries["missed", "s"][0]
    assert false["place"] == [30, 20] and false["value"] == pytest.approx(0.8)
    assert missed["place"] == [42, 62] and missed["value"] == pytest.approx(0.1)
    assert missed["label"].shape == (16, 16) and missed["label"].sum() == 25


def test_the_gallery_keeps_the_worst_whatever_the_split():
    photo, label, score = scene()
    values = [0.5, 0.9, 0.2, 0.7]
    one, two, three = (FailureGallery(keep=2, crop=16) for _ in range(3))
    for index, value in enumerate(values):
        varied = np.where(score == np.float32(0.8), np.float32(value), score)
        one.update(str(index), photo, label, {"s": varied})
        (two if index % 2 else three).update(str(index), photo, label, {"s": varied})
    two.merge(three)
    for gallery in (one, two):
        assert [e["image_id"] for e in gallery.entries["false", "s"]] == ["1", "3"]


def test_a_small_image_is_cropped_whole():
    gallery = FailureGallery(crop=192)
    gallery.update("a", *scene()[:2], {"s": scene()[2]})
    assert gallery.entries["false", "s"][0]["photo"].shape == (60, 80, 3)


def test_thumbnails_come_back(tmp_path):
    photo, label, score = scene()
    path = tmp_path / thumbnail_name("city/frame 1")
    save_thumbnails(path, photo, label, None, {"s": score, "rba_sum": -score}, long_side=40)
    stored = load_thumbnails(path)
    assert path.name == "city%2Fframe%201.npz"
    assert stored["photo"].shape == (30, 40, 3) and stored["sem_seg"] is None
    assert set(stored["scores"]) == {"s", "rba_sum"} and stored["scores"]["s"].shape == (30, 40)
    assert stored["label"].max() == 1 and stored["size"].tolist() == [60, 80]
