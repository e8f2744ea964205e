"""Measure an update of training with threads that spin while they wait, and with threads that sleep.

python -m benchmarks.speed.threads            # rows go to benchmarks/results/threads.jsonl; five minutes
python -m benchmarks.speed.threads --quick    # a smoke test: two updates, nothing written

- Spinning is what torch does by default, and sleeping what `softcam-hub` sets (`softcam_hub/threads.py`).
- Every measurement runs in a process of its own, once on a quiet machine and once beside as many busy processes as
  there are cores. The two ways take turns, and the ratio is computed for each pair.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
import torch

from softcam_hub.arguments import ArgumentParser

from ..timing import environment, in_turn, rounded, spread, warn_if_busy, write_rows

ROWS = Path(__file__).parents[1] / "results" / "threads.jsonl"
UPDATES, WARM_UP, PAIRS = 10, 3, 5


def seconds_per_update(updates: int) -> float:
    """Train a small network, and return the mean seconds of an update."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    images, labels = torch.randn(32, 3, 128, 128), torch.randint(0, 4, (32,))
    began = 0.0
    for update in range(-WARM_UP, updates):
        if update == 0:
            began = time.perf_counter()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - began) / updates


def in_fresh_process(policy: str | None, updates: int) -> float:
    """Return the seconds of an update in a process with a policy of waiting."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    if policy is not None:
        variables["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, "-m", "benchmarks.speed.threads", "--child", str(updates)]
    return float(subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep cores busy inside the `with`."""
    others = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(processes)]
    try:
        for other in others:
            other.start()
        yield
    finally:
        for other in others:
            other.kill()


def _spin() -> None:
    while True:
        pass


def main() -> None:
    """Measure on a quiet and on a busy machine, and write the rows."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure one pair of two updates, and write nothing")
    parser.add_argument("--child", type=int, metavar="N", help="measure N updates in this process, and print seconds")
    arguments = parser.parse_args()
    if arguments.child:
        print(seconds_per_update(arguments.child))
        return
    warn_if_busy()
    updates, pairs = (2, 1) if arguments.quick else (UPDATES, PAIRS)
    rows = []
    for others in (0, os.cpu_count() or 1):
        with busy(others):
            times = in_turn(
                lambda: in_fresh_process(None, updates), lambda: in_fresh_process("PASSIVE", updates), pairs
            )
        spinning, sleeping = (sorted(column)[len(column) // 2] for column in zip(*times, strict=True))
        row = {"busy_processes": others, "spinning_seconds": rounded(spinning), "sleeping_seconds": rounded(sleeping)}
        row |= {"pairs": pairs, **spread("ratio", [first / second for first, second in times]), **environment()}
        print(json.dumps(row))
        rows.append(row)
    if not arguments.quick:
        write_rows(rows, ROWS)


if __name__ == "__main__":
    main()
