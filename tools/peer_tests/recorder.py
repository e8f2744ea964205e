"""A pytest plugin that seeds every test and writes its outcome as a line of JSON to the file named by PEER_RECORD."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

FOLDERS = re.compile(r"/\S*/(?=site-packages/|softcam_hub/)")
"""Folders of the machine on which the tests run, which say nothing to a reader of the rows."""


@pytest.fixture(autouse=True)
def seed() -> None:
    """Make the suites' random inputs the same in every run, so that the same tests fail."""
    torch.manual_seed(0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write the outcome of a test, and of a setup that failed or skipped it."""
    if report.when != "call" and report.outcome == "passed":
        return
    row = {"test": report.nodeid.partition("::")[2], "outcome": report.outcome, "message": _message(report)}
    with Path(os.environ["PEER_RECORD"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _message(report: pytest.TestReport) -> str:
    """Return the beginning of the error on one line, or the reason of a skip."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr[-1] if report.skipped else report.longrepr or "")
    return FOLDERS.sub("", " ".join(text.split())[:200])
