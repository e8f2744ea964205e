"""Real kills of commands: `make kills` does fifty of them, `make test-all` does eight, of which six are here.

The other two are in test_resume.py: of the run whose copies are resumed in several ways, and of `accelerate launch`.
"""

import json
from pathlib import Path

import pytest
from helpers.killing import NOTES, SCENARIOS, compare, run_killed

ROOT = Path(__file__).parents[1]
CHOSEN = [
    *(("training", "AdamW, average, accumulation", 1), ("training", "stream, loading workers", 2)),
    *(("feature cache", None, 2), ("benchmark", None, 1), ("benchmark", None, 2), ("explain", None, 1)),
]


def chosen(command, configuration, processes):
    return next(
        each
        for each in SCENARIOS
        if (each.command, each.processes) == (command, processes) and configuration in (None, each.configuration)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("command", "configuration", "processes"), CHOSEN)
def test_a_killed_command_that_is_run_again_ends_with_the_same_bits(command, configuration, processes, tmp_path):
    row = run_killed(chosen(command, configuration, processes), 1, tmp_path)
    assert (row["kills"], row["identical"], row["lost_files"]) == (1, True, 0)


@pytest.mark.parametrize(
    ("found", "noted", "expected"),
    [
        ({"a": b"1", "b": b"2"}, False, (True, 0)),
        ({"a": b"1", "b": b"3"}, False, (False, 0)),
        ({"a": b"1"}, False, (False, 1)),
        ({"a": b"1", "b": b"2", ".unfinished-b": b""}, False, (False, 0)),
        ({"a": b"1", "b": b"2", NOTES: b"mine"}, True, (True, 0)),
        ({"a": b"1", "b": b"2", NOTES: b""}, True, (False, 0)),
        ({"a": b"1", "b": b"2"}, True, (False, 1)),
    ],
)
def test_differing_and_lost_files_are_reported(found, noted, expected):
    assert compare(found, {"a": b"1", "b": b"2"}, noted) == expected


def test_the_committed_kills_are_fifty_of_all_commands():
    lines = (ROOT / "benchmarks" / "results" / "kills.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    scenarios = [(each.command, each.configuration, each.processes) for each in SCENARIOS]
    assert [(row["command"], row["configuration"], row["processes"]) for row in rows] == scenarios
    assert sum(row["kills"] for row in rows) == 50
    assert all(row["identical"] and row["lost_files"] == 0 for row in rows)
