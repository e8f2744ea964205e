"""Kill training, benchmark, explain and the feature cache, 50 times in all, and write the outcome as rows.

python -m tools.kills    # ten minutes: benchmarks/results/kills.jsonl, one row per command and setting

The scenarios are those of the tests: see `tests/helpers/killing.py`. The exit status is 1 when an output differs from
that of an undisturbed run or a file is lost. `benchmarks.tables` derives the table in `docs/outputs.md` from the rows.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "results" / "kills.jsonl"
KILLS = [6, 6, 4, 4, 4, 5, 3, 6, 5, 7]
"""Number of kills of each scenario, in the order of `killing.SCENARIOS`."""


def main() -> int:
    """Kill every scenario, write the rows, and return the exit status."""
    sys.path.insert(0, str(ROOT / "tests"))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])  # for the processes that are started
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from helpers.killing import SCENARIOS, run_killed

    torch.set_num_threads(1)
    rows = []
    for scenario, kills in zip(SCENARIOS, KILLS, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run_killed(scenario, kills, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    ROWS.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return 0 if all(row["identical"] and row["lost_files"] == 0 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
