"""What all commands share: how much they say, and what a mistake or a long job looks like."""

import argparse
import io
import logging
import re
import sys
import warnings

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


def test_a_short_job_shows_no_progress(capsys):
    with cli.Progress("read", 4) as progress:
        for _ in range(4):
            progress.update()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("total", "pattern"),
    [(3, r"read (\d)/3 images, \d+ s left"), (None, r"read (\d) images in \d+ s")],
)
def test_a_long_job_without_a_terminal_says_how_far_it_is_line_by_line(capsys, total, pattern):
    with cli.Progress("read", total, period=0) as progress:
        for _ in range(3):
            progress.update()
    assert re.findall(pattern, capsys.readouterr().err) == ["0", "1", "2", "3"]


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with cli.Progress("read", 3) as progress:
        progress.start_t -= 60  # as if a minute had passed
        progress.last_print_t -= 60
        progress.update()
    shown = sys.stderr.getvalue()
    assert "read:  33%" in shown and shown.rstrip("\r ").count("\n") == 0


def test_a_quiet_job_shows_no_progress_at_all(capsys):
    cli.set_verbosity(-1)
    with cli.Progress("read", 2, period=0) as progress:
        progress.update(2)
    assert capsys.readouterr() == ("", "")


def test_a_warning_is_one_line():
    said = []

    def work():
        said.append(warnings.formatwarning("a\nb", UserWarning, "file.py", 3))

    before = warnings.formatwarning
    assert cli.run_command(work) == 0
    assert said == ["warning: a\\nb\n"] and warnings.formatwarning is before


def test_names_of_strangers_cannot_steer_the_terminal(capsys):
    name = "a\x1b]0;title\x07\nerror: all is well \u202etxt.png"
    assert cli.printable(name) == r"a\x1b]0;title\x07\nerror: all is well \u202etxt.png"
    assert cli.printable("Straße_日本 😀.png") == "Straße_日本 😀.png"
    cli.say("two\nlines\tand \x1b[2J")
    assert capsys.readouterr().out == "two\nlines\tand \\x1b[2J\n"

    def work():
        raise ValueError("no such file: \x1b[2J")

    assert cli.run_command(work) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (RuntimeError("can't start new thread"), "thread"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "worker"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "allocate"),
        (RuntimeError("std::bad_alloc"), "bad_alloc"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_limits_of_the_machine_are_answered_in_one_line(error, word, capsys):
    def work():
        raise error

    assert cli.run_command(work) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and word in line


def test_a_defect_keeps_its_traceback():
    def work():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes"):
        cli.run_command(work)
