"""Compare our rows with the control's, and write the page from them."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from reasons import REASONS, Reason
from timm_architectures import ARCHITECTURES

Row = dict[str, Any]


class Difference(NamedTuple):
    """A test that one of our subjects fails and a control passes.

    Args:
        suite: Package whose test it is.
        subject: Models that fail it.
        test: Name of the test, with its parameters.
        message: First line of the error.
        reason: Reason, or None.
    """

    suite: str
    subject: str
    test: str
    message: str
    reason: Reason | None


class Comparison(NamedTuple):
    """All differences, and the sentences that make the tool fail."""

    differences: list[Difference]
    problems: list[str]


def read_rows(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def write_rows(file: Path, rows: list[Row]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def compare(rows: list[Row]) -> Comparison:
    """Find what fails although the control passes, with its reason."""
    differences = list(_differences(rows))
    problems = [
        f"{found.subject} fails {found.test} of {found.suite}, which the control passes: {found.message}"
        for found in differences
        if found.reason is None
    ]
    used = {found.reason for found in differences}
    problems += [
        f"reasons.py explains {reason.tests} of {reason.suite} ({reason.message}), but nothing fails so: remove it"
        for reason in REASONS
        if reason not in used
    ]
    return Comparison(differences, problems)


def _differences(rows: list[Row]) -> Iterator[Difference]:
    for row in rows:
        controls = [other for other in rows if other["control"] and other["suite"] == row["suite"]]
        if row["control"]:
            continue
        for test, message in row["failed"].items():
            if any(test not in control["failed"] and test not in control["skipped"] for control in controls):
                reason = next((r for r in REASONS if r.explains(row["suite"], test, message)), None)
                yield Difference(row["suite"], row["subject"], test, message, reason)


def page(rows: list[Row]) -> str:
    """Return the page for users."""
    versions = {row["suite"]: row["version"] for row in rows}
    minutes = sum(row["seconds"] for row in rows) / 60
    return f"""# Compatibility with timm and transformers

`softcam_*` and `cape_*` models are meant to work wherever timm's own models work, and the four model classes wherever
the image classifiers of transformers work. `make peer-tests` checks this with the test suites of the two libraries:

- `tests/test_models.py` of timm {versions.get("timm")}, unmodified, on {len(ARCHITECTURES)} architectures from
  different families of backbones. Each test runs on timm's own model, which is the control, on `softcam_*` and on
  `cape_*`. Parts of timm's own classes that a test reads, such as `model.stages`, are looked up on our `backbone`. The
  tests that download weights are left out. A test of an architecture that admits no evidence map is skipped.
- `ModelTesterMixin` and `ConfigTester` of transformers {versions.get("transformers")} on `SoftCAMModel`, `CAPEModel`,
  `SoftCAMForImageClassification` and `CAPEForImageClassification`. The controls are `TimmWrapper` and `ResNet`.

The suites are downloaded from PyPI in the versions that are installed. The run takes {minutes:.0f} minutes of one
core. Its results are the rows in `benchmarks/results/peer_tests.jsonl`, from which this page is written.
{_run_again(rows)}

## Counts

A failure counts as ours when the control passes the same test.

{_counts(rows)}

## Remaining differences

{_table_of_differences(compare(rows).differences)}
"""


def _run_again(rows: list[Row]) -> str:
    """Return a sentence on the tests that were run again after a mend, if there were any."""
    count = sum(row.get("run_again", 0) for row in rows)
    return f"\nAfter changes, {count} tests that had failed were run again by themselves.\n" if count else ""


def _counts(rows: list[Row]) -> str:
    ours = Counter(found.subject for found in compare(rows).differences)
    lines = ["| suite | models | passed | failed | of these, the control passes | skipped |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        name = f"`{row['subject']}`{' (control)' if row['control'] else ''}"
        only = "" if row["control"] else ours[row["subject"]]
        counts = f"{row['passed']} | {len(row['failed'])} | {only} | {len(row['skipped'])}"
        lines.append(f"| {row['suite']} | {name} | {counts} |")
    return "\n".join(lines)


def _table_of_differences(differences: list[Difference]) -> str:
    """Return one line for each test function and reason, with the number of its cases."""
    if not differences:
        return "There are none."
    cases = Counter(
        (found.suite, found.test.partition("[")[0], found.reason.text if found.reason else "not explained yet")
        for found in differences
    )
    lines = ["| suite | test | failures | reason |", "| --- | --- | ---: | --- |"]
    lines += [f"| {suite} | `{test}` | {count} | {reason} |" for (suite, test, reason), count in cases.items()]
    return "\n".join(lines)
