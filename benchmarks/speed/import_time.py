"""Measure the time that `import softcam_hub` adds to a program that imports timm and transformers anyway.

python -m benchmarks.speed.import_time            # under a minute; the row goes to benchmarks/results/import.jsonl
python -m benchmarks.speed.import_time --quick    # a smoke test: two pairs, nothing written

Every import runs in a fresh interpreter. The two programs take turns, and the difference is computed for each
pair.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from softcam_hub.arguments import ArgumentParser

from ..timing import Row, environment, in_turn, rounded, spread, write_rows

ROWS = Path(__file__).parents[1] / "results" / "import.jsonl"
PAIRS = 6
WITHOUT = "import timm; from transformers import PreTrainedModel"
WITH = f"{WITHOUT}; import softcam_hub"


def seconds(imports: str) -> float:
    """Measure import statements in a fresh interpreter, without the start and the end of the interpreter."""
    program = f"from time import perf_counter; start = perf_counter(); {imports}; print(perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


def measure_imports(pairs: int) -> Row:
    """Measure both programs in turn."""
    seconds(WITH)  # the first run reads files from the disk and compiles them to bytecode
    times = in_turn(lambda: seconds(WITH), lambda: seconds(WITHOUT), pairs)
    return {
        "comparison": "import softcam_hub",
        "a": WITH,
        "b": WITHOUT,
        **environment(),
        "python": sys.version.split()[0],
        "pairs": pairs,
        "a_seconds": rounded(statistics.median(a for a, _ in times)),
        "b_seconds": rounded(statistics.median(b for _, b in times)),
        **spread("added_seconds", [a - b for a, b in times]),
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure two pairs, and write nothing")
    parser.add_argument(
        "--output", type=Path, help=f"file for the row; results/{ROWS.name} by default, and none with --quick"
    )
    args = parser.parse_args()
    row = measure_imports(2 if args.quick else PAIRS)
    print(json.dumps(row))
    out = args.output or (None if args.quick else ROWS)
    if out:
        write_rows([row], out)


if __name__ == "__main__":
    main()
