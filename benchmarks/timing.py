"""Measure time and memory, and read and write rows of results.

- The two sides of a comparison take turns (A B B A A B ...), and the ratio is computed for each pair. A
  machine that slows down then slows both sides of a pair.
"""

import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

Row = dict[str, Any]
Step = Callable[[], object]


class Cost(NamedTuple):
    """Seconds on the clock, and seconds of all threads of this process together."""

    wall: float
    cpu: float


def cost(step: Step) -> Cost:
    """Measure one call of a step."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def in_turn(a: Callable[[], Any], b: Callable[[], Any], pairs: int) -> list[tuple[Any, Any]]:
    """Call two functions `pairs` times, with either first in turn, and return their results in pairs."""
    return [(a(), b()) if pair % 2 == 0 else (b(), a())[::-1] for pair in range(pairs)]


def measure(a: Step, b: Step, pairs: int, warm_up: int = 2) -> Row:
    """Measure the time and the CPU time of two steps, and the ratio a / b.

    Args:
        a: First step.
        b: Second step.
        pairs: Number of measured pairs.
        warm_up: Number of pairs that run before, while torch chooses kernels and allocates memory.
    """
    in_turn(a, b, warm_up)
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
    """Return median, quartiles and range of values as columns of a row."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        name: rounded(middle),
        f"{name}_quartiles": [rounded(low), rounded(high)],
        f"{name}_range": [rounded(min(values)), rounded(max(values))],
    }


def rounded(value: float) -> float:
    """Round to four digits."""
    return float(f"{value:.4g}")


def environment() -> Row:
    """Describe machine, versions and threads as columns of a row."""
    return {
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def add_threads(parser: ArgumentParser) -> None:
    """Add the option `--threads` to the parser of a measurement, for `prepare`."""
    parser.add_argument("--threads", type=int, help="torch's threads; one varies less beside other programs")


def prepare(threads: int | None = None) -> None:
    """Warn if other programs run, fix the seed, and set the number of torch's threads.

    Args:
        threads: Number of threads. The default is torch's own.
    """
    warn_if_busy()
    torch.manual_seed(0)
    torch.set_num_threads(threads or torch.get_num_threads())


def print_rows(rows: Iterable[Row]) -> list[Row]:
    """Print each row as soon as it is measured, and return all rows."""
    measured = []
    for row in rows:
        print(json.dumps(row, ensure_ascii=False), flush=True)
        measured.append(row)
    return measured


def read_rows(path: Path) -> list[Row]:
    """Read rows from a file with one JSON object per line; a file that does not exist has none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def replace_rows(new: list[Row], path: Path, key: Sequence[str]) -> None:
    """Write rows in place of earlier rows that have the same values in the columns of `key`, sorted by these."""
    write_rows(merge(read_rows(path), new, key), path)


def merge(old: list[Row], new: list[Row], key: Sequence[str]) -> list[Row]:
    """Return the new rows, and the old ones that differ from them in some column of `key`, sorted by these."""
    replaced = {tuple(row[name] for name in key) for row in new}
    kept = [row for row in old if tuple(row[name] for name in key) not in replaced]
    return sorted([*kept, *new], key=lambda row: tuple(row[name] for name in key))


def write_rows(rows: list[Row], path: Path) -> None:
    """Write rows to a file with one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def warn_if_busy() -> None:
    """Print a warning if other programs run: waiting threads can make a step of 1 ms take 100 ms."""
    if os.getloadavg()[0] > 0.5:
        print("other programs are running: wait until the machine is quiet, or use --threads 1", file=sys.stderr)


def peak_in_fresh_process(peak: Callable[..., float | None], *args: Any) -> float | None:
    """Measure peak memory in a new process, which holds nothing that other measurements have allocated.

    Args:
        peak: Function of a module that returns the peak in MiB.
        args: Arguments of the function.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak, *args).result()


def rise_in_mib(step: Step) -> float | None:
    """Measure by how many MiB a step raises resident memory; None on systems that do not say.

    `ru_maxrss` is of no use here: a child process inherits the peak of its parent, and imports have a peak of
    their own.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident_kib("VmRSS")
    step()
    return rounded((resident_kib("VmHWM") - before) / 1024)


def resident_kib(field: str) -> int:
    """Read a field of the memory statistics of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
