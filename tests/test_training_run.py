"""A whole run: the files in its folder, the model that they hold, and runs that start from another one."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.training import (
    CLASSES,
    PF,
    SIZE,
    VALIDATION,
    cut_off_at,
    equal,
    images,
    largest_difference,
    pixels_for,
    settings,
    train,
    weights,
)
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageClassification, pipeline

from softcam_hub.figures.charts import COLOURS
from softcam_hub.hub.cards import check_card, load_model_record
from softcam_hub.output_folder import LOCK, RECORD
from softcam_hub.training import parse
from softcam_hub.training.checkpoint import seal
from softcam_hub.training.config import SCORES
from softcam_hub.training.folder import output_folder
from softcam_hub.training.loop import Training
from softcam_hub.training.reporting import read_log
from softcam_hub.training.run import _copy_result


def test_a_run_writes_all_files_of_its_folder(from_scratch_run):
    output, metrics = from_scratch_run
    names = {
        "model",
        "vanilla",
        "metrics.json",
        "curve.png",
        "examples.png",
        "log.jsonl",
        "settings.yaml",
        "checkpoints",
    }
    assert {path.name for path in output.iterdir()} == names | {"softcam_hub", RECORD, LOCK}
    assert json.loads((output / "metrics.json").read_text()) == metrics
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-000000012", "step-000000018"]
    assert not any(name.startswith("teacher") for name in weights(output))
    beside = {path.name for path in (output / "model").iterdir()}
    assert beside >= {"README.md", "metrics.json", "recipe.yaml", "curve.png", "examples.png"}
    card = (output / "model" / "README.md").read_text()
    check_card(card, load_model_record(output / "model").rows, beside)
    assert f"| accuracy | {100 * metrics['test_accuracy']:.1f} % |" in card


def test_settings_are_a_recipe_that_gives_the_same_settings(from_scratch_run):
    output, _ = from_scratch_run
    config = parse(["--recipe", str(output / "settings.yaml")])
    expected = settings(
        output,
        mode="from-scratch",
        trackers="tensorboard",
        color_jitter=0.2,
        erase=0.3,
        epochs=3,
        select="auc",
        ema=0.7,
        hold_out=0.0,  # the data have a validation split
    )
    assert config == expected


def test_every_epoch_is_logged_for_both_heads(from_scratch_run):
    output, metrics = from_scratch_run
    lines = read_log(output / "log.jsonl")
    epochs = [line for line in lines if "epoch" in line]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert [line["step"] for line in lines if "lr" in line] == list(range(1, 19))
    wanted = ("accuracy", "teacher_accuracy", "confidence", "teacher_confidence", "disagreement", "loss")
    # the maps of CAPE have one sign, so that no share of them cancels
    assert {name for line in epochs for name in line if name.startswith("validation_")} == {
        f"validation_{name}" for name in SCORES if name != "cancelled_share"
    }
    for line in epochs:
        assert {f"{split}_{name}" for split in ("train", "validation") for name in wanted} <= line.keys()
        assert line["validation_completeness_error"] < 1e-5
    best = max(epochs, key=lambda line: line["validation_auc"])
    assert (metrics["validation_auc"], metrics["epoch"]) == (best["validation_auc"], best["epoch"])


def test_tensorboard_has_every_value_of_the_log(from_scratch_run):
    output, _ = from_scratch_run
    events = EventAccumulator(str(output / "softcam_hub"))
    events.Reload()
    expected = {}
    for line in read_log(output / "log.jsonl"):
        for name, value in line.items():
            if name != "step":
                expected.setdefault(name, {})[line["step"]] = value
    assert set(expected) == set(events.Tags()["scalars"])
    for name, values in expected.items():
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == {step: pytest.approx(value, rel=1e-6) for step, value in values.items()}


def test_the_curve_shows_both_heads(from_scratch_run):
    pixels = np.asarray(Image.open(from_scratch_run[0] / "curve.png").convert("RGB"))
    assert pixels.shape[1] == 900
    for colour in (tuple(bytes.fromhex(code[1:])) for code in COLOURS[:4]):
        assert (pixels[:290, :450] == colour).all(axis=2).sum() > 50
    assert len(np.unique(pixels[:290, 450:].reshape(-1, 3), axis=0)) > 5


def test_the_model_opens_through_every_door_and_scores_as_reported(from_scratch_run):
    output, metrics = from_scratch_run
    theirs = timm.create_model(f"local-dir:{output / 'model'}", pretrained=True).eval()
    ours = AutoModelForImageClassification.from_pretrained(output / "model").eval()
    batch = pixels_for(ours)
    assert batch.shape[-2:] == (SIZE, SIZE)
    with torch.no_grad():
        logits = theirs(batch)
        found = ours(batch)
    assert torch.allclose(found.logits, logits, atol=1e-5)
    assert found.maps.shape == (VALIDATION, 4, SIZE // 8, SIZE // 8)
    labels = torch.arange(VALIDATION) % 4
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(metrics["test_accuracy"])
    assert F.cross_entropy(logits, labels).item() == pytest.approx(metrics["test_loss"], rel=1e-4)
    assert list(ours.config.id2label.values()) == CLASSES
    answer = pipeline("image-classification", model=str(output / "model"))(images()[0], top_k=4)
    expected = dict(zip(CLASSES, logits[0].softmax(0).tolist(), strict=True))
    assert {row["label"]: row["score"] for row in answer} == pytest.approx(expected, abs=1e-4)


def test_the_vanilla_classifier_is_the_teacher(from_scratch_run):
    output, metrics = from_scratch_run
    vanilla = timm.create_model(f"local-dir:{output / 'vanilla'}", pretrained=True).eval()
    with torch.no_grad():
        logits = vanilla(pixels_for(vanilla))
    labels = torch.arange(VALIDATION) % 4
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(metrics["test_teacher_accuracy"])
    confidence = logits.softmax(1).max(1).values.mean().item()
    assert confidence == pytest.approx(metrics["test_teacher_confidence"], rel=1e-5)


def test_the_vanilla_classifier_opens_through_every_door(vanilla_run):
    output, metrics = vanilla_run
    theirs = timm.create_model(f"local-dir:{output / 'model'}", pretrained=True).eval()
    ours = AutoModelForImageClassification.from_pretrained(output / "model").eval()
    assert type(ours).__name__ == "TimmWrapperForImageClassification"
    with torch.no_grad():
        logits = theirs(pixels_for(theirs))
        assert torch.allclose(ours(pixels_for(theirs)).logits, logits, atol=1e-5)
    accuracy = (logits.argmax(1) == torch.arange(VALIDATION) % 4).float().mean().item()
    assert accuracy == pytest.approx(metrics["test_accuracy"])
    assert not (output / "vanilla").exists()
    answer = pipeline("image-classification", model=str(output / "model"))(images()[0], top_k=4)
    assert {row["label"] for row in answer} == set(CLASSES)


def test_post_fitting_moves_only_the_head(vanilla_run, post_fit_run):
    teacher, found = weights(vanilla_run[0]), weights(post_fit_run[0])
    for name, value in found.items():
        if name.startswith("backbone."):
            assert torch.equal(value, teacher[name.removeprefix("backbone.")]), name
    assert not torch.equal(found["head.weight"].flatten(), teacher["fc.weight"].flatten())
    assert equal(weights(post_fit_run[0], "vanilla"), teacher)
    assert post_fit_run[1]["test_teacher_accuracy"] == pytest.approx(vanilla_run[1]["test_accuracy"])


def test_post_fitting_without_a_cache_ends_the_same(vanilla_run, post_fit_run, tmp_path):
    train(tmp_path, init=str(vanilla_run[0] / "model"), **PF, cache_features=False)
    assert not (tmp_path / "features").exists()
    moved = largest_difference(weights(post_fit_run[0]), weights(tmp_path))
    assert moved < 1e-5
    assert (post_fit_run[0] / "features").is_dir()
    assert read_log(tmp_path / "log.jsonl") == [
        {name: pytest.approx(value, abs=1e-5) for name, value in line.items()}
        for line in read_log(post_fit_run[0] / "log.jsonl")
    ]


def test_a_frozen_backbone_keeps_its_statistics_with_augmentation_too(vanilla_run, tmp_path):
    options = {"model": "softcam_test_resnet", "freeze_backbone": True, "l1": 0.1, "epochs": 1}
    train(tmp_path, init=str(vanilla_run[0] / "model"), **options)
    teacher, found = weights(vanilla_run[0]), weights(tmp_path)
    assert all(torch.equal(found[f"backbone.{name}"], teacher[name]) for name in teacher if not name.startswith("fc."))
    assert not torch.equal(found["head.weight"].flatten(), teacher["fc.weight"].flatten())


def test_a_run_with_several_labels_per_image(tmp_path):
    options = {"data": "labels", "train_count": 32, "eval_count": 16, "data_size": SIZE, "balance": "loss"}
    metrics = train(tmp_path, model="softcam_test_resnet", **options, epochs=1)
    assert 0 <= metrics["test_accuracy"] <= 1
    assert 0 <= metrics["test_auc"] <= 1
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "model").config.problem_type.startswith("multi")
    with pytest.raises(ValueError, match="balance='sampling' needs one label per image"):
        train(tmp_path / "b", model="softcam_test_resnet", **{**options, "balance": "sampling"})


def test_a_run_on_streaming_data(tmp_path):
    options = {"data": "lesions", "train_count": 32, "eval_count": 12, "data_size": SIZE, "streaming": True}
    with pytest.raises(ValueError, match="say how long an epoch is with --steps-per-epoch"):
        train(tmp_path / "a", **options)
    with pytest.raises(ValueError, match="balance needs to count the classes before training"):
        train(tmp_path / "c", **options, steps_per_epoch=3, balance="loss")
    metrics = train(tmp_path / "d", **options, steps_per_epoch=3, epochs=2)
    assert [line["step"] for line in read_log(tmp_path / "d" / "log.jsonl") if "lr" in line] == [1, 2, 3, 4, 5, 6]
    assert "test_accuracy" in metrics


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stream_continues_from_epoch_to_epoch_and_after_a_break(workers, tmp_path, monkeypatch):
    options = {"data": "lesions", "train_count": 32, "eval_count": 8, "data_size": SIZE, "streaming": True}
    options |= {"steps_per_epoch": 3, "epochs": 2, "checkpoint_steps": 1, "workers": workers, "validation_split": ""}
    shown, real = [], Training._count

    def count(self, step, labels):
        shown.append(labels.tolist())
        real(self, step, labels)

    monkeypatch.setattr(Training, "_count", count)
    train(tmp_path / "whole", **options)
    whole = shown.copy()
    assert Counter(itertools.chain(*whole[:4])) == dict.fromkeys(range(4), 8), "all 32 images before any comes again"
    for step in (3, 5):  # between two epochs, and within one
        with cut_off_at(step):
            train(tmp_path / str(step), **options)
        shown.clear()
        train(tmp_path / str(step), **options, resume=True)
        assert shown == whole[step:]
        assert equal(weights(tmp_path / str(step)), weights(tmp_path / "whole"))


def test_the_time_before_a_break_counts(tmp_path):
    with cut_off_at(6):
        train(tmp_path)
    progress = next((tmp_path / "checkpoints").glob("*/progress.json"))
    before = json.loads(progress.read_text())
    assert 0 < before["seconds"] < 60
    progress.write_text(json.dumps({**before, "seconds": 1000.0}))
    seal(progress.parent)
    assert 1000 < train(tmp_path, resume=True)["seconds"] < 1060


def test_a_run_in_bfloat16_saves_float32(tmp_path):
    metrics = train(tmp_path, epochs=1, mixed_precision="bf16", mode="from-scratch")
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path).values())
    assert math.isfinite(metrics["test_loss"])


def test_the_seed_alone_determines_the_result(from_scratch_run, tmp_path):
    options = {"mode": "from-scratch", "color_jitter": 0.2, "erase": 0.3, "epochs": 3, "select": "auc", "ema": 0.7}
    train(tmp_path / "same", **options, workers=2)
    assert equal(weights(tmp_path / "same"), weights(from_scratch_run[0]))
    train(tmp_path / "other", **{**options, "epochs": 1}, seed=1)
    assert not equal(weights(tmp_path / "other"), weights(from_scratch_run[0]))


def test_a_search_for_a_temperature_copies_no_file_of_the_user(tmp_path):
    for name in ("T=4/notes.txt", "T=4/model/config.json", "T=4/settings.yaml", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    _copy_result(tmp_path / "T=4", output_folder(settings(tmp_path, mode="from-scratch", temperatures="1 4")))
    assert (tmp_path / "notes.txt").read_text() == "notes.txt"
    assert (tmp_path / "model" / "config.json").read_text() == "T=4/model/config.json"
    assert not (tmp_path / "settings.yaml").exists()


@pytest.mark.slow
def test_the_best_temperature_becomes_the_result(vanilla_run, tmp_path):
    options = {
        "init": str(vanilla_run[0] / "model"),
        **PF,
        "epochs": 1,
        "temperatures": "1 4",
        "select": "disagreement",
    }
    metrics = train(tmp_path, **options)
    tried = {name: json.loads((tmp_path / f"T={name}" / "metrics.json").read_text()) for name in ("1", "4")}
    scores = {name: row["validation_disagreement"] for name, row in tried.items()}
    best = min(scores, key=scores.get)
    assert metrics == {**tried[best], "temperature": float(best), "tried": scores}
    assert equal(weights(tmp_path), weights(tmp_path / f"T={best}"))
    assert len(list((tmp_path / "features").iterdir())) == 2
    assert not (tmp_path / "checkpoints").exists()
    assert (tmp_path / "model" / "metrics.json").exists()
    assert parse(["--recipe", str(tmp_path / "settings.yaml")]) == settings(tmp_path, **options, hold_out=0.0)
    assert train(tmp_path, **options, resume=True) == metrics
    with pytest.raises(FileExistsError, match="holds an earlier training run"):
        train(tmp_path, **options)
    with pytest.raises(ValueError, match="cannot resume: .* says temperatures='1 4', but now it is '1 2'"):
        train(tmp_path, **{**options, "temperatures": "1 2"}, resume=True)
    again = train(tmp_path, **options, overwrite=True)
    assert {**again, "seconds": 0} == {**metrics, "seconds": 0}


@pytest.mark.slow
def test_a_model_of_the_same_family_keeps_its_architecture(from_scratch_run, tmp_path):
    start = {"init": str(from_scratch_run[0] / "model"), "epochs": 1}
    with pytest.raises(ValueError, match="holds a test_resnet, but the model to train is cape_test_convnext"):
        train(tmp_path / "a", **start, model="cape_test_convnext")
    for args, said in {"output_stride=16": "output_stride=8, but", "drop_rate=0.5": "drop_rate=None, but"}.items():
        with pytest.raises(ValueError, match=f"was made with {said} model_args and image_size make it"):
            train(tmp_path / "b", **start, model_args=args)
    train(tmp_path / "c", **start, model_args="")
    train(tmp_path / "d", **start)
    assert equal(weights(tmp_path / "c"), weights(tmp_path / "d"))
