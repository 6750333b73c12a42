"""What all commands share: how much they say, and what a mistake or a long job looks like."""

import argparse
import logging

import pytest

from anoseg_d2.utils import cli


@pytest.fixture(autouse=True)
def _usual_verbosity_afterwards():
    yield
    cli.set_verbosity(0)


def parse(*line):
    parser = argparse.ArgumentParser()
    cli.add_verbosity_options(parser)
    return parser.parse_args(line).verbosity


def test_verbosity_is_one_number():
    assert [parse(), parse("-q"), parse("--quiet"), parse("-v"), parse("--verbose")] == [
        0, -1, -1, 1, 1,
    ]  # fmt: skip


def test_quiet_silences_output_but_no_warning(capsys):
    def work():
        cli.say("a figure")
        logging.getLogger("anoseg_d2.anything").warning("odd labels")

    cli.run_command(work)
    assert capsys.readouterr().out == "a figure\n"
    cli.run_command(work, verbosity=-1)
    assert capsys.readouterr().out == ""
    assert logging.getLogger().level == logging.WARNING


def test_verbose_shows_the_log_and_the_traceback():
    def work():
        assert logging.getLogger("anoseg_d2.anything").isEnabledFor(logging.INFO)
        raise ValueError("a mistake")

    assert cli.run_command(lambda: cli.say()) == 0
    assert not logging.getLogger("anoseg_d2.anything").isEnabledFor(logging.INFO)
    with pytest.raises(ValueError, match="a mistake"):
        cli.run_command(work, verbosity=1)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    return now


def test_a_job_of_a_few_seconds_shows_no_progress(clock, capsys):
    with cli.Progress("read", 4) as progress:
        for _ in range(4):
            clock[0] += 1
            progress.update()
    assert capsys.readouterr() == ("", "")


def test_a_longer_job_says_how_far_it_is_and_what_is_left(clock, capsys):
    with cli.Progress("read", 100) as progress:
        for _ in range(100):
            clock[0] += 1
            progress.update()
    assert capsys.readouterr().err.splitlines() == [
        "read 5/100 images, 95 s left",
        "read 35/100 images, 65 s left",
        "read 65/100 images, 35 s left",
        "read 95/100 images, 5 s left",
        "read 100/100 images, 0 s left",
    ]


def test_a_quiet_job_shows_no_progress_at_all(clock, capsys):
    cli.set_verbosity(-1)
    with cli.Progress("read", 2) as progress:
        for _ in range(2):
            clock[0] += 60
            progress.update()
    assert capsys.readouterr() == ("", "")
