"""How many threads compute, and how they wait: what the command line sets before torch is imported."""

import os
import subprocess
import sys

import pytest

from softcam_hub.threads import set_up_threads, usable_cores

NAMES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000", 2), ("100000 100000", 1), ("20000 100000", 1), ("10000000 100000", None), ("max 100000", None)],
)
def test_a_container_limits_the_cores(text, cores, tmp_path):
    file = tmp_path / "cpu.max"
    file.write_text(f"{text}\n")
    allowed = len(os.sched_getaffinity(0))
    assert usable_cores(file) == min(allowed, cores or allowed)
    assert usable_cores(tmp_path / "missing") == allowed


def test_variables_that_are_set_stay():
    environment = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}
    set_up_threads(environment)
    assert environment == {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}


def test_few_cores_limit_the_threads(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    environment = {}
    set_up_threads(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(usable_cores())}


@pytest.mark.parametrize("program", ["softcam-hub", "train_accelerate.py"])
def test_the_command_line_sets_them_before_torch_reads_them(program):
    code = (
        "import os, sys\n"
        f"sys.argv = [{program!r}, 'list', 'resnet18']\n"
        "from softcam_hub.cli import main\n"
        "assert 'torch' not in sys.modules, 'torch has read the variables already'\n"
        "main(['list', 'resnet18'])\n"
        "print(os.environ['OMP_WAIT_POLICY'])\n"
    )
    variables = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "PASSIVE"
