"""Run the test suites of timm and transformers on our models, and write `docs/compatibility.md`.

python tools/peer_tests                            # both suites on every subject; about an hour of one core
python tools/peer_tests --only softcam cape        # run these subjects again and keep the rows of the others
python tools/peer_tests --failed                   # run only the tests that failed again, after they have been mended
python tools/peer_tests --page                     # derive the page from the rows, without running anything

The suites are downloaded into `.peers/`. The rows are `benchmarks/results/peer_tests.jsonl`. The exit status is 1 when
a test fails that the control passes and `reasons.py` does not explain.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from download import download
from report import Row, compare, page, read_rows, write_rows
from suites import SUBJECTS, Subject, run, run_failed

from softcam_hub.arguments import ArgumentParser

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".peers"
ROWS = ROOT / "benchmarks" / "results" / "peer_tests.jsonl"
PAGE = ROOT / "docs" / "compatibility.md"


def measure(subjects: list[Subject], jobs: int, failed: bool) -> None:
    """Run the subjects and replace their rows, each as soon as it is there.

    Args:
        subjects: Models to test.
        jobs: Number of subjects to run at the same time.
        failed: Run only the tests that failed according to the rows, and keep the other outcomes.
    """
    sources = download(FOLDER)
    rows = {row["subject"]: row for row in read_rows(ROWS)}

    def measured(subject: Subject) -> Row:
        if failed:
            return run_failed(subject, rows[subject.name], sources, FOLDER)
        return run(subject, sources, FOLDER)

    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(measured, subjects):
            rows[row["subject"]] = row
            write_rows(ROWS, [rows[subject.name] for subject in SUBJECTS if subject.name in rows])


def main() -> int:
    names = [subject.name for subject in SUBJECTS]
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SUBJECT", help=", ".join(names))
    parser.add_argument("--failed", action="store_true", help="run only the tests that failed in the rows")
    parser.add_argument("--page", action="store_true", help="derive the page from the rows, without running anything")
    parser.add_argument("--jobs", type=int, default=2, help="number of subjects to run at the same time")
    options = parser.parse_args()
    if not options.page:
        measure([subject for subject in SUBJECTS if subject.name in options.only], options.jobs, options.failed)
    rows = read_rows(ROWS)
    PAGE.write_text(page(rows), encoding="utf-8")
    problems = compare(rows).problems
    print("\n".join(problems) or f"every failure that the control passes is explained: {PAGE.relative_to(ROOT)}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
