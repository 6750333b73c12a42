"""Mistakes in the number of processes are found before any of them is started."""

import pytest

from anoseg_d2.commands import train


@pytest.mark.parametrize(
    "options,message",
    [
        (["--num-gpus", "0"], "--num-gpus is 0"),
        (["--resume", "--overwrite"], "--resume continues a run that --overwrite deletes"),
        (["--num-gpus", "1000000"], "--num-gpus is 1000000"),
        (["--machine-rank", "1"], "--machine-rank is 1; it must be an integer in 0..0"),
        (["--machine-rank", "-1"], "--machine-rank is -1; it must be an integer in 0..0"),
        (["--num-machines", "0"], "--num-machines is 0; it must be an integer in 1.."),
        (["--num-machines", "2"], "needs the address of machine 0"),
        (["--dist-url", "nonsense"], "--dist-url is 'nonsense'; it must be auto or tcp://HOST"),
        (["--dist-url", "tcp://here"], "--dist-url is"),
    ],
)
def test_ranks_that_cannot_be_started_are_refused(options, message, capsys):
    assert train.main([*options, "--config-file", "nowhere"]) == 2
    assert message in capsys.readouterr().err
