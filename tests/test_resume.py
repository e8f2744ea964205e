"""Resumed runs, runs of two processes, and the command line, each in processes of their own."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers.killing import RANDOM
from helpers.processes import PATIENCE, finish, free_port, kill_when, start
from helpers.training import (
    TRAIN,
    VALIDATION,
    Noise,
    equal,
    images,
    largest_difference,
    part,
    pixels_for,
    settings,
    train,
    training_of,
    weights,
)
from helpers.warm import warm_python
from transformers import AutoModelForImageClassification

from softcam_hub.models.losses import cross_entropy
from softcam_hub.training import run
from softcam_hub.training.reporting import read_log

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same bits here and in the processes that are started
    yield
    torch.set_num_threads(threads)


def run_in(processes, output, **changes):
    finish(start(run, settings(output, **changes), processes=processes))
    return json.loads((Path(output) / "metrics.json").read_text())


def updates(output):
    """Return the number of updates that a run has logged."""
    log = output / "log.jsonl"
    return max((line["step"] for line in read_log(log)), default=0) if log.exists() else 0


# --- what cannot be resumed ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    """A run that was killed in its second epoch."""
    output = tmp_path_factory.mktemp("runs") / "cut_off"
    kill_when(lambda: updates(output) > 7, start(run, settings(output, **RANDOM, ema=0.7)))
    return output


@pytest.fixture
def broken(cut_off, tmp_path):
    return shutil.copytree(cut_off, tmp_path / "copy")


def resume(output, **changes):
    return train(output, **{**RANDOM, "ema": 0.7, "resume": True, **changes})


def test_a_run_is_not_resumed_with_other_settings(broken):
    with pytest.raises(
        ValueError, match="cannot resume: .*settings.yaml says lr=0.02, but now it is 0.5; use the same"
    ):
        resume(broken, lr=0.5)
    with pytest.raises(FileExistsError, match="holds an earlier training run"):
        resume(broken, resume=False)


def test_settings_without_effect_on_the_result_may_change(broken, cut_off, tmp_path):
    resume(broken, log_steps=3, checkpoint_steps=5, workers=1)
    again = shutil.copytree(cut_off, tmp_path / "again")
    resume(again)
    assert equal(weights(broken), weights(again))


def refused(config, message):
    with pytest.raises(ValueError, match=message):
        run(config)


def test_a_run_is_not_resumed_by_another_number_of_processes(broken):
    config = settings(broken, **RANDOM, ema=0.7, resume=True)
    finish(start(refused, config, "written by 1 processes, but this run has 2: resume with as many", processes=2))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "average.safetensors", "progress.json"])
def test_damaged_checkpoints_are_named(name, broken):
    files = list((broken / "checkpoints").glob(f"step-*/{name}"))
    for file in files:
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"--overwrite") as error:
        resume(broken)
    assert all(f"{file} is damaged" in str(error.value) for file in files)


def test_a_checkpoint_that_is_whole_is_not_called_damaged(broken, monkeypatch):
    def no_memory(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Accelerator, "load_state", no_memory)
    with pytest.raises(ValueError, match="could not be restored: out of memory. Its files are as they were") as error:
        resume(broken)
    assert "damaged" not in str(error.value)
    assert "--overwrite" not in str(error.value)


def test_a_run_without_a_checkpoint_begins_again(broken, tmp_path):
    shutil.rmtree(broken / "checkpoints")
    resume(broken)
    train(tmp_path / "whole", **RANDOM, ema=0.7)
    assert equal(weights(broken), weights(tmp_path / "whole"))
    assert read_log(broken / "log.jsonl") == read_log(tmp_path / "whole" / "log.jsonl")


def test_without_a_run_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(OSError, match="there is no run in .*/none to continue: leave --resume out, or check --output"):
        resume(tmp_path / "none")


def test_a_finished_run_is_unchanged(broken):
    metrics = resume(broken)
    before = {path: path.stat().st_mtime_ns for path in (broken / "model").iterdir()}
    assert resume(broken) == metrics
    assert {path: path.stat().st_mtime_ns for path in (broken / "model").iterdir()} == before


# --- two processes ---------------------------------------------------------------------------------------------------


def ask(output, samples, epochs):
    training_of(output, samples, batch_size=4, epochs=epochs).fit()
    (output / f"{os.environ['RANK']}.json").write_text(json.dumps(samples.asked))


def test_two_processes_see_every_image_once_between_them(tmp_path):
    finish(start(ask, tmp_path, Noise(26), 3, processes=2))
    asked = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    one = Noise(26)
    training_of(tmp_path / "one", one, epochs=3).fit()
    for epoch in range(3):
        first, second = ([index for number, index in each if number == epoch] for each in asked)
        assert len(first) == len(second) == 12
        assert len({*first, *second}) == 24, "no image twice, the rest of 2 is dropped"
        alone = [index for number, index in one.asked if number == epoch]
        for step in range(3):
            together = first[4 * step : 4 * step + 4] + second[4 * step : 4 * step + 4]
            assert together == alone[8 * step : 8 * step + 8], "one update sees the same images"


EXACT = {"model": "cape_test_convnext", "mode": "from-scratch", "color_jitter": 0.3, "erase": 0.3}
"""A run without BatchNorm and dropout, which does not depend on the division of its batches."""


def test_two_processes_learn_what_one_learns_from_the_whole_batch(tmp_path):
    one = train(tmp_path / "one", **EXACT)
    two = run_in(2, tmp_path / "two", **EXACT, batch_size=4)
    start_weights = train(tmp_path / "start", **EXACT, lr=0)
    assert start_weights["epoch"] == 1
    moved = largest_difference(weights(tmp_path / "one"), weights(tmp_path / "start"))
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-4 * moved
    assert (one.pop("processes"), two.pop("processes")) == (1, 2)
    smooth = {name: value for name, value in one.items() if name.endswith(("loss", "confidence", "sparseness"))}
    assert {name: two[name] for name in smooth} == pytest.approx(smooth, abs=1e-4)
    lines = zip(read_log(tmp_path / "one" / "log.jsonl"), read_log(tmp_path / "two" / "log.jsonl"), strict=True)
    for alone, together in ((a, b) for a, b in lines if "epoch" in a):
        means = {name: value for name, value in alone.items() if name.endswith(("loss", "confidence"))}
        assert {name: together[name] for name in means} == pytest.approx(means, abs=1e-4)


def test_every_image_counts_once_in_an_evaluation_by_two_processes(tmp_path):
    assert VALIDATION % 2 == 1, "one process has an image more than the other"
    options = {**EXACT, "lr": 0, "epochs": 1}
    one, two = train(tmp_path / "one", **options, batch_size=8), run_in(2, tmp_path / "two", **options, batch_size=4)
    scores = {name: value for name, value in one.items() if name.startswith(("test_", "validation_"))}
    assert len(scores) == 13
    assert {name: two[name] for name in scores} == pytest.approx(scores, abs=1e-6)


def test_two_processes_score_the_model_that_is_saved(tmp_path):
    """The BatchNorm statistics are those of one process, also for the images that the other process scores."""
    for name, options in {"plain": {}, "average": {"ema": 0.7}}.items():
        metrics = run_in(2, tmp_path / name, batch_size=4, lr=0.2, select="loss", test_split="", **options)
        model = AutoModelForImageClassification.from_pretrained(tmp_path / name / "model").eval()
        with torch.no_grad():
            logits = model(pixels_for(model, images("validation"))).logits
        loss = cross_entropy(logits, torch.arange(VALIDATION) % 4).item()
        assert metrics["validation_loss"] == pytest.approx(loss, rel=1e-5)


FROZEN = {"model": "softcam_test_resnet", "freeze_backbone": True, "augment": False, "lr": 1.0}


def test_a_cache_serves_any_number_of_processes(tmp_path):
    train(tmp_path / "without", **FROZEN, cache_features=False)
    expected = weights(tmp_path / "without")
    for writers, readers in ((2, 1), (1, 2)):
        cache = tmp_path / f"{writers} writers"
        for number, processes in enumerate((writers, readers)):
            output = tmp_path / f"{writers}-{number}"
            run_in(processes, output, **FROZEN, batch_size=8 // processes, cache_dir=str(cache))
            assert largest_difference(weights(output), expected) < 1e-5
            assert equal(part(weights(output), "backbone."), part(expected, "backbone."))
        assert len(list(cache.iterdir())) == 2
        assert all(len(list(folder.glob("*.bin"))) == writers for folder in cache.iterdir())


def test_two_processes_choose_a_temperature(tmp_path):
    options = {"mode": "from-scratch", "temperatures": "1 4", "epochs": 1}
    metrics = run_in(2, tmp_path, **options, batch_size=4)
    assert set(metrics["tried"]) == {"1", "4"}
    assert equal(weights(tmp_path), weights(tmp_path / f"T={metrics['temperature']:g}"))


# --- the command line ------------------------------------------------------------------------------------------------

SCRIPT = str(ROOT / "train_accelerate.py")
PROGRAM = ["-m", "softcam_hub", "train"]
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]


def flags(output, **changes):
    config = settings(output, **changes)
    return [
        f"--{name}={value}"
        for group in dataclasses.fields(config)
        for name, value in dataclasses.asdict(getattr(config, group.name)).items()
        if value is not None
    ]


def command(*arguments):
    """Start Python in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], **pipes, env=environment, start_new_session=True, cwd=ROOT)


def launched(output, **changes):
    return command(*LAUNCH, "--main_process_port", str(free_port()), *PROGRAM, *flags(output, **changes))


def wait_until(moment, process):
    patience = time.monotonic() + PATIENCE
    while not moment():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < patience
        time.sleep(0.005)


def test_a_run_of_accelerate_launch_is_killed_and_resumed(tmp_path):
    options = {**RANDOM, "epochs": 3}
    run_in(2, tmp_path / "whole", **options)
    broken = tmp_path / "broken"
    process = launched(broken, **options)
    wait_until(lambda: updates(broken) >= 8, process)
    ranks = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True)
    for group in [process.pid, *map(int, ranks.stdout.split())]:  # every rank has a group of its own
        os.killpg(group, signal.SIGKILL)
    process.communicate()
    process = launched(broken, **options, resume=True)
    out, error = process.communicate(timeout=PATIENCE)
    assert "continuing after update" in out, error
    assert json.loads((broken / "metrics.json").read_text())["processes"] == 2
    assert equal(weights(broken), weights(tmp_path / "whole"))
    assert read_log(broken / "log.jsonl") == read_log(tmp_path / "whole" / "log.jsonl")


def test_help_groups_the_settings():
    done = warm_python().run(SCRIPT, "--help")
    for title in ("model:", "data:", "augmentation:", "optimization:", "run:", "Recipes:"):
        assert f"\n{title}" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--epocs", "3"], 2, "softcam-hub train: error: unknown option '--epocs': did you mean --epochs?; see --help"),
        (
            ["--data", "/no/such/folder", "--model", "test_resnet"],
            1,
            "softcam-hub: error: there is no folder /no/such/",
        ),
    ],
)
def test_a_mistake_on_the_command_line_ends_with_a_message(arguments, code, sentence, tmp_path):
    done = warm_python().run(SCRIPT, *arguments, *(["--output", str(tmp_path)] if "--data" in arguments else []))
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupted_command_says_how_to_resume_and_is_resumed(tmp_path):
    options, broken = {**RANDOM, "mode": "direct", "ema": 0.7, "epochs": 6}, tmp_path / "broken"
    run_in(1, tmp_path / "whole", **options)
    process = command(SCRIPT, *flags(broken, **options))
    wait_until(lambda: updates(broken) >= 3, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "interrupted; --resume continues from the last checkpoint" in error
    assert "Traceback" not in error
    out, error = command(SCRIPT, *flags(broken, **options, resume=True)).communicate(timeout=PATIENCE)
    assert "continuing after update" in out, error
    assert equal(weights(broken), weights(tmp_path / "whole"))
    assert read_log(broken / "log.jsonl") == read_log(tmp_path / "whole" / "log.jsonl")


def test_a_compiled_network_learns_the_same(tmp_path):
    options = {"model": "cape_test_convnext", "epochs": 1, "lr": 0.1, "ema": 0.5, "train_count": TRAIN}
    train(tmp_path / "plain", **options)
    train(tmp_path / "compiled", **options, compile=True)
    train(tmp_path / "start", **{**options, "lr": 0})
    moved = largest_difference(weights(tmp_path / "plain"), weights(tmp_path / "start"))
    assert largest_difference(weights(tmp_path / "plain"), weights(tmp_path / "compiled")) < 1e-3 * moved


def test_a_log_that_is_not_utf8_is_read_on(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n\xff\xfe{"step"\n{"step": 2, "note": "caf\xe9"}\n')
    assert [line["step"] for line in read_log(log)] == [1, 2]
