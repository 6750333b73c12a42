"""The command line on photographs and videos, with a tiny model."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from anoseg_d2.checkpoint import model_meta
from anoseg_d2.commands import predict as script
from anoseg_d2.evaluation.map_files import read_map
from anoseg_d2.modeling.scores import SCORES
from anoseg_d2.prediction.outputs import OUTPUTS
from anoseg_d2.prediction.predictor import AnomalyPredictor
from anoseg_d2.prediction.video import VideoWriter, open_video
from anoseg_d2.utils.files import file_hash


@pytest.fixture(scope="module")
def demo():
    return script


@pytest.fixture
def weights(tmp_path, tiny_eomt):
    model = tiny_eomt(has_anomaly=True)
    path = tmp_path / "run" / "model_final.pth"
    path.parent.mkdir()
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, path)
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (64, 96, 3)), ("b.png", (96, 64)), ("c.png", (70, 70, 4))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def clip(tmp_path):
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    with VideoWriter(tmp_path / "clip.mp4", 10) as writer:
        for _ in range(5):
            noise = rng.integers(-40, 40, scene.shape)
            writer.write((scene + noise).clip(0, 255).astype(np.uint8))
    return tmp_path / "clip.mp4"


def run(demo, tmp_path, *arguments):
    """Exit status and the files that were written, relative to the output folder."""
    out = tmp_path / "out"
    status = demo.main([*map(str, arguments[:1]), "--output", str(out), *map(str, arguments[1:])])
    return status, sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())


def test_one_command_gives_overlay_and_heat_map(demo, tmp_path, weights, photos, capsys):
    status, files = run(demo, tmp_path, photos, "--weights", weights)
    assert status == 0
    assert files == [f"rba/heatmap/{n}.png" for n in "abc"] + [
        f"rba/overlay/{n}.jpg" for n in "abc"
    ]
    assert "3 images in" in capsys.readouterr().out


def test_a_threshold_adds_components(demo, tmp_path, weights, photos):
    arguments = ("--weights", weights, "--score", "rba,anomaly", "--threshold")
    status, files = run(demo, tmp_path, photos, *arguments, "rba=-9,anomaly=-1", "--min-size", 9)
    assert status == 0
    assert [f for f in files if "/contours/" in f and f.startswith("anomaly")] == [
        f"anomaly/contours/{n}.jpg" for n in "abc"
    ]
    content = json.loads((tmp_path / "out/rba/components.json").read_text())
    assert [a["bbox"] for a in content["annotations"]] == [
        [0, 0, 96, 64], [0, 0, 64, 96], [0, 0, 70, 70]
    ]  # fmt: skip


def test_raw_maps_are_the_predictors_scores(demo, tmp_path, weights, photos):
    arguments = ("--weights", weights, "--score", "anomaly", "--outputs", "raw_npy,raw_png")
    status, files = run(demo, tmp_path, photos / "b.png", *arguments)
    assert status == 0 and files == ["anomaly/raw_npy/b.npy", "anomaly/raw_png/b.png"]
    predictor = AnomalyPredictor.from_pretrained(str(weights))
    expected = predictor(photos / "b.png")["scores"]["anomaly"]
    exact, rounded = (read_map(tmp_path / "out" / name) for name in files)
    assert np.array_equal(exact, expected) and np.abs(rounded - expected).max() < 1e-4


def test_tpr_reads_and_prints_the_threshold_next_to_the_weights(
    demo, tmp_path, weights, photos, capsys
):
    report = weights.parent / "report"
    report.mkdir()
    entry = {"tpr_thresholds": {"90": -0.5, "95": -9.0}}
    sets = {"road": {"scores": {"rba": entry}}}
    (report / "results.json").write_text(json.dumps({"datasets": sets}))
    status, files = run(demo, tmp_path, photos, "--weights", weights, "--tpr", 95)
    assert status == 0 and "rba/contours/a.jpg" in files
    info = json.loads((tmp_path / "out/rba/components.json").read_text())["info"]
    assert info["threshold"] == -9.0
    assert "rba: threshold -9 at 95 % TPR" in capsys.readouterr().out
    other = {"datasets": sets, "model": {"weights_file_sha256": "0" * 64}}
    (report / "results.json").write_text(json.dumps(other))
    assert run(demo, tmp_path, photos, "--weights", weights, "--tpr", 95)[0] == 2
    assert "is of other weights" in capsys.readouterr().err


def test_a_threshold_takes_the_settings_of_its_evaluation_or_refuses_others(
    demo, tmp_path, weights, photos, capsys
):
    measured = {"config": "TEST: {FLIP: true, ANOMALY: {GUIDED_FILTER: 0.5}}"}
    sets = {"road": {"scores": {"rba": {"tpr_thresholds": {"95": -9.0}}}}}
    measured |= {"datasets": sets, "model": {"weights_file_sha256": file_hash(weights)}}
    place = tmp_path / "results.json"
    place.write_text(json.dumps(measured))
    arguments = (photos / "a.jpg", "--weights", weights, "--tpr", 95, "--results", place)
    assert run(demo, tmp_path, *arguments, "--outputs", "raw_npy")[0] == 0
    said = capsys.readouterr()
    assert "GUIDED_FILTER 0.5" in said.out and "FLIP True" in said.out
    options = ["TEST.FLIP", True, "TEST.ANOMALY.GUIDED_FILTER", 0.5]
    expected = AnomalyPredictor.from_pretrained(str(weights), options)(photos / "a.jpg")["scores"]
    assert np.array_equal(read_map(tmp_path / "out/rba/raw_npy/a.npy"), expected["rba"])
    # What it does not say is named in one warning.
    assert said.err.count("does not say") == 1 and "TEST.SCALES" in said.err

    assert run(demo, tmp_path, *arguments, "--opts", "TEST.FLIP", "False")[0] == 2
    assert "TEST.FLIP was True, is False" in capsys.readouterr().err
    place.write_text(json.dumps({**measured, "model": {"weights_sha256": "0" * 64}}))
    assert run(demo, tmp_path, *arguments)[0] == 2
    assert "other weights" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (2, 8), (8, 2), (1, 300), (300, 1)], ids=str)
def test_images_of_a_few_pixels_come_out_whole(demo, tmp_path, weights, size):
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(tmp_path / "small.png")
    kinds = "overlay,heatmap,contours,segmentation,raw_npy,raw_png,json"
    arguments = ("--weights", weights, "--outputs", kinds, "--threshold", "-9")
    status, files = run(demo, tmp_path, tmp_path / "small.png", *arguments)
    assert status == 0 and len(files) == 7
    assert read_map(tmp_path / "out/rba/raw_npy/small.npy").shape == size


def test_an_image_that_is_refused_is_reported_and_skipped(
    demo, tmp_path, weights, photos, capsys, monkeypatch
):
    monkeypatch.setattr("anoseg_d2.modeling.windows.MOST_PIXELS", 10**5)
    Image.fromarray(np.zeros((1, 5000, 3), np.uint8)).save(photos / "b2.png")
    status, files = run(demo, tmp_path, photos, "--weights", weights, "--outputs", "raw_npy")
    error = capsys.readouterr().err
    assert status == 1 and files == [f"rba/raw_npy/{n}.npy" for n in "abc"]
    assert "b2.png: an image of 1x5000 pixels is too elongated" in error


def test_an_output_that_is_a_file_is_named(demo, tmp_path, weights, photos, capsys):
    (tmp_path / "taken").write_text("here")
    arguments = [str(photos), "--weights", str(weights), "--output", str(tmp_path / "taken")]
    assert demo.main(arguments) == 2
    assert "taken is not a folder that can be written" in capsys.readouterr().err


def test_a_module_of_the_user_can_register_a_score(demo, tmp_path, weights, photos, monkeypatch):
    (tmp_path / "my_demo_score.py").write_text(
        "from anoseg_d2.modeling.scores import register_score\n"
        "@register_score('mine')\n"
        "def mine(maps, num_known):\n    return maps['probs'][:, 0]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ("--weights", weights, "--score", "mine", "--import", "my_demo_score")
    try:
        status, files = run(demo, tmp_path, photos / "a.jpg", *arguments, "--outputs", "raw_npy")
    finally:
        SCORES.remove("mine")
    assert status == 0 and files == ["mine/raw_npy/a.npy"]


def test_unreadable_inputs_are_reported_and_skipped(demo, tmp_path, weights, photos, capsys):
    (photos / "broken.jpg").write_bytes((photos / "a.jpg").read_bytes()[:200])
    (photos / "film.mp4").write_text("no film")
    inputs = (photos, "--weights", weights, "--outputs", "raw_npy")
    status, files = run(demo, tmp_path, *inputs)
    errors = capsys.readouterr().err
    assert status == 1 and files == [f"rba/raw_npy/{n}.npy" for n in "abc"]
    assert "broken.jpg" in errors and "film.mp4" in errors
    assert "skipped inputs: 2" in errors


def test_a_missing_input_among_others_counts_as_unreadable(demo, tmp_path, weights, photos, capsys):
    status = demo.main(
        [str(photos / "a.jpg"), str(photos / "gone.jpg"), "--weights", str(weights)]
        + ["--output", str(tmp_path / "out")]
    )
    assert status == 1 and (tmp_path / "out/rba/overlay/a.jpg").is_file()
    assert "gone.jpg: no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "no input found"),
        (["photos", "--score", "nonsense"], "nonsense"),
        (["photos", "--outputs", "mask"], "unknown output mask"),
        (["photos", "--outputs", ""], "unknown output"),
        (["photos", "--outputs", "json"], "give --threshold, --tpr"),
        (["photos", "--threshold", "much"], "the scores need rba=NUMBER"),
        (["photos", "--threshold", "rba=1,rba=2"], "the scores need rba=NUMBER"),
        (["photos", "--score", "rba,msp", "--threshold", "0"], "rba=NUMBER,msp=NUMBER"),
        (["photos", "--threshold", "0", "--tpr", "95"], "cannot be given together"),
        (["photos", "--tpr", "95"], "give --results"),
        (["photos", "--score", "rba,msp", "--range", "0", "1"], "--range is for one score"),
        (["photos", "--range", "1", "0"], "from low to high, not"),
        (["photos", "--threshold", "nan"], "--threshold is nan; it must be a finite number"),
        (["photos", "--range", "0", "inf"], "--range is inf; it must be a finite number"),
        (["photos", "--temporal", "2"], "--temporal is 2.0; it must be a number above 0"),
        (["photos", "--min-size", "0"], "--min-size is 0; it must be an integer of at least 1"),
        (["photos", "--max-frames", "-5"], "--max-frames is -5; it must be an integer"),
        (["photos", "--tpr", "nan"], "--tpr is nan; it must be a number from 0 to 100"),
        (["photos", "--weights", "gone.pth"], "gone.pth"),
        (["photos", "--opts", "MODEL.DEVISE", "cpu"], "did you mean MODEL.DEVICE"),
        (["photos", "--config-file", "gone.yaml"], "gone.yaml does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_status_2(
    demo, tmp_path, weights, photos, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    extra = [] if "--weights" in arguments else ["--weights", str(weights)]
    assert demo.main([*extra, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and "Traceback" not in error
    assert not (tmp_path / "output").exists(), "reported before anything is written"


def test_missing_inputs_are_reported(demo, capsys):
    assert demo.main(["--weights", "w.pth"]) == 2
    assert "give an input" in capsys.readouterr().err


def test_ctrl_c_leaves_whole_files_and_status_130(
    demo, tmp_path, weights, photos, clip, capsys, monkeypatch
):
    original, calls = AnomalyPredictor.__call__, []

    def call(self, image):
        calls.append(1)
        if len(calls) == 3:  # on the second frame of the video, after one batch of photographs
            raise KeyboardInterrupt
        return original(self, image)

    monkeypatch.setattr(AnomalyPredictor, "__call__", call)
    arguments = ("--weights", weights, "--threshold", "-9", "--outputs", "overlay,json")
    out = tmp_path / "out"
    inputs = [str(photos), str(clip)]
    assert demo.main([*inputs, "--output", str(out), *map(str, arguments)]) == 130
    assert capsys.readouterr().err.strip().endswith(f"stopped; finished outputs are in {out}")
    files = sorted(p.name for p in out.rglob("*") if p.is_file())
    assert files == ["a.jpg", "b.jpg", "c.jpg", "components.json"]
    images = json.loads((out / "rba/components.json").read_text())["images"]
    assert len(images) == 4 and images[3]["frame"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [2, 3])  # a video and the json after it
@pytest.mark.parametrize("kind", sorted(set(OUTPUTS) - {"byte"}))  # needs another scale
def test_ctrl_c_while_a_file_is_written_leaves_no_part_of_it(
    demo, tmp_path, weights, photos, clip, monkeypatch, kind, interrupted
):
    """Every output is flushed before it gets its name; one of these flushes is interrupted."""
    flush, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) == interrupted:
            raise KeyboardInterrupt
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    out = tmp_path / "out"
    inputs = [str(photos)] if kind.startswith("raw") else [str(photos / "a.jpg"), str(clip)]
    more = "raw_npy" if kind == "json" else "json"
    options = ("--weights", str(weights), "--outputs", f"{kind},{more}", "--threshold", "-9")
    assert demo.main([*inputs, "--output", str(out), *options]) == 130
    names = [path.name for path in out.rglob("*") if path.is_file()]
    assert not [name for name in names if name.startswith(".") or ".part" in name], names


def test_an_output_folder_that_cannot_be_written_is_one_line(
    demo, tmp_path, weights, photos, capsys, monkeypatch
):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):  # root may write anywhere

        def refuse(dir):
            raise PermissionError(errno.EACCES, "Permission denied", str(dir))

        monkeypatch.setattr(demo.tempfile, "TemporaryFile", refuse)
    assert demo.main([str(photos), "--weights", str(weights), "--output", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not list(folder.iterdir())
    assert f"--output {folder} is not a folder that can be written: Permission denied" in error


def test_a_video_is_filtered_and_still_images_are_not(demo, tmp_path, weights, photos, clip):
    inputs = [str(photos / "a.jpg"), str(clip), "--weights", str(weights), "--outputs", "raw_npy"]
    for name, extra in (("plain", []), ("calm", ["--temporal", "0.3"])):
        assert demo.main([*inputs, "--output", str(tmp_path / name), *extra]) == 0

    def maps(name, pattern):
        paths = sorted((tmp_path / name / "rba/raw_npy").glob(pattern))
        return np.stack([read_map(path) for path in paths])

    assert np.array_equal(maps("plain", "a.npy"), maps("calm", "a.npy"))
    plain, calm = maps("plain", "clip/*.npy"), maps("calm", "clip/*.npy")
    assert plain.shape == (5, 48, 64) and np.array_equal(plain[0], calm[0])
    assert np.abs(np.diff(calm, axis=0)).mean() < 0.7 * np.abs(np.diff(plain, axis=0)).mean()


def test_a_video_comes_out_at_its_rate(demo, tmp_path, weights, clip):
    arguments = ("--weights", weights, "--outputs", "overlay", "--max-frames", 3)
    status, files = run(demo, tmp_path, clip, *arguments)
    assert status == 0 and files == ["rba/overlay/clip.mp4"]
    with open_video(tmp_path / "out" / files[0]) as reader:
        assert reader.fps == pytest.approx(10) and len(list(reader)) == 3


def test_events_of_a_video_need_a_threshold_and_are_written(
    demo, tmp_path, weights, photos, clip, capsys
):
    options = ("--weights", weights, "--outputs", "raw_npy", "--events")
    assert run(demo, tmp_path, clip, *options)[0] == 2
    assert "events need a threshold" in capsys.readouterr().err
    status, files = run(demo, tmp_path, clip, *options, "--threshold=-2")
    assert status == 0 and {"rba/events.jsonl", "rba/events/clip.mp4"} <= set(files)
    (line,) = (tmp_path / "out/rba/events.jsonl").read_text().splitlines()
    assert json.loads(line)["frames"] == 5  # the whole frame is over this threshold
    assert run(demo, tmp_path, photos, *options, "--threshold=-2")[0] == 0
    assert "--events has no effect" in capsys.readouterr().err


def test_a_config_file_builds_the_model(demo, tmp_path, weights, photos, tiny_cfg):
    from anoseg_d2.modeling.eomt import EoMT

    cfg = tiny_cfg()
    model = EoMT(cfg)
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, tmp_path / "c.pth")
    (tmp_path / "c.yaml").write_text(cfg.dump())
    arguments = ("--config-file", tmp_path / "c.yaml", "--weights", tmp_path / "c.pth")
    options = ("--score", "entropy", "--outputs", "raw_npy", "--opts", "MODEL.DEVICE", "cpu")
    status, files = run(demo, tmp_path, photos / "a.jpg", *arguments, *options)
    assert status == 0 and files == ["entropy/raw_npy/a.npy"]


def test_a_config_file_runs_no_code(demo, tmp_path, photos, capsys):
    path = tmp_path / "evil.yaml"
    path.write_text(f"X: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    assert demo.main([str(photos), "--config-file", str(path)]) == 2
    assert not (tmp_path / "made").exists() and "error: " in capsys.readouterr().err
