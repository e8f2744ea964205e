"""Launchers that ask training to divide the network among processes are refused before any work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.training import settings

from softcam_hub.training import run
from softcam_hub.training.checks import SHARDING_VARIABLES

ROOT = Path(__file__).parents[1]
FSDP = ["--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "--num_machines", "1"]


@pytest.mark.parametrize(("variable", "name"), SHARDING_VARIABLES.items())
def test_a_divided_network_is_refused_by_name(variable, name, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=f"divide the network among processes with {name}.*--multi_gpu"):
        run(settings(tmp_path / "run"))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_accelerate_launch_with_fsdp2_ends_with_a_sentence(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", *FSDP, "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0", "-m", "softcam_hub", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    arguments = ["--recipe", "lesions-demo", "--output", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode != 0
    sentence = "softcam-hub: error: accelerate is set to divide the network among processes with FSDP"
    assert sentence in done.stderr  # of at least one process, whose end may end the other
    assert not any(tmp_path.iterdir())
