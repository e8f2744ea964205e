"""What is run on which models: timm's model tests on architectures, transformers' shared tests on model classes."""

import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

TOOLS = Path(__file__).parent
WORST_LAST = ("skipped", "passed", "failed")
"""Outcomes of subtests in the order in which one replaces another as the outcome of their test."""


class Subject(NamedTuple):
    """One run of a suite.

    Args:
        suite: Package whose tests run.
        name: Name of the models under test, as in the rows and on the page.
        control: Whether the models are the package's own.
        family: Prefix of the architectures under test, for timm.
    """

    suite: str
    name: str
    control: bool
    family: str = ""


SUBJECTS = (
    Subject("timm", "timm", control=True),
    Subject("timm", "softcam_*", control=False, family="softcam"),
    Subject("timm", "cape_*", control=False, family="cape"),
    *(
        Subject("transformers", name, control=name.startswith(("TimmWrapper", "ResNet")))
        for name in (
            *("TimmWrapperModel", "TimmWrapperForImageClassification", "ResNetModel", "ResNetForImageClassification"),
            *("SoftCAMModel", "SoftCAMForImageClassification", "CAPEModel", "CAPEForImageClassification"),
        )
    ),
)

NOT_TIMM = "not load_pretrained and not features_pretrained and not model_inference"
"""timm's tests of downloaded weights are left out."""


def run(subject: Subject, sources: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Run a suite on a subject and return its row: counts, and the names of what failed or was skipped.

    Args:
        subject: Models to test.
        sources: Unpacked source distributions, by name of the package.
        folder: Folder for the record and the log of the run.
    """
    started = time.monotonic()
    outcomes = _outcomes(subject, _selection(subject), sources, folder)
    return {
        "suite": subject.suite,
        "subject": subject.name,
        "control": subject.control,
        "version": version(subject.suite),
        "seconds": round(time.monotonic() - started),
        "passed": sum(outcome == "passed" for outcome, _ in outcomes.values()),
        "skipped": sorted(test for test, (outcome, _) in outcomes.items() if outcome == "skipped"),
        "failed": {test: message for test, (outcome, message) in sorted(outcomes.items()) if outcome == "failed"},
    }


def run_failed(subject: Subject, row: dict[str, Any], sources: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Run the tests that a row says have failed, and return the row with their new outcomes.

    Args:
        subject: Models to test.
        row: Row of an earlier run of the whole suite on the subject.
        sources: Unpacked source distributions, by name of the package.
        folder: Folder for the record and the log of the run.
    """
    if not row["failed"]:
        return row
    *options, prefix = _selection(subject)
    tests = [f"{prefix}::{test}" for test in row["failed"]]
    outcomes = _outcomes(subject, [*options, *tests], sources, folder)
    return {
        **row,
        "passed": row["passed"] + sum(outcome == "passed" for outcome, _ in outcomes.values()),
        "skipped": sorted(
            [*row["skipped"], *(test for test, (outcome, _) in outcomes.items() if outcome == "skipped")]
        ),
        "failed": {test: message for test, (outcome, message) in sorted(outcomes.items()) if outcome == "failed"},
        "run_again": len(row["failed"]),
    }


def _outcomes(
    subject: Subject, selection: list[str], sources: dict[str, Path], folder: Path
) -> dict[str, tuple[str, str]]:
    """Run pytest with the options and tests of `selection`; return outcome and message of each test."""
    source, stem = sources[subject.suite], subject.name.strip("_*")
    record, log = folder / f"{stem}.jsonl", folder / f"{stem}.log"
    record.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "recorder", "-W", "ignore"]
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            [*command, *selection],
            cwd=source / "tests" if subject.suite == "timm" else source,
            env={**os.environ, **_environment(subject, source, folder), "PEER_RECORD": str(record)},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode not in (0, 1):  # 1 says that tests failed, which is a result
        raise RuntimeError(f"the tests of {subject.suite} did not run on {subject.name}: see {log}")
    return read_record(record)


def _selection(subject: Subject) -> list[str]:
    """Return the part of pytest's command line that says what to run."""
    if subject.suite == "timm":
        return ["-p", "timm_names", "--rootdir", ".", "-k", NOT_TIMM, "test_models.py"]
    cases = TOOLS / "transformers_cases.py"
    return ["--rootdir", str(TOOLS), "-c", os.devnull, f"{cases}::{subject.name}Test"]


def _environment(subject: Subject, source: Path, folder: Path) -> dict[str, str]:
    """Return the variables that point Python to our code, the suite and its helpers, and let nothing be downloaded."""
    path = [TOOLS.parents[1], TOOLS, folder / "packages", *([source] if subject.suite == "transformers" else [])]
    return {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PEER_FAMILY": subject.family,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TIMEOUT": "900",  # seconds that timm allows for one test; its own limits are for faster machines
    }


def read_record(record: Path) -> dict[str, tuple[str, str]]:
    """Return outcome and message of every test in a record; a failed subtest fails its test."""
    outcomes: dict[str, tuple[str, str]] = {}
    for line in record.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        test = row["test"].rpartition("::")[2]
        known = outcomes.get(test)
        if known is None or WORST_LAST.index(row["outcome"]) > WORST_LAST.index(known[0]):
            outcomes[test] = (row["outcome"], row["message"])
    return outcomes
