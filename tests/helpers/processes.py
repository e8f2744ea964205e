"""Processes of a test's own: started together as a launcher starts them, waited for, and killed.

They are forked from a server that has imported everything already, and are killed with all that they started.
"""

import contextlib
import multiprocessing.forkserver
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["helpers.killing"])
PATIENCE = 120
"""Seconds to wait for processes that do not end."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ensure_server():
    """Start the server that processes are forked from."""
    with pytest.MonkeyPatch.context() as patch:
        tests = Path(__file__).parents[1]
        folders = [
            str(tests),
            str(tests.parent),
            os.environ.get("PYTHONPATH", ""),
        ]  # the only one before Python 3.12
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
        multiprocessing.forkserver.ensure_running()


def start(job, *arguments, processes=1):
    """Start `job(*arguments)` in processes that find one another like those of a launcher."""
    ensure_server()
    port = free_port()
    ranks = [FORKS.Process(target=_rank, args=(rank, processes, port, job, arguments)) for rank in range(processes)]
    for process in ranks:
        process.start()
    return ranks


def _rank(rank, processes, port, job, arguments):
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # of loaders' workers
    torch.set_num_threads(1)
    if processes > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        os.environ.update({name: str(value) for name, value in {**numbers, **where}.items()})
    job(*arguments)
    sys.stdout.flush()
    if processes > 1:
        time.sleep(0.5)  # the other one may still be reading from this one
    os._exit(0)  # gloo sometimes aborts on the way out


def finish(ranks):
    for process in ranks:
        process.join(PATIENCE)
    codes = [process.exitcode for process in ranks]
    kill(ranks)
    assert codes == [0] * len(ranks)


def kill(ranks):
    for process in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # where it has no group of its own yet
        process.join(PATIENCE)


def kill_when(moment, ranks):
    """Kill all processes as soon as `moment()` is true. None may have ended before."""
    patience = time.monotonic() + PATIENCE
    try:
        while not moment():
            assert all(process.is_alive() for process in ranks), "ended before it could be killed"
            assert time.monotonic() < patience
            time.sleep(0.001)
    finally:
        kill(ranks)
    assert [process.exitcode for process in ranks] == [-signal.SIGKILL] * len(ranks)
