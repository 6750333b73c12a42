"""The driver on studies: which runs they need, what is kept of them, and the tables."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import run
import yaml
from driver.recipe import Step, load_recipe
from driver.tables import Figures

ROOT = Path(__file__).resolve().parents[2]

SHIPPED = [ROOT / "experiments" / name / "studies.yaml" for name in ("ablations", "beyond")]

PLAN = """
title: "A test"
base: {recipe}
output: {folder}/ablations
publish: {folder}/tables
set: {{DATASETS.TEST: [camvid_val, camvid_anomaly]}}
runs:
  base: {{says: plain, config: configs/camvid/arcface.yaml, from: "{{base}}/one.pth"}}
  fast: {{says: fast, config: configs/camvid/arcface.yaml, from: "{{base}}/one.pth", set: {{SOLVER.BASE_LR: 0.001}}}}
  seen: {{says: seen again, config: configs/camvid/arcface.yaml, evaluate: "{{output}}/base/seed0/model_final.pth"}}
studies:
  - {{name: rate, question: "Faster?", runs: [base, fast], seeds: [0, 1], scores: [rba], paper: "yes.", finding: "No.", ships: "slow."}}
  - {{name: again, question: "Again?", runs: [base, seen], seeds: [0, 1], scores: [rba, msp], costs: true}}
"""  # noqa: E501


def results(auprc, **model):
    figures = {"auprc": auprc, "fpr95": 100 - auprc, "auroc": auprc}
    return {
        "model": {"trainable_parameters": 1200, "parameters": 3400, **model},
        "closed_set": {"camvid_val": {"mIoU": auprc / 2}},
        "datasets": {"camvid_anomaly": {"scores": {"rba": figures, "msp": figures}}},
    }


@pytest.fixture
def studies(tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"output: {tmp_path}/start\n")
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "one.pth").write_bytes(b"weights")
    path = tmp_path / "studies.yaml"
    path.write_text(PLAN.format(recipe=tmp_path / "recipe.yaml", folder=tmp_path))
    return path


def is_memory(command):
    return tuple(command[1:4]) == run.BUILD_MEMORY


@pytest.fixture
def trained(monkeypatch):
    """Commands of the runs, which write a results.json at once."""
    commands = []

    def child(command, log, environment, tick):
        commands.append(command)
        tick(None)
        if is_memory(command):
            return 0, 0.0
        folder = Path(command[command.index("OUTPUT_DIR") + 1])
        (folder / "report").mkdir(parents=True, exist_ok=True)
        (folder / "model_final.pth").write_bytes(b"weights")
        auprc = 50.0 + 10 * ("fast" in str(folder)) + int(folder.name[-1])
        (folder / "report" / "results.json").write_text(json.dumps(results(auprc)))
        return 0, 0.0

    monkeypatch.setattr(run, "run_child", child)
    return commands


@pytest.mark.slow
@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.parent.name)
def test_the_shipped_studies_name_keys_that_exist(shipped, capsys):
    assert run.main([str(shipped), "--list"]) == 0  # reads every config with its settings
    listed = [line.split(":")[0].split()[-1] for line in capsys.readouterr().out.splitlines()]
    recipe = load_recipe(shipped)
    assert listed == [step.name for step in recipe.steps]
    asked = {name for study in recipe.studies for name in study.runs}
    assert asked == set(yaml.safe_load(shipped.read_text())["runs"]), "a run that no study asks for"


def test_every_run_is_made_once_with_each_seed_and_evaluations_with_one(studies):
    names = [(step.run, step.seed) for step in load_recipe(studies).steps]
    assert names == [("base", 0), ("fast", 0), ("base", 1), ("fast", 1), ("seen", 0)]


def test_a_checkpoint_gets_its_memory_before_it_is_evaluated_with_each_seed(studies, trained):
    text = studies.read_text().replace("{output}/base/seed0/", "{output}/base/seed{seed}/")
    studies.write_text(text.replace('model_final.pth"}', 'model_final.pth", memory: camvid_train}'))
    assert run.main([str(studies), "--only", "again"]) == 0
    output = studies.parent / "ablations"
    built, evaluated = trained[-2:]
    with_memory = str(output / "seen" / "seed1" / "with_memory.pth")
    assert is_memory(built)
    assert built[4:] == [
        str(output / "base" / "seed1" / "model_final.pth"),
        *("--dataset", "camvid_train", "--seed", "1", "--overwrite", "--output", with_memory),
    ]
    assert "--eval-only" in evaluated
    assert evaluated[evaluated.index("MODEL.WEIGHTS") + 1] == with_memory
    assert sum(map(is_memory, trained)) == 2
    digest = load_recipe(studies).steps[-1].digest
    studies.write_text(studies.read_text().replace("camvid_train", "camvid_drives_train"))
    assert load_recipe(studies).steps[-1].digest != digest


def test_seed_0_of_what_the_base_has_trained_is_only_evaluated(studies, trained):
    one, start = studies.parent / "start" / "one.pth", studies.parent / "start"
    text = studies.read_text().replace(
        'yaml, from: "{base}/one.pth"}', 'yaml, from: "{base}/one.pth", finished: "{base}/two.pth"}'
    )
    studies.write_text(text)
    without = {step.name: step for step in load_recipe(studies).steps}
    assert without["base_seed0"].trains and without["base_seed0"].weights == one
    (start / "two.pth").write_bytes(b"weights")
    steps = {step.name: step for step in load_recipe(studies).steps}
    assert not steps["base_seed0"].trains and steps["base_seed0"].weights == start / "two.pth"
    assert steps["base_seed1"].trains and steps["base_seed1"].weights == one
    assert steps["seen_seed0"].weights == start / "two.pth", "what evaluates it follows"
    assert steps["fast_seed0"].trains
    assert all(steps[name].digest == without[name].digest for name in steps)
    assert run.main([str(studies)]) == 0
    assert [command[4] for command in trained].count("--eval-only") == 2


def test_a_finished_run_is_not_made_again_and_a_changed_one_is_when_asked(studies, trained, capsys):
    arguments = [str(studies)]
    assert run.main(arguments) == 0
    assert len(trained) == 5
    assert [c[c.index("--config-file") + 2] for c in trained].count("--eval-only") == 1
    assert run.main(arguments) == 0
    assert len(trained) == 5
    old = studies.parent / "ablations" / "fast" / "seed0" / "old_checkpoint"
    old.write_bytes(b"")
    studies.write_text(studies.read_text().replace("0.001", "0.002"))
    assert run.main(arguments) == 2
    assert "--only fast_seed0 --redo" in capsys.readouterr().err
    assert run.main([*arguments, "--only", "fast", "--redo"]) == 0
    assert len(trained) == 7
    assert not old.exists(), "a run with other settings must not continue from the old one"


def test_published_figures_stand_on_a_machine_without_the_output(studies, trained):
    run.main([str(studies)])
    shutil.rmtree(studies.parent / "ablations")
    assert run.main([str(studies)]) == 0
    assert len(trained) == 5


def test_other_settings_do_not_touch_the_published_csv(studies, trained, tmp_path):
    run.main([str(studies)])
    before = (studies.parent / "tables" / "results.csv").read_bytes()
    assert run.main([str(studies), "--output", str(tmp_path / "try"), "SOLVER.BASE_LR", "1.0"]) == 0
    assert (tmp_path / "try" / "writeup" / "results.csv").is_file()
    assert (studies.parent / "tables" / "results.csv").read_bytes() == before


def test_an_interrupted_run_continues_in_its_folder(studies, monkeypatch, capsys):
    def child(command, log, *rest):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("$ command\nkilled\n")
        kept.parent.mkdir(parents=True, exist_ok=True)
        return 1, 0.0

    kept = studies.parent / "ablations" / "base" / "seed0" / "last_checkpoint"
    monkeypatch.setattr(run, "run_child", child)
    assert run.main([str(studies)]) == 1
    kept.write_bytes(b"")
    assert run.main([str(studies)]) == 1
    assert kept.exists() and "base_seed0 failed" in capsys.readouterr().out


def test_two_commands_side_by_side_share_the_runs(studies, trained, monkeypatch):
    begun = run.run_child

    def child(command, *rest):
        if len(trained) == 1:  # a second command, during the first run of the first
            assert run.main([str(studies), "--only", "rate"]) == 0
        return begun(command, *rest)

    monkeypatch.setattr(run, "run_child", child)
    assert run.main([str(studies)]) == 0
    folders = [command[command.index("OUTPUT_DIR") + 1] for command in trained]
    assert len(folders) == len(set(folders)) == 5
    figures = Figures(studies.parent / "tables" / "results.csv")
    assert {row["run"] for row in figures.rows} == {"base", "fast", "seen"}


def test_tables_hold_means_ranges_and_gains_seed_by_seed(studies, trained):
    run.main([str(studies)])
    page = (studies.parent / "tables" / "README.md").read_text()
    assert "| plain | 0, 1 | 25.2 (25.0..25.5) | 50.5 (50.0..51.0) / 49.5 (49.0..50.0) |  |" in page
    assert "| fast | 0, 1 | 30.2 (30.0..30.5) | 60.5 (60.0..61.0) / 39.5 (39.0..40.0) |" in page
    assert "| +10.0, +10.0 |" in page and "5 of 5 runs are in it." in page
    assert "| seen again | 0 | 25.0 | 50.0 / 50.0 | 50.0 / 50.0 | +0.0 | 1,200 | - | - |" in page
    assert "| Faster? | yes. | slow. |" in page
    body = page[page.index("## Faster?") :]
    assert body.index("Faster?") < body.index("No.") < body.index("Again?")


def step(run, seed=0, digest="aa"):
    return Step(
        f"{run}_seed{seed}", 0, (), Path(run), run=run, seed=seed, digest=digest, config=Path("c")
    )


def test_the_csv_comes_back_as_it_was(tmp_path):
    figures = Figures(tmp_path / "results.csv")
    figures.add(step("b", 1), results(12.5, peak_memory=300.25, step_seconds=None))
    figures.add(step("a", 0, "bb"), results(1 / 3))
    again = Figures(tmp_path / "results.csv")
    assert again.has(step("b", 1))
    assert not again.has(step("b", 1, "other")) and not again.has(step("b", 0))
    assert again.of("b", "camvid_anomaly", "rba")[1]["peak_memory"] == 300.25
    assert again.of("b", "camvid_anomaly", "rba")[1]["step_seconds"] is None
    assert again.of("a", "camvid_anomaly", "msp")[0]["auprc"] == pytest.approx(1 / 3)


def _add_many(path, name):
    figures = Figures(path)
    for seed in range(20):
        figures.add(step(name, seed), results(10.0))


def test_two_commands_lose_none_of_each_other_s_figures(tmp_path):
    path = tmp_path / "results.csv"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_add_many, [path, path], ["a", "b"]))
    rows = {(row["run"], row["seed"]) for row in Figures(path).rows}
    assert rows == {(name, seed) for name in "ab" for seed in range(20)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("from: \"{base}/one.pth\"}", "}", "needs either from or evaluate"),
        ("runs: [base, fast]", "runs: [base, quick]", "unknown runs ['quick']"),
        ("/one.pth\"}", "/one.pth\", memory: camvid_train}", "'base' trains"),
        ("costs: true", "cost: true", "unknown ['cost']"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_studies_is_named(studies, old, new, message, capsys):
    text = studies.read_text()
    assert old in text
    studies.write_text(text.replace(old, new, 1))
    assert run.main([str(studies)]) == 2
    assert message in capsys.readouterr().err


def test_missing_checkpoints_and_studies_are_named(studies, trained, capsys):
    (studies.parent / "start" / "one.pth").unlink()
    assert run.main([str(studies)]) == 2
    assert "recipe.yaml makes the stages" in capsys.readouterr().err
    assert run.main([str(studies), "--only", "speed"]) == 2
    assert "no step named 'speed'; there are rate, again" in capsys.readouterr().err


def test_a_recipe_without_anything_to_do_is_refused(tmp_path):
    (tmp_path / "empty.yaml").write_text("title: x\noutput: out\nsteps: []\n")
    with pytest.raises(ValueError, match="steps"):
        load_recipe(tmp_path / "empty.yaml")
