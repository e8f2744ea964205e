"""What is refused before a run writes anything: settings that do not fit data, model, folder or an earlier run."""

import logging
import shutil

import pytest
from accelerate.utils import LoggerType
from helpers.training import CLASSES, PF, SIZE, equal, settings, table, train, weights

from softcam_hub.data.splits import load_splits
from softcam_hub.training import results
from softcam_hub.training.checks import check_held_out, check_run
from softcam_hub.training.folder import check_shared, write_settings
from softcam_hub.training.metrics import score_names
from softcam_hub.training.model import make_model
from softcam_hub.training.reporting import check_trackers, read_log
from softcam_hub.training.start import find_start


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file: name a folder with --output"):
        train(tmp_path / "file")
    with pytest.raises(OSError, match="cannot be written: .*; choose another --output"):
        train(tmp_path / "file" / "below")


def test_a_full_disk_is_noticed_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="has 0.0 GB left, but checkpoints and models take up to 0.0 GB: choose another"):
        train(tmp_path)
    assert not (tmp_path / "log.jsonl").exists()


def test_an_earlier_run_is_overwritten_only_with_overwrite(tmp_path):
    train(tmp_path, epochs=1, lr=0)
    (tmp_path / "mine.txt").write_text("")
    before = weights(tmp_path)
    with pytest.raises(FileExistsError, match="holds an earlier training run .*--resume, .*--overwrite"):
        train(tmp_path, epochs=1, seed=1)
    assert equal(weights(tmp_path), before)
    train(tmp_path, epochs=1, seed=1, overwrite=True)
    assert not equal(weights(tmp_path), before)
    assert (tmp_path / "mine.txt").exists()


MISTAKES = [
    {"data": "/no/such/folder"},
    {"model": "cape_resnet999"},
    {"select": "teacher_accuracy"},
    {"auto_augment": "foo"},
    {"mode": "from-scratch", "temperatures": "2 2.0"},
    {"freeze_backbone": True, "augment": False, "cache_limit": 1e-9},
    {"freeze_backbone": True, "augment": False, "cache_dir": __file__},
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_leaves_the_run_that_was_to_be_overwritten(mistake, tmp_path):
    train(tmp_path, epochs=1, lr=0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises((ValueError, OSError)):
        train(tmp_path, **mistake, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_every_process_must_see_the_output_folder(tmp_path):
    write_settings(settings(tmp_path))
    check_shared(tmp_path)
    (tmp_path / "settings.yaml").unlink()
    with pytest.raises(
        OSError, match="does not see .*settings.yaml, which the main process wrote.* one shared storage"
    ):
        check_shared(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_classes": 7}, "num_classes=7, but the data has 4 classes, \\['healthy'"),
        ({"batch_size": 64}, "has 50 images, fewer than one update takes: 64 x 1 accumulated x 1 processes"),
        ({"select": "teacher_accuracy"}, "'teacher_accuracy' is not a validation score here: expected loss, accuracy"),
        ({"model": "cape_resnet999"}, "resnet999"),
        ({"model": "resnet999"}, "resnet999"),
        ({"optimizer": "sgdd"}, "sgdd"),
        ({"model_args": "no_such_thing=3"}, "no_such_thing"),
        ({"trackers": "tensorbord"}, "unknown tracker 'tensorbord': did you mean tensorboard\\?"),
        ({"trackers": "xyz"}, "unknown tracker 'xyz': expected one of aim, clearml, comet_ml, .*, trackio, wandb"),
        ({"data": "/no/such/folder"}, "there is no folder /no/such/folder"),
        ({"train_split": "all"}, "there is no training split 'all'"),
        ({"init": "/no/such/model"}, "/no/such/model"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_are_refused(changes, expected, tmp_path):
    with pytest.raises((ValueError, OSError), match=expected):
        train(tmp_path / "run", **changes)


@pytest.mark.parametrize(("name", "package"), [("mlflow", "mlflow"), ("trackio", "trackio"), ("comet_ml", "comet-ml")])
def test_a_tracker_that_is_not_installed_is_named_with_its_package(name, package, monkeypatch):
    monkeypatch.setattr("softcam_hub.training.reporting.get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    assert check_trackers("tensorboard") == ["tensorboard"]
    with pytest.raises(ImportError, match=f"^tracker '{name}' is not installed: pip install {package}$"):
        check_trackers(f"tensorboard, {name}")


def no_validation(folder):
    return table(folder, [*CLASSES] * 8)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"select": "teacher_accuracy"}, "select='teacher_accuracy' is not a validation score here: expected loss"),
        ({"model": "test_resnet", "select": "sparseness"}, "select='sparseness' is not a validation score here"),
        (
            {"model": "softcam_test_resnet", "data": "labels", "select": "kappa", "train_count": 16, "eval_count": 8},
            "select='kappa' is not a validation score here: expected loss, accuracy, auc, sparseness",
        ),
        (
            {"mode": "from-scratch", "temperatures": "1 2", "data": no_validation, "hold_out": 0.0},
            "there are none: set hold_out, such as",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_scores_that_validation_does_not_give_are_refused(changes, expected, tmp_path):
    data = changes.get("data")
    changes = {**changes, "data": data(tmp_path / "data")} if callable(data) else changes
    with pytest.raises(ValueError, match=expected):
        train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"mode": "from-scratch"}, {"model": "test_resnet"}, {"data": "labels"}], ids=str)
def test_score_names_are_those_of_a_validation(options, tmp_path):
    if "data" in options:
        options = {**options, "model": "softcam_test_resnet", "train_count": 16, "eval_count": 8, "data_size": SIZE}
    config = settings(tmp_path, **options)
    splits = load_splits(config.data)
    train(tmp_path, **options, epochs=1)
    line = next(line for line in read_log(tmp_path / "log.jsonl") if "epoch" in line)
    found = {name.removeprefix("validation_") for name in line if name.startswith("validation_")}
    assert set(score_names(make_model(config, splits), splits.multi_label)) == found


def test_a_search_for_a_temperature_does_not_replace_an_earlier_run(vanilla_run, tmp_path):
    train(tmp_path, model="test_resnet", epochs=1)
    before = weights(tmp_path)
    with pytest.raises(FileExistsError, match=f"{tmp_path} holds an earlier training run"):
        train(tmp_path, init=str(vanilla_run[0] / "model"), **PF, temperatures="1 4")
    assert equal(weights(tmp_path), before)
    assert not list(tmp_path.glob("T=*"))


def test_weights_that_have_seen_held_out_images_are_refused(tmp_path, monkeypatch):
    division = {"data": table(tmp_path / "data", [*CLASSES] * 10), "folds": 3, "fold": 1, "hold_out": 0.2}
    train(tmp_path / "vanilla", model="test_resnet", **division, epochs=1)
    start = {"init": str(tmp_path / "vanilla" / "model"), **PF}
    message = "has learnt from images that are to be held out now: its run .*'fold': 1"
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "other", **start, **{**division, "fold": 2})
    assert not (tmp_path / "other").exists()
    for change in ({"hold_out": 0.3}, {"data_seed": 1}, {"folds": 4}, {"folds": 0, "fold": 0}):
        with pytest.raises(ValueError, match=message):
            check_held_out(start["init"], settings(tmp_path, **start, **{**division, **change}).flat())
    copied = shutil.copytree(start["init"], tmp_path / "copied")
    monkeypatch.setenv("HOME", str(tmp_path))
    other_names = (
        *("~/vanilla/model", f"local-dir:{start['init']}", f"{start['init']}/model.safetensors"),
        *(str(copied), str(copied / "model.safetensors")),
    )
    for name in other_names:
        with pytest.raises(ValueError, match=message):
            check_held_out(name, settings(tmp_path, **start, **{**division, "fold": 2}).flat())
    for accepted in (division, {"data": "elsewhere"}):
        check_held_out(start["init"], settings(tmp_path, **start, **accepted).flat())


def test_an_empty_data_set_is_refused(tmp_path):
    (tmp_path / "empty.csv").write_text("image,label\n")
    with pytest.raises(ValueError, match="empty.csv"):
        train(tmp_path / "run", data=str(tmp_path / "empty.csv"))


def test_weights_for_classes_in_another_order_are_refused(vanilla_run, from_scratch_run, tmp_path):
    order = table(tmp_path / "order", [*CLASSES[::-1]] * 4)
    for source in (vanilla_run[0] / "model", from_scratch_run[0] / "model"):
        with pytest.raises(
            ValueError,
            match="was trained on the classes \\['healthy', 'microaneurysm'.*, but the data has \\['exudate'.*another order",
        ):
            train(tmp_path / "a", init=str(source), data=order)
    with pytest.raises(ValueError, match="holds a test_resnet, but the model to train is cape_test_convnext"):
        train(tmp_path / "c", init=str(vanilla_run[0] / "model"), model="cape_test_convnext")


@pytest.mark.parametrize(("l1", "warned"), [(3.0, True), (2.9, False)])
def test_a_penalty_that_leaves_nothing_to_learn_gives_a_warning(l1, warned, tmp_path, caplog):
    config = settings(tmp_path, model="softcam_test_resnet", l1=l1)
    splits = load_splits(config.data)
    with caplog.at_level(logging.WARNING):
        check_run(config, splits, make_model(config, splits), 1, find_start(config.model, splits.classes))
    assert ("leaves nothing to learn: with 4 classes, from 3 on" in caplog.text) == warned


@pytest.mark.parametrize(("accuracy", "count", "warned"), [(0.9, 100, True), (0.94, 100, False), (0.75, 8, False)])
@pytest.mark.parametrize(
    ("labels", "remedy"),
    [(True, "--epochs may"), (False, "--epochs, or --alpha 1 for a cross-entropy with the labels, may")],
)
def test_cape_that_is_less_accurate_than_its_teacher_gives_a_warning(accuracy, count, warned, labels, remedy, caplog):
    scores = {"accuracy": accuracy, "teacher_accuracy": 0.95}
    results.warn_of_lost_accuracy(scores, "test", count, labels)
    sentence = f"CAPE classifies 90.0 % of the test images correctly, and its teacher 95.0 %: more {remedy} help"
    assert (sentence in caplog.text) == warned == bool(caplog.records)


def test_a_run_looks_at_what_cape_lost_to_its_teacher(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(results, "MAY_LOSE", -2)
    monkeypatch.setattr(results, "FEW_IMAGES", -1000)
    train(tmp_path / "run", mode="from-scratch", epochs=1)
    assert caplog.text.count("CAPE classifies") == 1
    train(tmp_path / "direct", epochs=1)
    assert caplog.text.count("CAPE classifies") == 1, "without a teacher there is nothing to lose"
