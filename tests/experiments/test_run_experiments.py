"""The driver on stages: recipes, resuming, progress, what it prints."""

import importlib.util
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import run
import yaml
from driver import summary, writeup
from driver.child import Screen, parse_progress, run_child
from driver.recipe import choose, load_recipe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anoseg_d2.config import load_config
from anoseg_d2.report.runs import load_runs
from anoseg_d2.report.write import combine_reports
from anoseg_d2.utils import cli
from anoseg_d2.utils.files import write_json

ROOT = Path(__file__).resolve().parents[2]

RECIPES = [
    *sorted((ROOT / "configs").glob("*/recipe.yaml")),
    ROOT / "configs/camvid/unseen_recipe.yaml",
]

SHIPPED = [*RECIPES, *sorted((ROOT / "experiments").glob("*/studies.yaml"))]

# Stands for train_net.py: a checkpoint, and figures that depend on what it starts from.
TRAINER = """
    import json, pathlib, sys
    options = sys.argv[sys.argv.index("--resume") + 1:]
    options = dict(zip(options[::2], options[1::2]))
    folder = pathlib.Path(options["OUTPUT_DIR"])
    weights = pathlib.Path(options["MODEL.WEIGHTS"] or "/nonexistent")
    before = weights.read_text() if weights.exists() else "scratch"
    (folder / "report").mkdir(parents=True, exist_ok=True)
    with open(folder / "runs.txt", "a") as file: file.write("x")
    (folder / "model_final.pth").write_text(f"{before}>{folder.name}{options['SEED']}")
    scores = {"rba": {"auprc": 50.0 + len(before), "fpr95": 10.0}}
    results = {"datasets": {"set": {"scores": scores}}, "closed_set": {"val": {"mIoU": 60.0}}}
    (folder / "report" / "results.json").write_text(json.dumps(results))
"""


def write_script(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text))
    return path


@pytest.fixture
def recipe(tmp_path):
    """A recipe of one data step and three stages on a stand-in trainer, as a file."""
    write_script(
        tmp_path / "data.py",
        """
        import pathlib, sys
        path = pathlib.Path(sys.argv[1])
        path.parent.mkdir(parents=True)
        path.touch()
        """,
    )
    config = "configs/quickstart/eomt_baseline.yaml"
    content = {
        "name": "try",
        "title": "A try",
        "output": str(tmp_path / "out"),
        "steps": [
            {
                "name": "data",
                "minutes": 0.1,
                "run": f"{tmp_path / 'data.py'} {{datasets}}/one/done",
                "makes": "{datasets}/one/done",
            },
            {"name": "first", "minutes": 1, "config": config, "weights": "{output}/w/vit"},
            {"name": "second", "minutes": 1, "config": config, "from": "first"},
            {"name": "third", "minutes": 1, "config": config, "from": "second"},
        ],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def drive(tmp_path, recipe, monkeypatch):
    """Run the driver with the stand-in trainer; returns its exit status."""
    trainer = write_script(tmp_path / "trainer.py", TRAINER)
    monkeypatch.setattr(run, "TRAIN", str(trainer))
    monkeypatch.chdir(tmp_path)

    def report(folders, names, report_dir, *, title=None):
        report_dir.mkdir(parents=True, exist_ok=True)
        for name in ("index.html", "results.json", "results.csv", "results.md"):
            (report_dir / name).write_text(" ".join(names))
        return report_dir / "index.html"

    monkeypatch.setattr(run, "combine_reports", report)
    return lambda *arguments: run.main([str(recipe), *arguments])


def times_run(folder: Path) -> int:
    return len((folder / "runs.txt").read_text())


def edit(path: Path, **keys) -> None:
    content = yaml.safe_load(path.read_text())
    content.update(keys)
    path.write_text(yaml.safe_dump(content))


# --- recipes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recipes_have_the_five_stages_in_order(path, tmp_path):
    data = tmp_path / "data"
    for name in yaml.safe_load(path.read_text()).get("needs", ()):
        (data / name).mkdir(parents=True)
    recipe = load_recipe(path, tmp_path / "out", data)
    starts = {step.name: step.start for step in recipe.stages}
    beyond = {"arcface_lora_beyond": "arcface_lora"} if path.parent.name == "small" else {}
    assert starts == beyond | {
        "eomt_baseline": "",
        "logitnorm": "eomt_baseline",
        "arcface": "eomt_baseline",
        "arcface_full": "arcface",
        "arcface_lora": "arcface",
    }
    for step in recipe.stages:
        assert (ROOT / step.config).is_file()
    for step in recipe.steps:
        assert (ROOT / step.arguments[0]).is_file()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recipes_keep_to_their_time(path, tmp_path):
    budget = {"quickstart": 15, "camvid": 110, "small": 180}
    steps = yaml.safe_load(path.read_text())["steps"]
    assert sum(step["minutes"] for step in steps) <= budget[path.parent.name]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_command_of_a_recipe_is_one_that_its_script_takes(path, monkeypatch, capsys):
    # Scripts parse their arguments, then hand their work to this function.
    monkeypatch.setattr(cli, "run_command", lambda *_, **__: 0)
    values = {"output": "out", "base": "out", "datasets": "data", "data": "given", "seed": 0}
    steps = yaml.safe_load(path.read_text()).get("steps", ())
    for script, *words in (s["run"].format(**values).split() for s in steps if "run" in s):
        spec = importlib.util.spec_from_file_location(f"script_{Path(script).stem}", ROOT / script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        try:
            assert module.main(words) == 0
        except SystemExit:
            pytest.fail(f"{script} {' '.join(words)}: {capsys.readouterr().err}")


def test_seeds_do_not_share_a_folder(recipe):
    outputs = {load_recipe(recipe, seed=seed).output for seed in (0, 1, 2)}
    assert len(outputs) == 3


def test_a_missing_part_of_the_data_is_named(recipe, tmp_path):
    edit(recipe, needs=["photos", "labels/train"])
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="lacks labels/train"):
        load_recipe(recipe, data=tmp_path)
    with pytest.raises(ValueError, match="DATA=<folder>"):
        load_recipe(recipe)
    with pytest.raises(ValueError, match="is not a folder"):
        load_recipe(recipe, data=tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "step",
    [
        {"name": "first", "minutes": 1, "run": "x", "makes": "y"},  # a name that is taken
        {"name": "new", "minutes": 1},
        {"name": "new", "minutes": 1, "run": "x", "makes": "y", "typo": 1},
        {"name": "new", "minutes": 1, "config": "c", "from": "later"},
        {"name": "new", "minutes": -1, "run": "x", "makes": "y"},
        {"name": "new", "minutes": float("inf"), "run": "x", "makes": "y"},
    ],
)
def test_a_wrong_step_is_refused(recipe, step):
    steps = yaml.safe_load(recipe.read_text())["steps"]
    edit(recipe, steps=[*steps, step])
    with pytest.raises(ValueError, match="step '(first|new)'"):
        load_recipe(recipe)


def test_a_step_cannot_be_named_out_of_its_folder(recipe):
    steps = yaml.safe_load(recipe.read_text())["steps"]
    edit(recipe, steps=[*steps, {"name": "../up", "minutes": 1, "run": "x", "makes": "y"}])
    with pytest.raises(ValueError, match="step.*'../up'"):
        load_recipe(recipe)


def test_an_unknown_step_lists_the_known_ones(recipe):
    with pytest.raises(ValueError, match="'fourth'.*second"):
        choose(load_recipe(recipe), only=["fourth"])


def test_what_a_recipe_sets_holds_for_every_stage(recipe):
    edit(recipe, set={"SOLVER.BASE_LR": 0.5, "DATASETS.TRAIN": ["a", "b"]})
    expected = ("DATASETS.TRAIN", "['a', 'b']", "SOLVER.BASE_LR", "0.5")  # edit() sorts the keys
    loaded = load_recipe(recipe)
    assert [step.settings for step in loaded.stages] == [expected] * len(loaded.stages)


def test_the_unseen_drive_is_not_trained_on(tmp_path):
    path = ROOT / "configs/camvid/unseen_recipe.yaml"
    for name in yaml.safe_load(path.read_text())["needs"]:
        (tmp_path / name).mkdir(parents=True)
    for step in load_recipe(path, data=tmp_path).stages:
        cfg = load_config(str(ROOT / step.config), list(step.settings))
        assert cfg.DATASETS.TRAIN == ("camvid_drives_train",)
        assert "camvid_drives_val" in cfg.DATASETS.TEST


def small_data(folder: Path) -> Path:
    """Return a folder with what `make small` needs at least, and one benchmark of one image."""
    content = yaml.safe_load((ROOT / "configs/small/recipe.yaml").read_text())
    for name in content["needs"]:
        (folder / name).mkdir(parents=True)
    for name in ("images/validation0000.jpg", "labels_masks/validation0000_labels_semantic.png"):
        path = folder / "dataset_AnomalyTrack" / name
        path.parent.mkdir(parents=True)
        path.touch()
    return folder


def test_benchmarks_that_are_missing_are_left_out_and_named(tmp_path):
    recipe = load_recipe(
        ROOT / "configs/small/recipe.yaml", tmp_path / "out", small_data(tmp_path / "data")
    )
    assert recipe.tests == ("road_anomaly21",)
    missing = ("road_obstacle21", "road_anomaly", "fishyscapes_static", "fishyscapes_lostandfound")
    for name in (*missing, "anomaly_set"):
        assert sum(sentence.startswith(f"{name} is ") for sentence in recipe.left_out) == 1
    for step in recipe.stages:
        cfg = load_config(str(ROOT / step.config), list(step.settings))
        assert cfg.DATASETS.TEST == ("cityscapes_lindau_val", "road_anomaly21")


def test_what_a_data_folder_adds_is_used(tmp_path):
    data = small_data(tmp_path / "data")
    for name in ("tiny_coco/annotations/instances_val2017.json", "tiny_coco/val2017"):
        (data / name).mkdir(parents=True)
    weights = data / "weights/dinov2_vits14_fp16.safetensors"
    weights.mkdir(parents=True)
    out = tmp_path / "out"
    recipe = load_recipe(ROOT / "configs/small/recipe.yaml", out, data)
    assert recipe.tests == ("road_anomaly21", "cityscapes_anomaly")
    assert "backbone" not in [step.name for step in recipe.steps]
    assert recipe.links[out / "weights/vits14.safetensors"] == weights
    assert recipe.links[out / "datasets/dataset_AnomalyTrack"] == data / "dataset_AnomalyTrack"


def test_what_a_step_makes_is_never_linked(tmp_path):
    data = small_data(tmp_path / "data")
    (data / "cityscapes_outlier").mkdir()
    recipe = load_recipe(ROOT / "configs/small/recipe.yaml", tmp_path / "out", data)
    links = {link.name for link in recipe.links}
    assert "cityscapes" in links and "cityscapes_outlier" not in links


def test_only_and_from_choose_steps(recipe):
    loaded = load_recipe(recipe)
    assert [s.name for s in choose(loaded, only=["first"])] == ["first"]
    assert [s.name for s in choose(loaded, start="second")] == ["second", "third"]


# --- running and resuming --------------------------------------------------------------------


@pytest.mark.slow
def test_each_stage_starts_from_the_one_before(drive, tmp_path):
    assert drive() == 0
    final = (tmp_path / "out" / "third" / "model_final.pth").read_text()
    assert final == "scratch>first0>second0>third0"


@pytest.mark.slow
def test_the_last_printed_line_is_the_report_page(drive, tmp_path, capsys):
    drive()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(tmp_path / "out" / "report" / "index.html")
    assert Path(lines[-1]).is_file()


@pytest.mark.slow
def test_a_second_run_leaves_finished_steps_alone(drive, tmp_path):
    drive()
    drive()
    assert times_run(tmp_path / "out" / "first") == 1


@pytest.mark.slow
def test_an_unfinished_stage_goes_on_and_the_rest_follows(drive, tmp_path):
    drive("--only", "data")
    drive("--only", "first")
    assert not (tmp_path / "out" / "second").exists()
    drive()
    assert [times_run(tmp_path / "out" / name) for name in ("first", "second")] == [1, 1]


def test_a_stage_without_the_one_before_is_refused(drive, capsys):
    assert drive("--only", "second") == 2
    message = capsys.readouterr().err
    assert "second starts from first" in message
    assert "--only first" in message


@pytest.mark.slow
def test_a_benchmark_that_is_added_is_evaluated_without_a_new_start(drive, recipe, tmp_path):
    data = tmp_path / "data"
    (data / "photos").mkdir(parents=True)
    edit(
        recipe,
        needs=["photos"],
        set={"DATASETS.TEST": ["miniature_val"]},
        benchmarks=["road_anomaly21", "road_anomaly"],
    )

    def add(folder, image, label):
        for name in (image, label):
            path = data / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    add("RoadAnomaly21", "images/0.jpg", "labels_masks/0.png")
    assert drive("--data", str(data)) == 0
    figures = {"datasets": {"road_anomaly21": {"scores": {}}}}
    results = [tmp_path / "out" / name / "report/results.json" for name in ("first", "second")]
    for path in results:
        write_json(path, figures)
    assert drive("--data", str(data), "--only", "first,second") == 0
    assert times_run(tmp_path / "out" / "first") == 1
    add("RoadAnomaly", "images/0.jpg", "labels_masks/0.png")
    assert drive("--data", str(data), "--only", "first,second") == 0
    assert times_run(tmp_path / "out" / "first") == 2


@pytest.mark.slow
def test_other_settings_are_not_taken_for_finished(drive, capsys):
    drive()
    assert drive("SOLVER.BASE_LR", "0.5") == 2
    assert "first was run with other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_redo_makes_the_chosen_steps_again(drive, tmp_path):
    drive()
    assert drive("--from", "second", "--redo", "SOLVER.BASE_LR", "0.5") == 0
    assert (tmp_path / "out" / "first" / "runs.txt").read_text() == "x"
    assert (tmp_path / "out" / "second" / "runs.txt").read_text() == "x"


@pytest.mark.slow
def test_what_starts_from_a_changed_checkpoint_is_stale(drive, tmp_path, capsys):
    drive()
    drive("--only", "first", "--redo")  # the same checkpoint comes out: nothing is stale
    assert drive() == 0
    record = tmp_path / "out" / "steps" / "first.json"
    changed = json.loads(record.read_text()) | {"made": "another checkpoint"}
    record.write_text(json.dumps(changed))
    assert drive() == 2
    assert "--from second --redo" in capsys.readouterr().err


def test_a_misspelt_key_stops_before_the_first_step(drive, tmp_path, capsys):
    assert drive("SOLVER.BASE_RL", "1.0") == 2
    assert "SOLVER.BASE_RL" in capsys.readouterr().err
    assert not (tmp_path / "out" / "steps").exists()


def test_a_failure_shows_the_end_of_its_log(drive, recipe, tmp_path, capsys):
    script = write_script(
        tmp_path / "fails.py", "print('colour is not known'); raise SystemExit(3)"
    )
    bad = {"name": "bad", "minutes": 1, "run": str(script), "makes": str(tmp_path / "never" / "x")}
    edit(recipe, steps=[bad])
    assert drive() == 1
    said = capsys.readouterr().out
    assert "bad failed: exit status 3" in said
    assert "colour is not known" in said
    assert said.splitlines()[-1] == f"log: {tmp_path / 'out' / 'logs' / 'bad.log'}"


def test_a_users_mistake_is_shown_without_the_log(drive, recipe, tmp_path, capsys):
    script = write_script(tmp_path / "fails.py", "raise SystemExit('error: no such benchmark')")
    bad = {"name": "bad", "minutes": 1, "run": str(script), "makes": str(tmp_path / "never" / "x")}
    edit(recipe, steps=[bad])
    assert drive() == 1
    assert "bad failed: error: no such benchmark" in capsys.readouterr().out


@pytest.mark.slow
def test_an_optional_step_that_fails_is_left_out_and_said(drive, recipe, tmp_path, capsys):
    script = write_script(tmp_path / "fails.py", "raise SystemExit('error: no network')")
    steps = yaml.safe_load(recipe.read_text())["steps"]
    weights = {"name": "w", "minutes": 0, "run": str(script), "makes": "{output}/w/vit"}
    edit(recipe, steps=[{**weights, "optional": "random weights"}, *steps])
    assert drive() == 0
    said = capsys.readouterr().out
    assert "w left out: random weights (error: no network)" in said
    assert "first starts from random weights" in said
    assert (tmp_path / "out" / "first" / "model_final.pth").read_text().startswith("scratch>")


@pytest.mark.slow
def test_nothing_is_written_into_the_data_folder(drive, recipe, tmp_path):
    given = tmp_path / "given"
    (given / "photos").mkdir(parents=True)
    edit(recipe, needs=["photos"], links={"{datasets}/photos": "photos"})
    assert drive("--data", str(given)) == 0
    assert [path.name for path in given.rglob("*")] == ["photos"]
    assert (tmp_path / "out" / "datasets" / "photos").resolve() == given / "photos"


@pytest.mark.slow
def test_the_write_up_holds_settings_figures_and_claims(drive, recipe, tmp_path):
    claim = {"text": "More is better", "figure": "auprc"}
    claim |= {"better": ["third", "best"], "than": ["first", "rba"]}
    edit(recipe, publish=str(tmp_path / "experiments"), claims=[claim], about="Made of clay.")
    assert drive("--seed", "3") == 0
    folder = tmp_path / "experiments" / "seed3"
    page = (folder / "README.md").read_text()
    assert "`make try SEED=3`" in page and "\n\nMade of clay.\n\n## Settings" in page
    assert "| `second` | first | linear | 19 |" in page
    assert "| first | 60.0 | rba | 57.0 |" in page  # 50 and the 7 letters of "scratch"
    assert re.search(r"More is better \| third, rba: \d+\.\d \| first, rba: 57\.0 \| holds", page)
    copies = {path.name for path in folder.iterdir()} - {"README.md"}
    assert copies == {"first.json", "second.json", "third.json", "results.json", "results.csv"}


@pytest.mark.slow
def test_other_settings_do_not_replace_the_published_results(drive, recipe, tmp_path):
    edit(recipe, publish=str(tmp_path / "experiments"))
    assert drive("SOLVER.BASE_LR", "0.5") == 0
    assert not (tmp_path / "experiments").exists()
    assert (tmp_path / "out" / "writeup" / "README.md").exists()


@pytest.fixture
def interrupted(recipe, tmp_path):
    """Return a function that runs a slow step, sends the driver a signal, and returns the driver.

    The step notes each SIGTERM in the file `signals`, and ends 0.3 s after the first.
    """
    child = write_script(
        tmp_path / "slow.py",
        f"""
        import pathlib, signal, time
        here = pathlib.Path({str(tmp_path)!r})
        def stop(*_):
            with open(here / "signals", "a") as file: file.write("x")
        signal.signal(signal.SIGTERM, stop)
        (here / "started").touch()
        while not (here / "signals").exists(): time.sleep(0.05)
        time.sleep(0.3)
        (here / "ended").touch()
        raise SystemExit(130)
        """,
    )
    edit(recipe, steps=[{"name": "slow", "minutes": 1, "run": str(child), "makes": "{output}/a/b"}])

    def interrupt(number, send):
        driver = subprocess.Popen(
            [sys.executable, str(ROOT / "experiments" / "run.py"), str(recipe)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        assert appears(tmp_path / "started")
        send(driver.pid, number)
        return driver

    return interrupt


def appears(path: Path, seconds: float = 600) -> bool:
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return path.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "send"),
    [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)],
    ids=["as a terminal does", "as kill does"],
)
def test_a_signal_reaches_the_child_once_and_it_says_how_to_go_on(
    interrupted, tmp_path, number, send
):
    driver = interrupted(number, send)
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130
    assert (tmp_path / "signals").read_text() == "x"
    assert (tmp_path / "ended").exists()
    assert "the same command continues from here" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal for this")
def test_the_child_of_a_driver_that_was_killed_ends_too(interrupted, tmp_path):
    interrupted(signal.SIGKILL, os.kill).wait()
    assert appears(tmp_path / "ended", 60)


@pytest.mark.slow
def test_the_child_ends_when_its_progress_cannot_be_shown(tmp_path):
    def tick(progress):
        raise BrokenPipeError

    waits = "import time; time.sleep(600)"
    began = time.monotonic()
    with pytest.raises(BrokenPipeError):
        run_child([sys.executable, "-c", waits], tmp_path / "log", dict(os.environ), tick)
    assert time.monotonic() - began < 60


# --- progress --------------------------------------------------------------------------------


def test_progress_is_read_from_training_and_evaluation():
    training = "[11/23 20:00:01 d2.utils.events]:  eta: 1:02:00  iter: 19  total_loss: 9.9  lr: 1"
    assert parse_progress(training).text == "iter: 19"
    assert parse_progress(training).seconds_left == 3720
    days = parse_progress(" eta: 2 days, 1:00:00  iter: 9  total_loss: 1")
    assert days.seconds_left == 2 * 86400 + 3600
    evaluation = parse_progress("Inference done 11/60. Total: 0.5 s/iter. ETA=0:00:24")
    assert (evaluation.text, evaluation.seconds_left) == ("11/60", 24)
    assert parse_progress("pasted 25/120 images, 30 s left").seconds_left == 30
    assert parse_progress(" iter: 0  total_loss: 9.9") is None
    assert parse_progress("loading weights") is None


def test_progress_of_a_training_is_read(caplog):
    from detectron2.utils.events import CommonMetricPrinter, EventStorage

    with EventStorage() as storage, caplog.at_level("INFO", "detectron2"):
        for index in range(30):
            storage.iter = index
            storage.put_scalars(time=2.0, total_loss=1.0)
        CommonMetricPrinter(max_iter=100).write()
    progress = parse_progress(caplog.messages[-1])
    assert progress.text == "iter: 29" and progress.seconds_left == 140


def test_progress_of_our_own_commands_is_read(capsys):
    with cli.Progress("pasted", 4, period=0) as progress:
        progress.update()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert [parse_progress(line).text for line in lines] == ["0/4 images", "1/4 images"]


@pytest.mark.parametrize("text", ["a: [", "- a", "steps: 3", "1: 2", "\x00", "steps: [{name: a}]"])
def test_a_broken_recipe_is_one_line(tmp_path, capsys, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert run.main([str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 1), byte=st.binary(min_size=0, max_size=2))
def test_a_damaged_recipe_loads_or_is_named(tmp_path, place, byte):
    text = (ROOT / "configs/quickstart/recipe.yaml").read_bytes()
    index = int(place * len(text))
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text[:index] + byte + (text[index + 1 :] if byte else b""))
    try:
        load_recipe(path)
    except (ValueError, FileNotFoundError) as error:
        assert str(path) in str(error) or "make" in str(error)


def test_a_stream_that_is_not_a_terminal_gets_few_lines(capsys):
    screen = Screen(period=1000)
    for index in range(5):
        screen.show(f"state {index}")
    screen.say("done")
    assert capsys.readouterr().out == "state 0\ndone\n"


@pytest.mark.slow
def test_the_child_reports_status_and_memory(tmp_path):
    block = "import time; x = bytearray(200 * 2**20); time.sleep(1.5); raise SystemExit(4)"
    status, peak = run_child(
        [sys.executable, "-c", block], tmp_path / "log", dict(os.environ), lambda progress: None
    )
    assert status == 4
    assert 200 < peak < 300


# --- figures ---------------------------------------------------------------------------------


def results(auprc_by_score: dict, miou=60.0, sets=("road_anomaly", "fishyscapes_static")) -> dict:
    scores = {n: {"auprc": v, "fpr95": 100 - v} for n, v in auprc_by_score.items()}
    return {
        "datasets": {f"miniature_{name}": {"scores": scores} for name in sets},
        "closed_set": {"miniature_val": {"mIoU": miou}},
    }


def test_table_is_readable_on_a_hundred_columns():
    five = ("road_anomaly", "road_anomaly21", "road_obstacle21", "fishyscapes_lostandfound",
            "fishyscapes_static")  # fmt: skip
    names = ("msp", "max_logit_raw", "entropy", "anomaly")
    made = {"arcface_lora": results(dict.fromkeys(names, 100.0), miou=None, sets=five)}
    lines = summary.table_lines(made)
    assert max(map(len, lines)) <= 100
    row = next(line for line in lines if line.startswith("max_logit_raw"))
    assert row.count("100.0 /   0.0") == 6  # five benchmarks and their mean


def test_wide_bounds_are_stated_under_the_terminal_table():
    made = results({"rba": 50.0, "msp": 40.0}, sets=("road_anomaly",))
    scores = made["datasets"]["miniature_road_anomaly"]["scores"]
    scores["rba"]["auprc_bounds"] = [49.0, 51.5]
    scores["msp"]["auprc_bounds"] = [39.99, 40.01]
    lines = [line for line in summary.table_lines({"stage": made}) if "bounds" in line]
    assert lines == ["  certified bounds of RoadAnomaly, rba, AUPRC: 49.00 to 51.50"]


def test_terminal_and_page_name_the_same_winner(tmp_path):
    made = results({"rba": 70.0, "rba+anomaly": 95.0, "msp": 60.0})
    row = summary.summary_rows({"stage": made})[0]
    assert (row[2], row[5]) == ("rba+anomaly", "rba")
    write_json(tmp_path / "stage.json", made)
    (run,) = load_runs(tmp_path / "stage.json")
    assert run.best_score() == "rba+anomaly"


def test_claims_are_judged_by_the_figures():
    both = {"a": results({"rba": 80.0, "anomaly": 90.0}, 60.0), "b": results({"rba": 85.0}, 60.4)}
    peaks = {"a": 1000.0, "b": 2000.0}

    def holds(figure, better, than, **more):
        claim = {"text": "", "figure": figure, "better": better, "than": than, **more}
        return summary.judge(claim, both, peaks)["holds"]

    assert holds("auprc", ["a", "best"], ["b", "best"])
    assert not holds("auprc", ["a", "implicit"], ["b", "implicit"])
    assert holds("fpr95", ["a", "anomaly"], ["a", "rba"])
    assert not holds("mIoU", ["a"], ["b"])
    assert holds("mIoU", ["a"], ["b"], slack=0.5)
    assert holds("memory", ["a"], ["b"])
    assert holds("auprc", ["a", "anomaly"], ["a", "rba"], dataset="miniature_road_anomaly")
    claim = {"text": "", "figure": "auprc", "better": ["a", "rba"], "than": ["b", "rba"]}
    assert summary.judge(claim | {"dataset": "elsewhere"}, both, peaks) is None
    claim = {"text": "", "figure": "mIoU", "better": ["a"], "than": ["nowhere"]}
    assert summary.judge(claim, both, peaks) is None


def test_figures_of_the_paper_stand_next_to_ours():
    made = {"a": results({"rba": 80.0}), "b": results({"rba": 85.0})}
    made["a"]["model"] = {"parameters": 24e6, "trainable_parameters": 12e6, "peak_memory": 200.0}
    made["b"]["model"] = {"parameters": 24e6, "trainable_parameters": 2e6, "peak_memory": 150.0}
    column = {"says": "RbA", "stage": "b", "score": "rba", "figure": "auprc"}
    column["paper"] = {"road_anomaly21": 39.46, "miniature_road_anomaly": 28.72}
    costs = {"a": [192.8, 192.8, 1.0], "b": [192.8, 2.3, 0.62]}
    tables = [{"title": "One", "columns": [column]}, {"title": "Two", "costs": costs}]
    lines = writeup.paper_tables(tables, made)
    assert "| `road_anomaly21` | 39.46 | - |" in lines
    assert "| `miniature_road_anomaly` | 28.72 | 85.00 |" in lines
    assert "| `b` | 192.80 | 24.00 | 2.30 | 2.00 | 0.62 | 0.75 |" in lines
    assert writeup.paper_tables([], made) == []


def test_the_report_is_called_as_it_is_written():
    bound = inspect.signature(combine_reports).bind(["dir"], ["name"], Path("report"), title="t")
    assert list(bound.arguments) == ["output_dirs", "names", "report_dir", "title"]
