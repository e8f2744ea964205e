"""The real `Trainer` must train our models: each loss, exact resume, two processes, evaluation that stays small.

Images hold one coloured square on noise, and its colour is the class; `test_convnext` has no BatchNorm, so that runs on
other splits of a batch can be compared.
"""

import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from softcam_hub import CAPEConfig, CAPEForImageClassification, SoftCAMConfig, SoftCAMForImageClassification
from softcam_hub.explanation_scores.faithfulness import gini_sparseness
from softcam_hub.training import EvidenceTrainer
from softcam_hub.training.trainer import ExplanationCallback, score_maps

CLASSES = {
    "softcam": (SoftCAMForImageClassification, SoftCAMConfig),
    "cape": (CAPEForImageClassification, CAPEConfig),
}
SCORES = ("completeness_error", "sparseness", "confidence")
SEVERAL = {"problem_type": "multi_label_classification"}
EXACT = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}
"""Updates proportional to the gradient, so that a loss of the wrong scale shows; Adam would divide it away."""


def squares(count=48, several=False):
    """Rows of an image (3, 32, 32) and the colour of its square, or 0 and 1 for each of three possible squares."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(count):
        present = [(index >> colour) % 2 for colour in range(3)] if several else [index % 3 == c for c in range(3)]
        image = 0.3 * torch.randn(3, 32, 32, generator=generator)
        for colour in range(3):
            x, y = torch.randint(0, 22, (2,), generator=generator).tolist()
            image[colour, y : y + 10, x : x + 10] += 2.0 * present[colour]
        rows.append({"pixel_values": image, "labels": torch.tensor(present).float() if several else index % 3})
    return rows


def images_of(rows):
    return torch.stack([row["pixel_values"] for row in rows])


def make(family, backbone="test_convnext", model_args=None, **config):
    """A new model of three classes with maps of 4x4, always the same one."""
    torch.manual_seed(7)
    model, settings = CLASSES[family]
    args = {"output_stride": 8, **(model_args or {})}
    return model(settings(architecture=f"{family}_{backbone}", num_labels=3, model_args=args, **config))


@cache
def vanilla(backbone):
    """A timm classifier that was trained on the squares."""
    torch.manual_seed(7)
    rows = squares()
    model = timm.create_model(backbone, num_classes=3, output_stride=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same weights in every process, whatever a launcher gives it
    for _ in range(15):
        optimizer.zero_grad()
        F.cross_entropy(model(images_of(rows)), torch.tensor([row["labels"] for row in rows])).backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return model


def post_fit(backbone="test_convnext", **config):
    return CAPEForImageClassification.from_timm(vanilla(backbone), mode="post-fit", **config)


def trainer_of(model, folder, **options):
    """A Trainer on the squares; `options` are TrainingArguments."""
    rows = squares(several=model.config.problem_type == SEVERAL["problem_type"])
    defaults = {
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    quiet = {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    arguments = TrainingArguments(str(folder), **{**defaults, **quiet, **options})
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:11])


def fit(model, folder, resume=None, **options):
    trainer = trainer_of(model, folder, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer):
    return torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def state(module, *prefixes):
    """A copy of the state, or of the keys that begin with `prefixes`."""
    return {key: value.clone() for key, value in module.state_dict().items() if key.startswith(prefixes or "")}


def equal(found, expected):
    """Bit for bit."""
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    return max((found[key] - expected[key]).abs().max().item() for key in found)


# --- fine-tuning -----------------------------------------------------------------------------------------------------

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


def test_elastic_net_makes_maps_small_and_l1_makes_them_sparse(tmp_path):
    size, sparseness = {}, {}
    for name, penalty in {"none": {}, "l1": {"l1": 1.0}, "l2": {"l2": 0.3}}.items():
        model = make("softcam", "test_resnet", **penalty)
        fit(model, tmp_path, num_train_epochs=8)
        maps = model.eval()(images_of(squares())).maps.detach()
        size[name], sparseness[name] = maps.abs().mean(), gini_sparseness(maps.flatten(2)).mean()
    assert max(size["l1"], size["l2"]) < 0.5 * size["none"]
    assert sparseness["l1"] - 0.15 > sparseness["none"] > sparseness["l2"] + 0.1


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


# --- batches, frozen backbones, weight decay -------------------------------------------------------------------------

SETTINGS = {
    "softcam": lambda: make("softcam"),
    "softcam-several-labels": lambda: make("softcam", **SEVERAL),
    "softcam-elastic-net-frozen": lambda: make("softcam", "test_resnet", l1=0.3, l2=0.1, freeze_backbone=True),
    "cape-direct": lambda: make("cape"),
    "cape-from-scratch": lambda: make("cape", mode="from-scratch"),
    "cape-from-scratch-selective": lambda: make("cape", mode="from-scratch", selective=True),
    "cape-post-fit": lambda: post_fit("test_resnet"),
}
SAME_RUN = {
    "accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "recomputed": {"gradient_checkpointing": True},
}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("other", SAME_RUN)
@pytest.mark.parametrize("name", SETTINGS)
def test_accumulating_or_recomputing_changes_nothing(name, other, tmp_path):
    start, runs = state(SETTINGS[name]()), []
    for options in ({}, SAME_RUN[other]):
        trainer = fit(SETTINGS[name](), tmp_path, max_steps=4, **{**EXACT, **options})
        runs.append((losses(trainer), state(trainer.model)))
        recomputes = any(getattr(module, "grad_checkpointing", False) for module in trainer.model.modules())
        assert recomputes == ("gradient_checkpointing" in options)
    (expected_losses, expected), (found_losses, found) = runs
    assert torch.allclose(found_losses, expected_losses, rtol=1e-4)
    assert largest_difference(found, expected) < 1e-3 * largest_difference(start, expected)


def modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("family", CLASSES)
def test_a_frozen_backbone_stays_put(family, tmp_path):
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


# --- checkpoints -----------------------------------------------------------------------------------------------------

DROPOUT = {"model_args": {"drop_rate": 0.3}}
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


# --- explanation scores ----------------------------------------------------------------------------------------------

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


# --- bad labels ------------------------------------------------------------------------------------------------------

BAD_LABELS = {
    "class out of range": (
        {},
        torch.tensor([0, 1, 2, 3]),
        "label 3 is out of range: this model has 3 classes, 0 to 2",
    ),
    "negative class": (
        {},
        torch.tensor([0, 1, 2, -1]),
        "label -1 is out of range: this model has 3 classes, 0 to 2",
    ),
    "floating-point classes": (
        {},
        torch.tensor([0.0, 1.0, 2.0, 0.0]),
        "expected labels as integer class indices (4,) or probabilities (4, 3), got torch.float32 of shape (4,)",
    ),
    "column of classes": (
        {},
        torch.tensor([[0], [1], [2], [0]]),
        "expected labels as integer class indices (4,) or probabilities (4, 3), got torch.int64 of shape (4, 1)",
    ),
    "multi-hot": (
        {},
        torch.eye(4, 3).long(),
        "expected labels as integer class indices (4,) or probabilities (4, 3), got torch.int64 of shape (4, 3): "
        "several labels per image need SoftCAM with problem_type='multi_label_classification'",
    ),
    "other batch": (
        {},
        torch.tensor([0, 1, 2]),
        "expected labels as integer class indices (4,) or probabilities (4, 3), got torch.int64 of shape (3,)",
    ),
    "classes for several labels": (
        SEVERAL,
        torch.tensor([0, 1, 2, 0]),
        "expected multi-hot labels of shape (4, 3), a 0 or 1 for each class, got shape (4,): for one class per image "
        "use problem_type='single_label_classification'",
    ),
    "too many labels": (
        SEVERAL,
        torch.zeros(4, 5),
        "expected multi-hot labels of shape (4, 3), a 0 or 1 for each class, got shape (4, 5)",
    ),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels_are_refused(name):
    config, labels, expected = BAD_LABELS[name]
    for model in (make("softcam", **config), *([] if config else [make("cape"), make("cape", mode="from-scratch")])):
        with pytest.raises((ValueError, TypeError)) as error:
            model(images_of(squares(4)), labels=labels)
        assert str(error.value) == expected


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 0]).int(), torch.eye(4)[:, :3]])
def test_good_labels_of_every_kind_are_taken(labels):
    assert torch.isfinite(make("cape")(images_of(squares(4)), labels=labels).loss)


def test_images_without_a_label_do_not_count():
    model, x = make("softcam"), images_of(squares(4))
    loss = model(x, labels=torch.tensor([0, 1, -100, -100])).loss
    assert torch.allclose(loss, model(x[:2], labels=torch.tensor([0, 1])).loss)


# --- two processes ---------------------------------------------------------------------------------------------------

TWO_RANKS = """
import json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
from test_trainer import EXACT, SETTINGS, ExplanationCallback, fit, state, trainer_of

out = Path(sys.argv[1])
for name, make in SETTINGS.items():
    options = {**EXACT, "max_steps": 4, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 2}
    trainer = trainer_of(make(), out / "run", ddp_find_unused_parameters=False, **options)
    assert trainer.args.world_size == dist.get_world_size() == trainer.accelerator.num_processes == 2
    trainer.add_callback(ExplanationCallback(trainer))
    trainer.train()
    metrics = trainer.evaluate()
    torch.save((state(trainer.model), metrics), out / f"{name}-{dist.get_rank()}.pt")
    dist.barrier()
print(f"rank {dist.get_rank()} of {dist.get_world_size()} is done", flush=True)
sys.stderr.flush()
dist.barrier()
os._exit(0)  # gloo sometimes aborts on the way out
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(command, **env):
    """Run `command` in a fresh process that can import this file."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Folder of the weights and metrics of every setting on both ranks."""
    out = tmp_path_factory.mktemp("two_ranks")
    (out / "script.py").write_text(TWO_RANKS)
    how = [
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", *how, "--main_process_port", str(free_port())]
    done = launch([*accelerate, str(out / "script.py"), str(out)], ACCELERATE_USE_CPU="true")
    assert all(f"rank {rank} of 2 is done" in done.stdout for rank in (0, 1)), done.stderr[-5000:]
    assert "find_unused_parameters" not in done.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_equal_one_with_twice_the_batch(name, two_ranks, tmp_path):
    weights, metrics = zip(*(torch.load(two_ranks / f"{name}-{rank}.pt") for rank in (0, 1)), strict=True)
    assert equal(*weights)
    start = state(SETTINGS[name]())
    trainer = trainer_of(SETTINGS[name](), tmp_path, max_steps=4, **EXACT)
    trainer.add_callback(ExplanationCallback(trainer))
    trainer.train()
    expected = state(trainer.model)
    assert largest_difference(weights[0], expected) < 1e-3 * largest_difference(start, expected)
    one = trainer.evaluate()
    for score_name in SCORES:
        found = metrics[0][f"eval_{score_name}"]
        assert found == metrics[1][f"eval_{score_name}"]
        assert found == pytest.approx(one[f"eval_{score_name}"], rel=1e-4, abs=1e-5)


# --- memory ----------------------------------------------------------------------------------------------------------

CLASS_COUNT, MAP_SIDE = 1000, 8


class Blank(Dataset):
    """`count` images that take no memory."""

    def __init__(self, count):
        self.count, self.image = count, torch.zeros(3, 64, 64)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        return {"pixel_values": self.image, "labels": index % CLASS_COUNT}


def peak():
    """The most memory this process has held so far, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def growth(method, ignored, folder):
    """By how much the peak is higher after 2,000 images than after 500."""
    config = CAPEConfig(architecture="cape_test_resnet", num_labels=CLASS_COUNT, model_args={"output_stride": 8})
    config.keys_to_ignore_at_inference = ignored
    model = CAPEForImageClassification(config)
    assert model.config.output_maps
    assert model(torch.zeros(1, 3, 64, 64)).maps.shape == (1, CLASS_COUNT, MAP_SIDE, MAP_SIDE)
    quiet = {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "report_to": "none"}
    arguments = TrainingArguments(str(folder), per_device_eval_batch_size=10 if ignored else 100, **quiet)
    trainer = Trainer(model, arguments, compute_metrics=lambda given: {"images": len(given.label_ids)})
    getattr(trainer, method)(Blank(500))
    before = peak()
    getattr(trainer, method)(Blank(2000))
    return peak() - before


MEASURE = """
import sys
from test_trainer import growth
print("growth", growth(sys.argv[1], sys.argv[2].split(), sys.argv[3]))
"""


def test_predictions_are_logits_alone(tmp_path):
    trainer = trainer_of(make("cape", output_hidden_states=True), tmp_path)
    found = trainer.predict(trainer.eval_dataset).predictions
    assert torch.allclose(torch.tensor(found), trainer.model(images_of(trainer.eval_dataset)).logits, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(("method", "ignored"), [("evaluate", "maps"), ("predict", "maps"), ("evaluate", "")])
def test_evaluation_keeps_logits_and_no_maps(method, ignored, tmp_path):
    done = launch([sys.executable, "-c", MEASURE, method, ignored, str(tmp_path)])
    assert done.returncode == 0, done.stderr
    found = int(done.stdout.split("growth")[1])
    logits = 1500 * CLASS_COUNT * 4
    if ignored:
        assert found < 8 * logits, "copies while the list grows, and the allocator's leeway, but no maps"
    else:
        assert found > 0.9 * MAP_SIDE**2 * logits, "the same measure sees maps that are kept"
