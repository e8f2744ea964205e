"""Train with the `Trainer` of transformers: each loss, frozen backbones, weight decay, checkpoints, and labels."""

import pytest
import torch
from helpers.trainer import (
    CLASSES,
    DROPOUT,
    EXACT,
    SETTINGS,
    SEVERAL,
    fit,
    images_of,
    losses,
    make,
    modes,
    post_fit,
    squares,
    state,
)
from helpers.training import equal, largest_difference
from safetensors.torch import load_file
from transformers import TrainingArguments

from softcam_hub import CAPEForImageClassification
from softcam_hub.explanation_scores.faithfulness import gini_sparseness
from softcam_hub.training import EvidenceTrainer

FINE_TUNED = {
    "softcam": lambda: make("softcam", "test_resnet"),
    "softcam-several-labels": lambda: make("softcam", **SEVERAL),
    "softcam-elastic-net": lambda: make("softcam", l1=0.1, l2=0.02),
    "cape-direct": lambda: make("cape", "test_resnet"),
    "cape-from-scratch": lambda: make("cape", "test_resnet", mode="from-scratch"),
    "cape-from-scratch-selective": lambda: make("cape", mode="from-scratch", selective=True),
    "cape-post-fit": lambda: post_fit("test_resnet"),
}


@pytest.mark.parametrize("name", FINE_TUNED)
def test_the_loss_falls_and_the_maps_compose_the_prediction(name, tmp_path):
    model = FINE_TUNED[name]()
    trainer = fit(model, tmp_path, num_train_epochs=6)
    assert losses(trainer)[-6:].mean() < 0.5 * losses(trainer)[:6].mean()
    rows = trainer.train_dataset
    output = model.eval()(images_of(rows))
    labels = torch.stack([torch.as_tensor(row["labels"]) for row in rows])
    if model.family == "cape":
        assert torch.allclose(output.maps.sum(dim=(2, 3)), output.logits.softmax(dim=1), atol=1e-6)
    else:
        assert torch.allclose(output.maps.mean(dim=(2, 3)), output.logits, atol=1e-5)
    right = (output.logits > 0) == labels if labels.ndim == 2 else output.logits.argmax(dim=1) == labels
    assert right.float().mean() > 0.9


@pytest.mark.slow
def test_elastic_net_makes_maps_small_and_l1_makes_none_of_them_sparser(tmp_path):
    """L1 empties whole maps, of classes that are not there. Within a map it has no preference, and L2 flattens.

    The shape of a map may change with shared weights; smaller values of l1 changed it by less than 0.1 here.
    """
    size, sparseness, within = {}, {}, {}
    for name, penalty in {"none": {}, "l1": {"l1": 1.0}, "l2": {"l2": 0.3}}.items():
        model = make("softcam", "test_resnet", **penalty)
        fit(model, tmp_path, num_train_epochs=8)
        maps = model.eval()(images_of(squares())).maps.detach()
        size[name], sparseness[name] = maps.abs().mean(), gini_sparseness(maps.flatten(2)).mean()
        within[name] = gini_sparseness(maps.flatten(0, 1)).mean()
    assert max(size["l1"], size["l2"]) < 0.5 * size["none"]
    assert sparseness["l1"] - 0.15 > sparseness["none"] > sparseness["l2"] + 0.1
    assert abs(within["l1"] - within["none"]) < 0.05
    assert within["none"] > within["l2"] + 0.1


@pytest.mark.slow
def test_from_scratch_trains_a_teacher_from_which_alone_the_backbone_learns(tmp_path):
    runs = {}
    for beta in (0.5, 2.0):
        model = make("cape", "test_resnet", mode="from-scratch", beta=beta)
        before = state(model)
        fit(model, tmp_path, max_steps=30, max_grad_norm=0.0)
        runs[beta] = state(model)
    assert largest_difference(before, runs[2.0]) > 0.01
    for part in ("backbone.", "teacher."):
        low, high = ({key: value for key, value in runs[beta].items() if key.startswith(part)} for beta in runs)
        assert equal(low, high), part
        assert not equal(low, {key: before[key] for key in low}), part
    assert not torch.equal(runs[0.5]["head.weight"], runs[2.0]["head.weight"])
    with torch.no_grad():
        teacher_logits = model.eval().teacher(model.forward_features(images_of(squares())).mean(dim=(2, 3)))
    labels = torch.tensor([row["labels"] for row in squares()])
    assert (teacher_logits.argmax(dim=1) == labels).float().mean() > 0.9


def test_post_fit_moves_the_head_alone(tmp_path):
    model = post_fit("test_resnet")
    before = state(model)
    trainer = fit(model, tmp_path, num_train_epochs=3, weight_decay=0.5)
    assert losses(trainer)[-6:].mean() < 0.5 * losses(trainer)[:6].mean()
    after = state(model)
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert moved == {"head.weight", "head.bias", "head.log_temperature"}


SAME_RUN = [
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    {"gradient_checkpointing": True},
]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_accumulating_or_recomputing_does_not_change_the_training(name, tmp_path):
    start, runs = state(SETTINGS[name]()), []
    for options in ({}, *SAME_RUN):
        trainer = fit(SETTINGS[name](), tmp_path, max_steps=4, **{**EXACT, **options})
        runs.append((losses(trainer), state(trainer.model)))
        recomputes = any(getattr(module, "grad_checkpointing", False) for module in trainer.model.modules())
        assert recomputes == ("gradient_checkpointing" in options)
    (expected_losses, expected), *others = runs
    for found_losses, found in others:
        assert torch.allclose(found_losses, expected_losses, rtol=1e-4)
        assert largest_difference(found, expected) < 1e-3 * largest_difference(start, expected)


@pytest.mark.parametrize("family", CLASSES)
def test_a_frozen_backbone_does_not_move(family, tmp_path):
    fit(make(family, "test_resnet", freeze_backbone=True), tmp_path / "run", max_steps=2).save_model(tmp_path / "saved")
    model = CLASSES[family][0].from_pretrained(tmp_path / "saved")
    before = state(model)
    trainer = fit(model, tmp_path / "run", max_steps=3, weight_decay=0.5)
    moved = {key for key, value in state(model).items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if key.startswith("head.")}
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in model.head.parameters()}
    for again in (model, CLASSES[family][0].from_pretrained(tmp_path / "saved")):
        again.train()
        assert not any(modes(again.backbone))
        assert all(modes(again.head))
        assert not any(parameter.requires_grad for parameter in again.backbone.parameters())


def test_an_unfrozen_backbone_moves_with_its_statistics(tmp_path):
    model = make("softcam", "test_resnet")
    before = state(model)
    fit(model, tmp_path, max_steps=2)
    stayed = {key for key, value in state(model).items() if torch.equal(value, before[key])}
    assert not {key for key in stayed if "running" in key or key.endswith("weight")}


@pytest.mark.parametrize("mode", ["direct", "from-scratch"])
def test_the_temperature_gets_no_weight_decay(mode, tmp_path):
    model = make("cape", mode=mode)
    arguments = TrainingArguments(str(tmp_path), weight_decay=0.1, use_cpu=True, report_to="none")
    groups = EvidenceTrainer(model, arguments).create_optimizer().param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    (temperature,) = (value for name, value in model.named_parameters() if "log_temperature" in name)
    assert decay[id(temperature)] == 0
    assert decay[id(model.head.bias)] == 0
    assert decay[id(model.head.weight)] == 0.1


RESUMED = {
    "softcam": lambda: make("softcam", "test_resnet", l1=0.1, **DROPOUT),
    "softcam-frozen": lambda: make("softcam", "test_resnet", freeze_backbone=True, **DROPOUT),
    "cape-direct": lambda: make("cape", **DROPOUT),
    "cape-from-scratch": lambda: make("cape", "test_resnet", mode="from-scratch", **DROPOUT),
    "cape-post-fit": lambda: post_fit("test_resnet"),
}


@pytest.mark.parametrize("name", RESUMED)
def test_resuming_equals_the_uninterrupted_run(name, tmp_path):
    options = {"max_steps": 9, "save_strategy": "steps", "save_steps": 2}
    whole = fit(RESUMED[name](), tmp_path, **options)
    for step in (4, 6):  # within an epoch, and between two
        torch.manual_seed(123)
        resumed = fit(RESUMED[name](), tmp_path / "resumed", resume=str(tmp_path / f"checkpoint-{step}"), **options)
        assert torch.equal(losses(resumed), losses(whole))
        assert equal(state(resumed.model), state(whole.model))
    assert len(losses(whole).unique()) == 9
    assert not any(path.suffix == ".bin" for path in tmp_path.rglob("*model*"))


@pytest.mark.parametrize("make_model", [RESUMED["cape-from-scratch"], RESUMED["cape-post-fit"]])
def test_the_teacher_is_in_checkpoints_and_not_in_the_exported_model(make_model, tmp_path):
    model = make_model()
    fit(model, tmp_path / "run", max_steps=3, save_strategy="steps", save_steps=1)
    for step in (1, 2, 3):
        saved = load_file(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors")
        assert {"teacher.weight", "teacher.bias"} < saved.keys()
    assert equal(saved, state(model))
    again = CAPEForImageClassification.from_pretrained(tmp_path / "run" / "checkpoint-3")
    assert equal(state(again), state(model))

    again.drop_teacher().save_pretrained(tmp_path / "final")
    assert load_file(tmp_path / "final" / "model.safetensors").keys() == state(model, "backbone.", "head.").keys()
    final = CAPEForImageClassification.from_pretrained(tmp_path / "final")
    assert final.config.mode == "direct"
    assert torch.equal(final(images_of(squares())).logits, model.eval()(images_of(squares())).logits)
