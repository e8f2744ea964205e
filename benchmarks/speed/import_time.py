"""Measure the time that `import softcam_hub` adds to a program that imports timm anyway.

python -m benchmarks.speed.import_time            # under a minute; the row goes to benchmarks/results/import.jsonl
python -m benchmarks.speed.import_time --quick    # a smoke test: two runs, nothing written

Every program runs in a fresh interpreter, which imports timm and then softcam_hub, and takes the time of each.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from softcam_hub.arguments import ArgumentParser

from ..timing import Row, environment, rounded, spread, write_rows

ROWS = Path(__file__).parents[1] / "results" / "import.jsonl"
RUNS = 12
WITHOUT = "import timm"
WITH = f"{WITHOUT}; import softcam_hub"
PROGRAM = """
from time import perf_counter
start = perf_counter()
import timm
between = perf_counter()
import softcam_hub
print(between - start, perf_counter() - between)
"""


def seconds() -> tuple[float, float]:
    """Return the seconds of both imports in a fresh interpreter, without its start and its end."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    timm, ours = map(float, done.stdout.split())
    return timm, ours


def measure_imports(runs: int) -> Row:
    """Measure both imports several times."""
    seconds()  # the first run reads files from the disk and compiles them to bytecode
    times = [seconds() for _ in range(runs)]
    return {
        "comparison": "import softcam_hub",
        "a": WITH,
        "b": WITHOUT,
        **environment(),
        "python": sys.version.split()[0],
        "runs": runs,
        "a_seconds": rounded(statistics.median(timm + ours for timm, ours in times)),
        "b_seconds": rounded(statistics.median(timm for timm, _ in times)),
        **spread("added_seconds", [ours for _, ours in times]),
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure two runs, and write nothing")
    parser.add_argument(
        "--output", type=Path, help=f"file for the row; results/{ROWS.name} by default, and none with --quick"
    )
    args = parser.parse_args()
    row = measure_imports(2 if args.quick else RUNS)
    print(json.dumps(row))
    out = args.output or (None if args.quick else ROWS)
    if out:
        write_rows([row], out)


if __name__ == "__main__":
    main()
