"""Freed memory that a process keeps: fewer pages are asked of the system, in the programs that compute for long."""

import os
import subprocess
import sys

import pytest

from softcam_hub import cli
from softcam_hub.memory import SETTINGS, keep_freed_memory

PAGES = """
import resource, torch
from softcam_hub.memory import keep_freed_memory
kept = {keep} and keep_freed_memory()
blocks = lambda: [torch.ones(10 * 2**20) for _ in range(3)]  # 40 MB each, more than malloc keeps by itself
blocks(), blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    blocks()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

CLEAN = {name: value for name, value in os.environ.items() if name not in SETTINGS}


def run(code, **variables):
    done = subprocess.run(
        [sys.executable, "-c", code], env={**CLEAN, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no mallopt")
def test_large_blocks_are_used_again():
    kept, pages = run(PAGES.format(keep=True))
    _, usual = run(PAGES.format(keep=False))
    assert kept == "True"
    assert int(pages) < int(usual) / 20


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_user_stay(name):
    assert keep_freed_memory({name: "1"}) is False


@pytest.mark.parametrize(("command", "keeps"), [("train", True), ("benchmark", True), ("demo", False)])
def test_commands_that_compute_for_minutes_keep_it(command, keeps, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: asked.append(command))
    with pytest.raises(SystemExit):
        cli.main([command, "--no-such-option"])
    assert asked == [command] * keeps
