"""Launch a job on one or more ranks; report one error and leave no process behind."""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from anoseg_d2.utils.cli import USER_ERRORS, one_message

# What gloo says in a rank whose peer has died.
_LOST_PEER = ("connection closed by peer", "connection reset by peer", "socket closed")


def launch_ranks(
    main: Callable,
    num_ranks: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
) -> None:
    """Call `main(*args)` on every rank, as detectron2's `launch` does.

    Args:
        main: a function of a module, so that new processes can import it.
        num_ranks: processes on this machine, one per GPU.
        num_machines, machine_rank, dist_url: as in detectron2's `launch`.
    Raises:
        KeyboardInterrupt: a rank was asked to stop, and every rank has.
        ValueError: a rank found a mistake of the user's, or died; the message is that rank's.
    """
    if num_ranks * num_machines == 1:
        main(*args)
        return
    reports = multiprocessing.get_context("spawn").SimpleQueue()
    died = None
    with _signals_go_to_ranks():
        try:
            launch(
                _run_rank,
                num_ranks,
                num_machines=num_machines,
                machine_rank=machine_rank,
                dist_url=dist_url,
                args=(main, reports, args),
            )
        except ProcessExitedException as error:
            died = error
    found: dict[str, str] = {}
    while not reports.empty():
        kind, message = reports.get()
        found.setdefault(kind, message)
    if "error" in found:
        raise ValueError(found["error"]) from died
    if "stopped" in found and (died is None or not died.signal_name):
        raise KeyboardInterrupt
    if died is not None:
        how = f"was killed by {died.signal_name}" if died.signal_name else "died"
        raise ValueError(
            f"rank {died.error_index} {how}; the other ranks were stopped. Continue from the last "
            "checkpoint with --resume"
        ) from died


def _run_rank(main: Callable, reports, args: tuple) -> None:
    # A group of its own: Ctrl-C in the terminal reaches only the launcher, which passes it on
    # once. A second one would end the rank in the middle of saving.
    os.setpgrp()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        main(*args)
        _leave_group()
    except KeyboardInterrupt:
        reports.put(("stopped", ""))
        raise
    except USER_ERRORS as error:
        reports.put(("error", one_message(error)))
        sys.exit(2)
    except RuntimeError as error:
        # Only the rank that died is news; what its peers say of it depends on who notices first.
        if not any(words in str(error).lower() for words in _LOST_PEER):
            raise
        sys.exit(3)


@contextlib.contextmanager
def _signals_go_to_ranks() -> Iterator[None]:
    """Pass SIGINT and SIGTERM on to the ranks, which then end themselves."""

    def forward(number, frame):
        for process in multiprocessing.active_children():
            if process.pid is not None:
                os.kill(process.pid, number)

    previous = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave_group() -> None:
    """Close the connections between ranks once all are done, before the interpreter shuts down.

    A rank that ends with open connections, or while another still reads from it, can be aborted
    in its last moment, and a run that is complete would look as if it had failed.
    """
    comm.synchronize()
    gc.collect()  # models that were wrapped for several ranks hold connections too
    torch.distributed.destroy_process_group()
