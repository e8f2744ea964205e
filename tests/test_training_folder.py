"""The folder of a training run survives damaged checkpoints, full disks and kills, and spares files of the user."""

import importlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import subprocess

import pytest
import yaml
from helpers.crashes import every_crash
from helpers.data import manifest, manifest_text
from helpers.outputs import content, fill, full_disk, used_by_another_process
from helpers.training import SMALL, settings, train

from softcam_hub import output_folder
from softcam_hub.output_folder import RECORD
from softcam_hub.training.checkpoint import DIGESTS
from softcam_hub.training.folder import is_older_run
from softcam_hub.training.run import run

TINY = {"epochs": 2, "batch_size": 25, "checkpoint_steps": 1}
"""Four updates, with a checkpoint after each of them."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    train(output, **TINY)
    return output


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A run that ended after its last checkpoint, before it wrote any results."""
    output = tmp_path_factory.mktemp("runs") / "unfinished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("softcam_hub.training.run"), "score_result", _break_off)
        with pytest.raises(KeyboardInterrupt):
            train(output, **TINY)
    return output


def _break_off(*_):
    raise KeyboardInterrupt


@pytest.fixture
def broken(unfinished, tmp_path):
    return shutil.copytree(unfinished, tmp_path / "copy")


def result(output):
    """Return the files that a run writes for its users, without its duration."""
    files = content(output)
    ours = {name: data for name, data in files.items() if name.startswith(("model/", "vanilla/")) or "/" not in name}
    for name in ("metrics.json", "model/metrics.json"):
        ours[name] = {**json.loads(ours[name]), "seconds": 0}
    ours["model/README.md"] = re.sub(rb"took \d+ seconds", b"", ours["model/README.md"])
    return {name: data for name, data in ours.items() if name not in ("settings.yaml", "model/recipe.yaml", RECORD)}


# --- files of other people -------------------------------------------------------------------------------------------

THEIRS = [
    *("best/photograph.png", "checkpoints/mine.txt", "settings.yaml", "metrics.json", "curve.png", "examples.png"),
    *("model/README.md", "model/modeling.py", "model/config.json", "model/model-00001-of-00002.safetensors"),
    *("softcam_hub/__init__.py", "features/a.bin", "log.jsonl", "notes.txt", "T=1/mine.txt"),
]


@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}], ids=["plain", "overwrite", "resume"])
@pytest.mark.parametrize("theirs", THEIRS)
def test_a_folder_of_the_user_is_refused_and_unchanged(theirs, how, tmp_path):
    fill(tmp_path, theirs)
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=f"holds '{theirs.split('/')[0]}' but no record of a training run"):
        run(settings(tmp_path, **how))
    assert content(tmp_path) == before


@pytest.mark.parametrize("text", ["", "epochs: 3", "[1, 2]", "{", "model: resnet18\ndata: x\nmine: 1"])
@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": True}], ids=["overwrite", "resume"])
def test_a_settings_file_of_another_program_makes_no_run(text, how, tmp_path):
    fill(tmp_path, "model/config.json", "checkpoints/mine.txt", "metrics.json")
    (tmp_path / "settings.yaml").write_text(text)
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match="no record of a training run"):
        run(settings(tmp_path, **how))
    assert content(tmp_path) == before


def test_overwriting_leaves_files_that_the_run_did_not_write(finished, tmp_path):
    output = shutil.copytree(finished, tmp_path / "copy")
    fill(output, "notes.txt", "model/notes.md", "vanilla/notes.md", "mine/best/a.txt")
    fill(output, "features/notes.txt", "best/mine.txt", "checkpoints/mine.txt", "T=2/mine.txt")
    mine = {name: data for name, data in content(output).items() if name not in content(finished)}
    train(output, epochs=1, seed=1, overwrite=True)
    after = content(output)
    assert mine.items() <= after.items()
    assert after["model/model.safetensors"] != content(finished)["model/model.safetensors"]


def test_the_vanilla_classifier_of_an_older_run_lies_in_twin_and_is_overwritten(tmp_path):
    train(tmp_path, model="cape_test_resnet", mode="from-scratch", epochs=1)
    (tmp_path / "vanilla").rename(tmp_path / "twin")
    record = (tmp_path / RECORD).read_text()
    (tmp_path / RECORD).write_text(record.replace('"vanilla/', '"twin/'))
    assert train(tmp_path, model="cape_test_resnet", mode="from-scratch", epochs=1, resume=True)
    assert (tmp_path / "twin" / "config.json").is_file()
    train(tmp_path, model="cape_test_resnet", mode="from-scratch", epochs=1, overwrite=True)
    assert not (tmp_path / "twin").exists()
    assert (tmp_path / "vanilla" / "config.json").is_file()


def test_a_run_without_a_record_is_resumed_but_not_overwritten(finished, tmp_path):
    output = shutil.copytree(finished, tmp_path / "copy")
    (output / RECORD).unlink()
    before = content(output)
    with pytest.raises(FileExistsError, match="nothing says that its files may be deleted"):
        train(output, **TINY, overwrite=True)
    assert content(output) == before
    assert train(output, **TINY, resume=True) == json.loads(before["metrics.json"])


def make_older(output):
    """Give an unfinished run the form of runs made before there were records and digests."""
    (output / RECORD).unlink()
    for file in output.rglob(DIGESTS):
        file.unlink()
    (best,) = (output / "best").iterdir()  # older runs kept it in `best` itself
    for file in best.iterdir():
        file.rename(output / "best" / file.name)
    best.rmdir()


def test_an_unfinished_run_without_record_and_digests_is_resumed(broken, finished):
    make_older(broken)
    assert is_older_run(broken)
    train(broken, **TINY, resume=True)
    assert result(broken) == result(finished)


def test_the_users_vanilla_folder_in_a_run_without_a_record_is_left_alone(broken):
    make_older(broken)
    fill(broken, "vanilla/config.json")
    before = content(broken)
    with pytest.raises(FileExistsError, match="vanilla/config.json is not a file of an earlier training run"):
        train(broken, **TINY, resume=True)
    assert content(broken) == before


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(output_folder, "LOCK_TIMEOUT", 0.1)
    with (
        used_by_another_process(tmp_path),
        pytest.raises(BlockingIOError, match=f"another process is writing to {tmp_path}"),
    ):
        run(settings(tmp_path))
    assert content(tmp_path) == {}


@pytest.mark.slow
def test_of_two_runs_that_start_at_once_one_trains_and_the_other_is_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    options = {"model": "test_resnet", "epochs": 1}
    runs = [context.Process(target=_run_and_tell, args=(tmp_path / "run", seed, options, queue)) for seed in (0, 1)]
    for process in runs:
        process.start()
    errors = dict(queue.get(timeout=300) for _ in runs)
    for process in runs:
        process.join()
    refused = [seed for seed, error in errors.items() if error]
    assert len(refused) == 1, errors
    assert (
        "another process is writing to" in errors[refused[0]] or "holds an earlier training run" in errors[refused[0]]
    )
    saved = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    assert saved["seed"] == 1 - refused[0]
    assert (tmp_path / "run" / "metrics.json").is_file()


def _run_and_tell(output, seed, options, queue):
    try:
        run(settings(output, seed=seed, **options))
        queue.put((seed, ""))
    except OSError as error:
        queue.put((seed, str(error)))


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(file, count=64):
    """Change bytes in the middle of a file, as a bad disk does, and keep its size."""
    data = bytearray(file.read_bytes())
    middle = max(0, len(data) // 2 - count // 2)
    for position in range(middle, min(middle + count, len(data))):
        data[position] ^= 0x55
    file.write_bytes(data)


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def forget(file):
    """Leave a record of digests that names no file."""
    file.write_text("{}")


NAMES = ["model.safetensors", "optimizer.bin", "progress.json", DIGESTS]


@pytest.mark.parametrize(
    ("damage", "name"),
    [(flip, name) for name in NAMES]
    + [(cut, "model.safetensors"), (os.unlink, "optimizer.bin"), (os.unlink, DIGESTS), (forget, DIGESTS)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage, name, broken, finished, caplog):
    before, last = sorted((broken / "checkpoints").iterdir())
    damage(last / name)
    with caplog.at_level(logging.WARNING):
        train(broken, **TINY, resume=True)
    assert re.search(rf"{last}/{'.*' if name == DIGESTS else name} is (damaged|missing)", caplog.text)
    assert f"continuing from {before}" in caplog.text
    assert result(broken) == result(finished)


def test_a_damaged_best_model_is_named_and_never_saved(broken):
    (best,) = (broken / "best").iterdir()
    flip(best / "model.safetensors")
    with pytest.raises(ValueError, match=f"{best / 'model.safetensors'} is damaged.*--overwrite"):
        train(broken, **TINY, resume=True)
    assert not (broken / "model").exists()


def test_files_of_the_user_beside_checkpoints_stay_and_are_not_taken_for_checkpoints(broken, finished):
    last = max((broken / "checkpoints").iterdir())
    shutil.copytree(last, broken / "checkpoints" / f"{last.name}-copy")
    fill(broken, "checkpoints/mine.txt", "checkpoints/step-999999999", "best/keep/notes.txt", "checkpoints/step-old/a")
    mine = {name for name in content(broken) if re.search(r"-copy|mine|999|keep|old", name)}
    train(broken, **TINY, resume=True)
    assert mine <= content(broken).keys()
    assert result(broken) == result(finished)
    train(broken, epochs=1, overwrite=True)
    assert mine <= content(broken).keys()


def test_an_empty_checkpoint_is_named_and_the_one_before_is_used(broken, finished, caplog):
    (broken / "checkpoints" / "step-999999999").mkdir()
    with caplog.at_level(logging.WARNING):
        train(broken, **TINY, resume=True)
    assert "step-999999999/progress.json is missing; continuing from" in caplog.text
    assert result(broken) == result(finished)


@pytest.mark.parametrize("name", ["model", "checkpoints", "curve.png", "metrics.json"])
def test_a_file_where_a_folder_belongs_or_the_reverse_is_refused_before_training(name, broken):
    if "." in name:
        (broken / name).mkdir()
    else:
        shutil.rmtree(broken / name, ignore_errors=True)
        fill(broken, name)
    before = content(broken)
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(FileExistsError, match=f"{name} is not a file of an earlier training run"):
            train(broken, **TINY, **how)
    assert content(broken) == before


def test_a_missing_best_model_is_named(broken):
    shutil.rmtree(broken / "best")
    with pytest.raises(ValueError, match=r"best/epoch-\d+ is missing.*--overwrite"):
        train(broken, **TINY, resume=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold names and values, but holds nothing"),
        ("- a", "must hold names and values, but holds a list"),
        ("model: {", "cannot be read, because it is not valid YAML"),
        ("epochs: 3", "does not hold the settings of a run"),
        ("\x00", "cannot be read, because it is not valid YAML"),
    ],
)
def test_damaged_settings_are_named(text, message, broken):
    (broken / "settings.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"settings\.yaml {message}"):
        train(broken, **TINY, resume=True)


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"'])
def test_damaged_metrics_are_named(text, finished, tmp_path):
    output = shutil.copytree(finished, tmp_path / "copy")
    (output / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.json (cannot be read|must hold).*has a copy of it: cp ") as refusal:
        train(output, **TINY, resume=True)
    subprocess.run(str(refusal.value).rpartition(": ")[2].split(), check=True)
    assert train(output, **TINY, resume=True) == json.loads((finished / "metrics.json").read_text())


# --- full disks and crashes ------------------------------------------------------------------------------------------


def test_a_run_on_a_full_disk_can_be_resumed_when_there_is_room(finished, tmp_path):
    output = tmp_path / "run"
    with full_disk(200_000), pytest.raises(OSError, match="could not be written.*continue with --resume"):
        train(output, **TINY)
    assert not any("unfinished" in name for name in content(output))
    train(output, **TINY, resume=True)
    assert result(output) == result(finished)


@pytest.mark.slow
def test_a_run_that_crashes_at_any_change_of_the_disk_ends_with_the_same_bits(tmp_path):
    output = tmp_path / "run"
    options = {"epochs": 1, "batch_size": 25, "mode": "from-scratch", "trackers": "", "ema": 0.5}

    def resume():
        train(output, draw=True, **options, resume=output.is_dir())

    count = every_crash(
        output, lambda: train(output, draw=True, **options), resume, grouped=True, read=lambda root: result(root)
    )
    assert count > 30


def test_a_run_is_not_resumed_on_other_data(tmp_path, monkeypatch, dataset_cache):
    cells = [f"{'ab'[number % 2]},{split}" for split in ("train", "validation") for number in range(12)]
    table = manifest(tmp_path, manifest_text(*cells, header="image,label,split"), images=24)
    options = {**TINY, "data": str(table), "batch_size": 6}
    monkeypatch.setattr(importlib.import_module("softcam_hub.training.run"), "score_result", _break_off)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", **options)
    before = content(tmp_path / "run")
    table.write_text(table.read_text().replace(",a,train", ",c,train").replace(",b,train", ",a,train"))
    table.write_text(table.read_text().replace(",c,train", ",b,train"))
    with pytest.raises(ValueError, match="cannot resume: the training images of .* or their labels are not those"):
        train(tmp_path / "run", **options, resume=True)
    assert content(tmp_path / "run") == before


def test_the_checkpoints_hold_the_files_that_these_tests_damage(unfinished):
    assert SMALL["model"] == "cape_test_resnet"
    for checkpoint in (unfinished / "checkpoints").iterdir():
        assert {*NAMES} <= {file.name for file in checkpoint.iterdir()}
