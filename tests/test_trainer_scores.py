"""Explanation scores in the log of `Trainer`."""

from pathlib import Path

import pytest
import torch
from helpers.trainer import CLASSES, DROPOUT, SCORES, SEVERAL, fit, images_of, make, modes, squares, state, trainer_of
from helpers.training import equal
from safetensors.torch import load_file

from softcam_hub.explanation_scores.faithfulness import gini_sparseness
from softcam_hub.training.trainer import ExplanationCallback, score_maps

SCORED = {
    "softcam": lambda: make("softcam", "test_resnet"),
    "softcam-several-labels": lambda: make("softcam", **SEVERAL),
    "cape": lambda: make("cape", "test_resnet"),
}


@pytest.mark.parametrize("name", SCORED)
def test_scores_are_logged_at_each_evaluation(name, tmp_path):
    trainer = trainer_of(SCORED[name](), tmp_path, max_steps=6, eval_strategy="steps", eval_steps=3)
    trainer.add_callback(ExplanationCallback(trainer))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_sparseness" in entry]
    assert [entry["step"] for entry in logged] == [3, 6]
    metrics = trainer.evaluate()
    assert {f"eval_{name}" for name in SCORES} | {"eval_loss"} <= metrics.keys()
    assert ("eval_cancelled_share" in metrics) == trainer.model.head_class.map_kinds[0].signed
    for entry in (*logged, metrics):
        assert 0 <= entry["eval_completeness_error"] < 1e-5
    expected = trainer.model.explain(images_of(trainer.eval_dataset))
    assert metrics["eval_confidence"] == pytest.approx(expected.probabilities.mean().item(), rel=1e-5)
    assert metrics["eval_sparseness"] == pytest.approx(gini_sparseness(expected.maps[:, 0]).mean().item(), rel=1e-5)


@pytest.mark.parametrize("options", [{"bf16": True}, {"bf16_full_eval": True}], ids=lambda options: next(iter(options)))
@pytest.mark.parametrize("family", CLASSES)
def test_scores_in_low_precision(family, options, tmp_path):
    trainer = fit(make(family, "test_resnet"), tmp_path, max_steps=3, **options)
    trainer.add_callback(ExplanationCallback(trainer))
    assert 0 <= trainer.evaluate()["eval_completeness_error"] < (1e-5 if "bf16" in options else 1e-2)


def test_only_the_first_images_are_scored(tmp_path):
    trainer = trainer_of(make("cape"), tmp_path, per_device_eval_batch_size=2)
    trainer.add_callback(ExplanationCallback(trainer, images=3))
    confidence = trainer.evaluate()["eval_confidence"]
    first = trainer.model.explain(images_of(trainer.eval_dataset[:4])).probabilities
    assert confidence == pytest.approx(first.mean().item(), rel=1e-5)


@pytest.mark.parametrize("family", CLASSES)
def test_completeness_error_sees_a_map_that_does_not_compose(family, monkeypatch):
    model = make(family)
    drawn = model.head.draw if family == "softcam" else model.head.log_parts
    wrong = "draw" if family == "softcam" else "log_parts"
    monkeypatch.setattr(model.head, wrong, lambda *args: drawn(*args) + 0.5)
    if family == "cape":  # both the sum and the prediction follow log_parts; softmax takes the shift off the latter
        expected = model.explain(images_of(squares(2))).probabilities[:, 0] * (torch.tensor(0.5).exp() - 1)
    else:
        expected = torch.full((2,), 0.5)
    found = score_maps(model, images_of(squares(2)))["completeness_error"]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("greater", [True, False])
def test_a_score_chooses_the_best_checkpoint(greater, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    best = {"metric_for_best_model": "sparseness", "greater_is_better": greater, "load_best_model_at_end": True}
    trainer = trainer_of(make("softcam"), tmp_path, max_steps=8, **saving, **best)
    trainer.add_callback(ExplanationCallback(trainer))
    trainer.train()
    seen = {e["step"]: e["eval_sparseness"] for e in trainer.state.log_history if "eval_sparseness" in e}
    step = (max if greater else min)(seen, key=seen.get)
    assert trainer.state.best_metric == seen[step]
    assert Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{step}"
    assert equal(state(trainer.model), load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors"))


def test_training_does_not_depend_on_being_scored(tmp_path):
    runs = []
    for scored in (False, True):
        options = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 2}
        trainer = trainer_of(make("softcam", "test_resnet", **DROPOUT), tmp_path, **options)
        if scored:
            trainer.add_callback(ExplanationCallback(trainer, images=3))
        trainer.train()
        runs.append(state(trainer.model))
    assert equal(*runs)


def test_each_evaluation_set_gets_its_own_scores(tmp_path):
    trainer = trainer_of(make("cape"), tmp_path)
    trainer.add_callback(ExplanationCallback(trainer))
    parts = {"first": squares()[:5], "second": squares()[5:9]}
    metrics = trainer.evaluate(parts)
    for part, rows in parts.items():
        expected = trainer.model.explain(images_of(rows)).probabilities.mean().item()
        assert metrics[f"eval_{part}_confidence"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize(("training", "frozen"), [(True, False), (True, True), (False, False)])
def test_scoring_leaves_modes_and_statistics_as_they_were(family, training, frozen):
    model = make(family, "test_resnet", freeze_backbone=frozen, **DROPOUT).train(training)
    before, values = modes(model), state(model)
    score_maps(model, images_of(squares(4)))
    assert modes(model) == before
    assert equal(state(model), values)
