"""Launchers that ask training to divide the network among processes are refused before any work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.outputs import content, fill, used_by_another_process
from helpers.processes import finish, start
from helpers.training import settings

from softcam_hub.evaluation import benchmark
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


def _train(folder, notes):
    _note_refusal(notes, lambda: run(settings(folder)))


def _benchmark(folder, notes):
    _note_refusal(notes, lambda: benchmark("cape_test_resnet", folder))


def _note_refusal(notes, action):
    """Write the error that ends this process to a file of its own."""
    with pytest.raises((FileExistsError, BlockingIOError)) as refusal:
        action()
    (notes / os.environ["RANK"]).write_text(str(refusal.value))


@pytest.mark.parametrize("job", [_train, _benchmark])
@pytest.mark.parametrize("folder", ["foreign", "in use"])
@pytest.mark.slow
def test_every_process_says_why_the_folder_is_refused(job, folder, tmp_path):
    out, notes = tmp_path / "out", tmp_path / "notes"
    notes.mkdir()
    if folder == "foreign":
        fill(out, "notes.txt")
        finish(start(job, out, notes, processes=2))
    else:
        out.mkdir()
        with used_by_another_process(out):
            finish(start(job, out, notes, processes=2))
    reason = b"it holds 'notes.txt' but no record" if folder == "foreign" else b"another process is writing to"
    said = content(notes)
    assert said.keys() == {"0", "1"}
    assert all(reason in text for text in said.values())
