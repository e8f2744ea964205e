"""Measure steps on the CPU with memory that is returned as soon as it is freed, and with memory that is kept.

python -m benchmarks.speed.memory            # rows go to benchmarks/results/memory.jsonl; ten minutes
python -m benchmarks.speed.memory --quick    # a smoke test: one pair, nothing written

- Returning is what the C library of Linux does by default, and keeping what `softcam-hub` asks of it for the commands
  that compute for minutes (`softcam_hub/memory.py`).
- Every measurement runs in a process of its own. The two ways take turns, and the ratio is computed for each pair.
- A page that the system hands out is counted as a page fault.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch.nn.functional import cross_entropy

from softcam_hub.arguments import ArgumentParser
from softcam_hub.memory import SETTINGS, keep_freed_memory

from ..timing import Row, environment, in_turn, rounded, spread, warn_if_busy, write_rows

ROWS = Path(__file__).parents[1] / "results" / "memory.jsonl"
STEPS, WARM_UP, PAIRS = 3, 2, 5


class Case(NamedTuple):
    """What is computed: a training step or a forward pass of a network."""

    model: str
    side: int
    batch: int
    trains: bool


CASES = {
    "training": Case("tf_efficientnet_lite0", 224, 32, True),
    "prediction": Case("tf_efficientnet_lite0", 448, 16, False),
    "training of a small network": Case("test_resnet", 128, 32, True),
}


def compute(case: Case, steps: int) -> Row:
    """Compute the steps of a case, and return seconds and page faults of a step, and the most memory in megabytes."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = timm.create_model(case.model, num_classes=4).train(case.trains)
    images, labels = torch.randn(case.batch, 3, case.side, case.side), torch.randint(0, 4, (case.batch,))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    began, faults = 0.0, 0
    for step in range(-WARM_UP, steps):
        if step == 0:
            began, faults = time.perf_counter(), page_faults()
        with torch.set_grad_enabled(case.trains):
            loss = cross_entropy(model(images), labels)
        if case.trains:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    seconds, faults = time.perf_counter() - began, page_faults() - faults
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds / steps, "page_faults": faults / steps, "megabytes": most}


def page_faults() -> int:
    """Return the pages that the system has handed out to this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def in_fresh_process(name: str, keep: bool, steps: int) -> Row:
    """Compute a case in a process that keeps or returns freed memory."""
    variables = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-m", "benchmarks.speed.memory", "--child", name, str(int(keep)), str(steps)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    found: Row = json.loads(done.stdout)
    return found


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure one pair of predictions, and write nothing")
    parser.add_argument("--child", nargs=3, metavar="WORD", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, keep, steps = arguments.child
        if int(keep) and not keep_freed_memory():
            sys.exit("the C library of this system cannot be asked to keep memory")
        print(json.dumps(compute(CASES[name], int(steps))))
        return
    warn_if_busy()
    rows = []
    for name in ["prediction"] if arguments.quick else CASES:
        case, steps, pairs = CASES[name], 1 if arguments.quick else STEPS, 1 if arguments.quick else PAIRS
        ways = [lambda keep=keep, name=name, steps=steps: in_fresh_process(name, keep, steps) for keep in (False, True)]
        measured = in_turn(*ways, pairs)
        row: Row = {"case": name, **case._asdict(), "pairs": pairs}
        for way, found in zip(("returned", "kept"), zip(*measured, strict=True), strict=True):
            row |= {f"{way}_{what}": rounded(statistics.median(one[what] for one in found)) for what in found[0]}
        ratios = [first["seconds"] / second["seconds"] for first, second in measured]
        row |= spread("ratio", ratios if len(ratios) > 1 else ratios * 2) | environment() | {"threads": 1}
        print(json.dumps(row), flush=True)
        rows.append(row)
    if not arguments.quick:
        write_rows(rows, ROWS)


if __name__ == "__main__":
    main()
