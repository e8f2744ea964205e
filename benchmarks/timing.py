"""How the benchmarks measure: interleaved pairs, the rise of resident memory, rows of JSON.

- Both sides of a comparison run in turn, A B B A A B ..., and the ratio is taken pair by pair: when the machine slows
  down, it slows both sides of a pair.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

Row = dict[str, Any]
Step = Callable[[], object]


class Cost(NamedTuple):
    wall: float
    cpu: float


def cost(step: Step) -> Cost:
    """Seconds that one call takes, on the clock and summed over this process's threads."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def in_turn(a: Callable[[], Any], b: Callable[[], Any], pairs: int) -> list[tuple[Any, Any]]:
    """What both give, `pairs` times; they take turns in coming first."""
    return [(a(), b()) if pair % 2 == 0 else (b(), a())[::-1] for pair in range(pairs)]


def measure(a: Step, b: Step, pairs: int, warm_up: int = 2) -> Row:
    """Time and CPU time of two steps, and their ratio a / b."""
    in_turn(a, b, warm_up)  # oneDNN picks kernels, the allocator gets its blocks
    costs = in_turn(lambda: cost(a), lambda: cost(b), pairs)
    ratios = [first.wall / second.wall for first, second in costs]
    return {
        "pairs": pairs,
        "a_seconds": rounded(statistics.median(first.wall for first, _ in costs)),
        "b_seconds": rounded(statistics.median(second.wall for _, second in costs)),
        **spread("ratio", ratios),
        "a_cpu_seconds": rounded(statistics.median(first.cpu for first, _ in costs)),
        "b_cpu_seconds": rounded(statistics.median(second.cpu for _, second in costs)),
        **spread("cpu_ratio", [first.cpu / second.cpu for first, second in costs]),
    }


def spread(name: str, values: list[float]) -> Row:
    """Median, quartiles and range of `values`, as columns of a row."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        name: rounded(middle),
        f"{name}_quartiles": [rounded(low), rounded(high)],
        f"{name}_range": [rounded(min(values)), rounded(max(values))],
    }


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def environment() -> Row:
    return {
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def write(rows: list[Row], path: Path) -> None:
    """One JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def warn_if_busy() -> None:
    """A step of 1 ms takes 100 ms when threads wait for one another to be scheduled."""
    if os.getloadavg()[0] > 0.5:
        print("other programs are running: wait until the machine is quiet, or use --threads 1", file=sys.stderr)


def rise_in_mib(step: Step) -> float | None:
    """How far a step lifts resident memory above what it is before, in MiB; None where Linux does not tell.

    Not `ru_maxrss`: a child process inherits its parent's, and imports leave a peak of their own behind.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident_kib("VmRSS")
    step()
    return rounded((resident_kib("VmHWM") - before) / 1024)


def resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
