"""OUTPUT_DIR belongs to one run, and what else is in it belongs to the user."""

import pytest

from anoseg_d2.checkpoint.files import last_checkpoint
from anoseg_d2.engine.output_dir import claim_output_dir
from anoseg_d2.utils.files import atomic_path, temporary_path

WRITTEN = (
    *("model_0000009.pth", "model_final.pth", "model_ema.pth", "last_checkpoint", "metrics.json"),
    *("model_final_adapter.safetensors", "events.out.tfevents.1764.host.1.0", "config.yaml"),
    *("report/index.html", "report/results.json", "ema/report/results.csv"),
    *("inference/a/result.json", "inference/a/images/1.npz", "ema/inference/a/result.json"),
)
MINE = (
    *("notes.txt", "notes.tmp", ".draft.tmp", ".my.document.tmp", "data.tmp/thesis.txt"),
    *("model_of_colleague.pth", "videos/holiday.part.mp4", ".git.tmp/config"),
    *("report/thesis.docx", "report/.x.tmp", "inference/mine/notes.txt", "ema/plan.txt"),
    *("inference/mine/.draft.tmp", "events.out.tfevents.txt", "model_x.pth/inside"),
)


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("model_final.pth")


def files(folder):
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    return set(found)


@pytest.fixture
def run(tmp_path):
    """What a training leaves, among the user's own files."""
    fill(tmp_path / "run", (*WRITTEN, *MINE))
    return tmp_path / "run"


def test_a_new_training_into_a_finished_run_names_the_ways_out(run):
    refused = pytest.raises(ValueError, match="model_final.pth.*--resume.*--overwrite.*OUTPUT_DIR")
    with refused:
        claim_output_dir(run)
    claim_output_dir(run, training=False)
    assert last_checkpoint(run) == run / "model_final.pth"


@pytest.mark.parametrize("training", [True, False])
def test_a_start_deletes_nothing_of_the_users(run, training):
    claim_output_dir(run, training=training, resume=True)
    assert files(run) == {*WRITTEN, *MINE}


def test_overwriting_deletes_the_files_of_a_run_and_nothing_else(run):
    claim_output_dir(run, overwrite=True)
    assert files(run) == set(MINE)
    assert last_checkpoint(run) is None


def test_temporary_files_of_killed_runs_go_with_the_run(run):
    for place in (run, run / "report", run / "ema"):
        temporary_path(place).write_text("half")
    claim_output_dir(run, overwrite=True)
    assert files(run) == set(MINE)


def test_a_file_that_another_command_is_writing_stays(run):
    with atomic_path(run / "model_best.pth") as temporary:
        temporary.write_text("half")
        claim_output_dir(run, training=False)
        assert temporary.exists()
    assert (run / "model_best.pth").read_text() == "half"


def test_a_folder_that_is_a_link_to_somewhere_else_is_left_alone(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    fill(elsewhere, ("results.json",))
    fill(tmp_path / "run", ("model_final.pth",))
    (tmp_path / "run" / "report").symlink_to(elsewhere)
    claim_output_dir(tmp_path / "run", overwrite=True)
    assert files(elsewhere) == {"results.json"}


def test_an_output_folder_that_is_a_file_is_named(tmp_path):
    path = tmp_path / "run"
    path.write_text("")
    with pytest.raises(ValueError, match="OUTPUT_DIR .*run is a file"):
        claim_output_dir(path)


def test_a_last_checkpoint_that_is_not_text_is_named(tmp_path):
    (tmp_path / "last_checkpoint").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="last_checkpoint.*name"):
        last_checkpoint(tmp_path)
