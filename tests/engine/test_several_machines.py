"""Two hosts: training and evaluation give what one host gives, and survive the loss of one.

Two network namespaces with a cable between them are two hosts: each has its own loopback and its
own address, and a process of one reaches the other only through the network.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import small_run

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.213.77.1", "10.213.77.2")


def run_ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def reason_to_skip():
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if not (shutil.which("ip") and shutil.which("unshare")):
        return "needs the commands ip and unshare (Debian: iproute2, util-linux)"
    return "" if torch.distributed.is_gloo_available() else "torch without gloo"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip() or "can run"),
]


class Host:
    """A network namespace in which commands run, and what they said."""

    def __init__(self, number, folder):
        self.space = f"anoseg{os.getpid()}-{number}"
        self.number, self.log = number, folder / f"host{number}.txt"

    def start(self, *command):
        """Start Python with `command`, where this host's name stands for loopback or nothing."""
        prefix = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', "localhost"]
        environment = {
            **os.environ,
            **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            "GLOO_SOCKET_IFNAME": f"cable{self.number}",
        }
        words = ["ip", "netns", "exec", self.space, *prefix, sys.executable, *map(str, command)]
        with open(self.log, "w") as log:
            return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def said(self):
        return self.log.read_text()

    def kill(self):
        """Kill every process of this host at once."""
        listed = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True)
        for pid in listed.stdout.split():
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def hosts(tmp_path):
    both = [Host(number, tmp_path) for number in range(2)]
    try:
        try:
            for host in both:
                run_ip("netns", "add", host.space)
            cable = ["link", "add", "cable0", "netns", both[0].space, "type", "veth"]
            run_ip(*cable, "peer", "name", "cable1", "netns", both[1].space)
            for number, host in enumerate(both):
                address = ADDRESSES[number]
                run_ip("-n", host.space, "addr", "add", f"{address}/24", "dev", f"cable{number}")
                run_ip("-n", host.space, "link", "set", "lo", "up")
                run_ip("-n", host.space, "link", "set", f"cable{number}", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield both
    finally:
        for host in both:
            host.kill()
            # Its end of the cable goes with it.
            subprocess.run(["ip", "netns", "del", host.space], capture_output=True)


def write_config(folder, name, *overrides):
    more = ("MODEL.DEVICE", "cpu", *overrides)
    path = folder / f"{name}.yaml"
    path.write_text(small_run(folder, name, *more, tested=True).dump())
    return path


def launch_line(config, rank, *more):
    """The arguments of detectron2's launch on the host `rank` of two."""
    line = [ROOT / "train_net.py", "--config-file", config, "--num-machines", 2]
    return [*line, "--machine-rank", rank, "--dist-url", f"tcp://{ADDRESSES[0]}:29500", *more]


def finish(processes, hosts, status=0, seconds=400):
    end = time.monotonic() + seconds
    for process, host in zip(processes, hosts, strict=False):
        process.wait(timeout=max(1, end - time.monotonic()))
        assert process.returncode == status, host.said()


def wait_for(path, process, host, seconds=240):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, host.said()
        time.sleep(0.1)


def run_on_one_host(folder, config):
    command = [sys.executable, ROOT / "train_net.py", "--config-file", config, "--num-gpus", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def weights_of(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def figures_of(folder):
    results = json.loads((folder / "report" / "results.json").read_text())
    return results["datasets"], results["closed_set"]


def assert_equal_runs(folder, expected):
    ours, theirs = weights_of(folder), weights_of(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert figures_of(folder) == figures_of(expected)


def test_two_hosts_train_and_evaluate_as_two_processes_of_one(hosts, tmp_path):
    run_on_one_host(tmp_path, write_config(tmp_path, "one"))
    config = write_config(tmp_path, "two")
    finish([host.start(*launch_line(config, rank)) for rank, host in enumerate(hosts)], hosts)
    assert_equal_runs(tmp_path / "two", tmp_path / "one")
    assert "on 2 batches" in hosts[0].said()  # of four: the other host took the others


def test_a_host_that_is_killed_ends_the_run_of_the_other_with_a_message(hosts, tmp_path):
    config = write_config(tmp_path, "run", "SOLVER.MAX_ITER", 100_000)
    first, second = [host.start(*launch_line(config, rank)) for rank, host in enumerate(hosts)]
    wait_for(tmp_path / "run" / "metrics.json", first, hosts[0])
    hosts[1].kill()
    second.wait(10)
    finish([first], hosts, status=2, seconds=60)
    last = hosts[0].said().strip().splitlines()[-1]
    assert last.startswith("error: rank ") and "--resume" in last
