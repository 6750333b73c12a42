"""The few images of a dataset that the report shows."""

import numpy as np
import small_sets

from anoseg_d2.evaluation.samples import SAMPLES, load_samples, sampled_files, save_sample


def test_the_same_few_images_stand_for_a_dataset(tmp_path):
    images = small_sets.anomaly_set(tmp_path, count=20)
    chosen = sampled_files("test_anomaly")
    assert len(chosen) == SAMPLES and chosen == sampled_files("test_anomaly")
    assert {images[0]["file_name"], images[-1]["file_name"]} <= chosen
    small_sets.anomaly_set(tmp_path, count=2)
    assert len(sampled_files("test_anomaly")) == 2


def test_a_sample_comes_back_small_with_its_anomaly(tmp_path):
    label = np.zeros((60, 80), np.uint8)
    label[40, 61] = 1
    score = np.linspace(0, 1e6, label.size, dtype=np.float32).reshape(label.shape)
    input_ = {"image": np.zeros((3, 60, 80), np.uint8), "file_name": "1.png"}
    input_["image_id"] = "city/frame 1"
    scores = {"s": score, "rba_sum": -score}
    save_sample(tmp_path, input_, label, None, scores, long_side=40)
    assert [path.name for path in tmp_path.iterdir()] == ["city%2Fframe%201.npz"]
    ((name, stored),) = load_samples(tmp_path).items()
    assert name == "city/frame 1"
    assert stored["photo"].shape == (30, 40, 3) and stored["sem_seg"] is None
    assert set(stored["scores"]) == {"s", "rba_sum"} and stored["scores"]["s"].shape == (30, 40)
    assert stored["label"].max() == 1 and np.isfinite(stored["scores"]["s"]).all()


def test_no_image_was_kept_where_there_is_no_folder(tmp_path):
    assert load_samples(tmp_path / "absent") == {}
