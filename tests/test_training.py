"""Training from settings to the folder that a run leaves: what is learnt, logged, refused and written.

The network is timm's `test_resnet` (BatchNorm), or `test_convnext` where batches are divided in different ways.
"""

import itertools
import json
import logging
import math
import tempfile
from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset as Table
from datasets import DatasetDict
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.data import resolve_data_config
from torch.utils.data import Dataset
from transformers import AutoModelForImageClassification, pipeline

from softcam_hub.data import load_lesions
from softcam_hub.data.splits import Splits, load_splits
from softcam_hub.data.transforms import make_transforms
from softcam_hub.hub.cards import check_card, load_model_record
from softcam_hub.output_folder import LOCK, RECORD
from softcam_hub.training import Config, NotFinite, make_config, parse, recipes, run
from softcam_hub.training.checkpoint import seal
from softcam_hub.training.checks import check_run
from softcam_hub.training.config import SCORES
from softcam_hub.training.folder import check_shared, write_settings
from softcam_hub.training.loop import Training
from softcam_hub.training.metrics import score_names
from softcam_hub.training.objective import Objective, make_model
from softcam_hub.training.optimization import EpochSampler, class_balancing_weights, make_optimizer, make_schedule
from softcam_hub.training.parsing import make_parser
from softcam_hub.training.reporting import read_log

SIZE, TRAIN, VALIDATION = 32, 50, 21
SMALL = {
    "model": "cape_test_resnet",
    "model_args": "output_stride=8",
    "image_size": SIZE,
    "epochs": 2,
    "batch_size": 8,
    "lr": 0.02,
    "log_steps": 1,
}
CLASSES = ["healthy", "microaneurysm", "haemorrhage", "exudate"]


@cache
def _data():
    folder = tempfile.TemporaryDirectory()
    splits = {"train": TRAIN, "validation": VALIDATION, "test": VALIDATION}
    DatasetDict({split: load_lesions(split, count, SIZE) for split, count in splits.items()}).save_to_disk(folder.name)
    return folder


def settings(output, **changes):
    """A small run on 50 generated images; None stands for the default of a setting."""
    return make_config(**{"data": _data().name, "output": str(output), **SMALL, **changes})


def train(output, **changes):
    """Run it as in a fresh process, and give its metrics."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return run(settings(output, **changes))


def weights(output, folder="model"):
    return load_file(Path(output) / folder / "model.safetensors")


def part(state, prefix):
    return {name: value for name, value in state.items() if name.startswith(prefix)}


def equal(found, expected):
    """Bit for bit."""
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    return max((found[name].double() - expected[name].double()).abs().max().item() for name in found)


# --- settings --------------------------------------------------------------------------------------------------------


def test_flags_are_grouped_and_every_setting_is_explained():
    text = make_parser().format_help()
    for title in ("model:", "data:", "augmentation:", "optimization:", "run:"):
        assert f"\n{title}" in text
    for name in Config().flat():
        assert f"--{name} " in text or f"--{name}\n" in text
    assert all(name in "".join(text.split()) for name in recipes())


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_understood(name):
    config = parse(["--recipe", name])
    assert config.run.output == f"runs/{name}" + ("/0" if config.data.folds else "")
    said = Path(name).name.partition("-")[0]  # what is named after its data may be of any family, and so the black box
    assert config.model.family in (None, said) or said == "lesions"
    assert (config.model.family is None) == ("vanilla" in name)


def test_flags_go_over_a_recipe_and_notes_are_no_setting(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: softcam_resnet18\nl1: 1e-3\nepochs: 7\nnotes: {time: one hour}\n")
    config = parse(["--recipe", str(recipe), "--epochs", "3"])
    assert (config.model.model, config.model.l1, config.optimization.epochs) == ("softcam_resnet18", 0.001, 3)
    (tmp_path / "above.yaml").write_text(f"base: {recipe}\nl1: 0.5\n")
    config = parse(["--recipe", str(tmp_path / "above.yaml")])
    assert (config.model.model, config.model.l1, config.optimization.epochs) == ("softcam_resnet18", 0.5, 7)


def test_a_recipe_stands_on_what_is_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, epochs in {"below.yaml": 9, "mine/below.yaml": 4}.items():
        Path(name).write_text(f"epochs: {epochs}\nmixed_precision: no\n")
    Path("mine/above.yaml").write_text("base: below.yaml\nlr: 0.5\n")
    config = parse(["--recipe", "mine/above.yaml"])
    assert (config.optimization.epochs, config.optimization.lr, config.run.mixed_precision) == (4, 0.5, "no")
    Path("mine/below.yaml").write_text("base: above.yaml\n")
    with pytest.raises(
        ValueError, match="recipe .*/above.yaml is based on itself, .*above.yaml -> .*below.yaml -> .*above"
    ):
        parse(["--recipe", "mine/above.yaml"])


def test_every_fold_starts_from_its_own_black_box():
    for fold in range(5):
        found = parse(["--recipe", "cape-cmml-pf", "--fold", str(fold)])
        black_box = parse(["--recipe", "cape-cmml-vanilla", "--fold", str(fold)])
        assert found.model.init == f"{black_box.run.output}/model" == f"runs/cape-cmml-vanilla/{fold}/model"
        assert found.run.output == f"runs/cape-cmml-pf/{fold}"


@pytest.mark.parametrize("name", [name for name in recipes() if name.startswith("cape-imagenet")])
def test_no_epoch_of_imagenet_is_chosen_on_what_is_reported(name):
    config = parse(["--recipe", name])
    assert (config.data.hold_out, config.data.validation_split, config.data.test_split) == (0.02, "", "validation")
    assert config.data.optional_splits == ["validation"]
    assert config.model.pretrained == (config.model.mode == "post-fit")
    assert config.model.timm_name == ("resnet50.tv_in1k" if config.model.pretrained else "resnet50")


BAD_FLAGS = {
    "--epocs 3": "unknown option '--epocs': did you mean epochs\\?; see --help",
    "--batch-sise 3": "unknown option '--batch-sise': did you mean batch_size\\?",
    "--epochs three": "invalid int value: 'three'",
    "--epochs 0": "epochs must be at least 1",
    "--lr nan": "lr must be at least 0 and finite, got nan",
    "--lr -1": "lr must be at least 0",
    "--schedule cosin": "invalid choice: 'cosin' \\(choose from .*clipped-cosine",
    "--recipe lesions-cap": "no recipe 'lesions-cap': did you mean lesions-cape",
    "--recipe": "expected one argument",
    "--augment perhaps": "perhaps",
    "--temperature 0": "temperature must be above 0 and finite",
    "--mode post-fit --temperatures 1,-2": "temperature must be above 0 and finite, got -2",
    "--mode post": "unknown mode 'post' for CAPE: expected one of direct, from-scratch, post-fit",
    "--model softcam_resnet18 --mode direct --selective": "selective is an option of cape_\\* models",
    "--model cape_resnet18 --l1 0.1": "l1 is an option of softcam_\\* models",
    "--temperature 3": "temperature is an option of CAPE's teacher, and mode 'direct' has none: leave it out",
    "--selective": "selective is an option of CAPE's teacher, and mode 'direct' has none: leave it out",
    "--mode post-fit --balance loss": "balance=loss changes the cross-entropy, but mode 'post-fit' learns from the te",
    "--mode post-fit --label_smoothing 0.1": "label_smoothing=0.1 changes the cross-entropy, but mode 'post-fit'",
    "--mode from-scratch --alpha 0 --balance loss": "balance=loss changes the cross-entropy, but mode 'from-scratch'",
    "--model resnet18 --freeze_backbone": "freeze_backbone needs a self-explaining model",
    "--model_args output_stride": "expected name=value pairs, such as 'output_stride=8', got 'output_stride'",
    "--pretrained --init x": "init and pretrained both name the weights to start from",
    "--resume --overwrite": "give one of them",
    "--image_size 8": "image_size must be at least 32 pixels, got 8",
    "--ema 1": "ema must be between 0 and 1",
    "--warmup_epochs 10": "warmup_epochs must be below epochs=10, got 10.0",
    "--label_smoothing 1": "label_smoothing must be below 1",
    "--clip_grad 0": "clip_grad must be above 0",
    "--workers -1": "workers must be at least 0",
    "--cache_limit 0": "cache_limit must be above 0 GB",
    "--select acuracy": "invalid choice: 'acuracy' \\(choose from .*accuracy",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_wrong_settings_are_refused_with_a_sentence(flags):
    with pytest.raises(ValueError, match=BAD_FLAGS[flags]):
        parse(flags.split())


def test_what_a_mode_learns_from_may_be_changed():
    parse(["--mode", "post-fit", "--alpha", "0.5", "--balance", "loss", "--label_smoothing", "0.1"])
    parse(["--mode", "post-fit", "--balance", "sampling", "--selective", "--temperature", "3"])
    parse(["--model", "softcam_resnet18", "--balance", "loss"])
    parse(["--model", "resnet18", "--label_smoothing", "0.1"])


def test_a_recipe_that_is_none_is_refused(tmp_path):
    broken = tmp_path / "broken.yaml"
    for text, expected in {
        "epocs: 3": "sets 'epocs', which is not a setting: did you mean epochs\\?",
        "epochs: [": "is not valid YAML",
        "- epochs": "must hold `name: value` lines, got list",
    }.items():
        broken.write_text(text)
        with pytest.raises(ValueError, match=expected):
            parse(["--recipe", str(broken)])
    with pytest.raises(
        ValueError, match="make_config\\(\\) sets 'epoch', which is not a setting: did you mean epochs\\?"
    ):
        make_config(epoch=3)


# --- what a step does ------------------------------------------------------------------------------------------------


class Noise(Dataset):
    """Images of noise that say which of them were asked for."""

    def __init__(self, count=24, classes=3):
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
        self.labels, self.asked = torch.arange(count) % classes, []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        self.asked.append(key)
        index = key[1] if isinstance(key, tuple) else key
        return {"pixel_values": self.images[index], "labels": self.labels[index], "index": index}


def training_of(output, samples=None, validation=None, **changes):
    """A run under way on noise, without augmentation."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    config = settings(output, **changes)
    model = make_model(config, Splits(None, None, None, ["a", "b", "c"], False))
    accelerator = Accelerator(gradient_accumulation_steps=config.optimization.accumulation)
    samples = samples or Noise()
    return Training(config, accelerator, model, samples, validation, samples.labels.numpy(), output)


def recorded(training):
    """The states of the network after every update of `training.fit()`."""
    states, schedule = [], training.schedule

    def record(step):
        states.append({name: value.clone() for name, value in training.network.state_dict().items()})
        schedule(step)

    training.schedule = record
    training.fit()
    return states


def test_every_image_once_in_an_epoch_in_another_order_each(tmp_path):
    samples = Noise(26)
    training_of(tmp_path, samples, epochs=3).fit()
    orders = [[index for epoch, index in samples.asked if epoch == number] for number in range(3)]
    assert len(samples.asked) == 72
    for order in orders:
        assert len(set(order)) == len(order) == 24
    assert orders[0] != orders[1] != orders[2]
    again = Noise(26)
    training_of(tmp_path / "b", again, epochs=3).fit()
    assert again.asked == samples.asked
    other = Noise(26)
    training_of(tmp_path / "c", other, epochs=3, seed=1).fit()
    assert other.asked != samples.asked


def test_sgd_of_the_loop_is_sgd_by_hand(tmp_path):
    samples = Noise()
    options = {"model": "softcam_test_convnext", "optimizer": "momentum", "momentum": 0.0, "weight_decay": 0.1}
    training = training_of(
        tmp_path, samples, epochs=1, lr=0.1, label_smoothing=0.2, l2=0.3, schedule="constant", **options
    )
    before = {name: value.clone() for name, value in training.network.named_parameters()}
    after = recorded(training)[0]
    AcceleratorState._reset_state(True)
    model = make_model(training.config, Splits(None, None, None, ["a", "b", "c"], False)).train()
    batch = [index for _, index in samples.asked[:8]]
    output = model(samples.images[batch], output_maps=True)
    target = 0.8 * F.one_hot(samples.labels[batch], 3) + 0.2 / 3
    loss = -(target * output.logits.log_softmax(1)).sum(1).mean() + 0.3 * (output.maps**2).mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        decay = 0.1 if parameter.ndim > 1 else 0.0
        expected = parameter - 0.1 * (parameter.grad + decay * parameter)
        assert torch.allclose(after[name], expected, atol=1e-6), name


def test_accumulated_batches_are_one_large_batch(tmp_path):
    options = {"model": "cape_test_convnext", "mode": "from-scratch", "epochs": 2, "lr": 0.1}
    whole = recorded(training_of(tmp_path / "whole", batch_size=12, **options))
    pieces = recorded(training_of(tmp_path / "pieces", batch_size=4, accumulation=3, **options))
    assert len(whole) == len(pieces) == 4
    assert largest_difference(whole[-1], pieces[-1]) < 1e-4 * largest_difference(whole[0], whole[-1])


def test_moving_average_is_the_sum_written_out(tmp_path):
    training = training_of(tmp_path, epochs=2, ema=0.8, mode="from-scratch")
    states = recorded(training)
    expected = {name: value.double() for name, value in states[0].items()}
    for state in states[1:]:
        expected = {name: 0.8 * expected[name] + 0.2 * state[name].double() for name in expected}
    found = training.result.state_dict()
    for name, value in found.items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], atol=1e-6), name
    assert largest_difference(part(found, "head."), part(states[-1], "head.")) > 1e-4


def test_gradients_are_clipped(tmp_path):
    options = {"epochs": 1, "optimizer": "momentum", "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0}
    training = training_of(tmp_path, clip_grad=0.01, **options)
    before = {name: value.detach().clone() for name, value in training.network.named_parameters()}
    after = recorded(training)[0]
    moved = math.sqrt(sum(((after[name] - value) ** 2).sum().item() for name, value in before.items()))
    assert moved == pytest.approx(0.01, rel=1e-3)


LR, UPDATES, EPOCHS = 0.3, 5, 8
SCHEDULES = {
    "constant": ({}, lambda t: LR),
    "cosine": ({"min_lr": 0.05}, lambda t: 0.05 + (LR - 0.05) * (1 + math.cos(math.pi * t / 40)) / 2),
    "clipped-cosine": ({"min_lr": 0.05}, lambda t: max(0.05, LR * (1 + math.cos(math.pi * t / 40)) / 2)),
    "linear": ({"min_lr": LR / 100}, lambda t: LR / 100 + (LR - LR / 100) * (1 - t / 40)),
    "step": ({"decay_epochs": 3, "decay_rate": 0.1}, lambda t: LR * 0.1 ** (t // 15)),
}


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rate_follows_its_formula(schedule, warmup):
    options, formula = SCHEDULES[schedule]
    config = make_config(lr=LR, epochs=EPOCHS, schedule=schedule, warmup_epochs=warmup, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    update = make_schedule(optimizer, config.optimization, UPDATES)
    for step in range(EPOCHS * UPDATES):
        ramp = step < warmup * UPDATES
        expected = LR * step / (warmup * UPDATES) if ramp else formula(step)
        if ramp and schedule == "clipped-cosine":
            expected = max(expected, 0.05)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-12), step
        update(step + 1)


def test_biases_norms_and_temperature_do_not_decay():
    config = make_config(**SMALL, weight_decay=0.1)
    model = make_model(config, Splits(None, None, None, CLASSES, False))
    decays = {
        id(p): group["weight_decay"]
        for group in make_optimizer(model, config.optimization).param_groups
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0), name
    assert decays[id(model.head.log_temperature)] == 0


@pytest.mark.parametrize("name", ["cape_test_resnet", "test_resnet"])
def test_layer_decay_shrinks_the_steps_of_lower_layers(name):
    config = make_config(**{**SMALL, "model": name}, layer_decay=0.5, schedule="step", decay_epochs=1)
    model = make_model(config, Splits(None, None, None, CLASSES, False))
    optimizer = make_optimizer(model, config.optimization)
    update = make_schedule(optimizer, config.optimization, updates=4)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    scale = {key: rates[id(value)] / SMALL["lr"] for key, value in model.named_parameters() if id(value) in rates}
    head = next(value for key, value in scale.items() if key.endswith(("head.weight", "fc.weight")))
    stages = [next(value for key, value in scale.items() if f"layer{number}.0" in key) for number in (1, 2, 3, 4)]
    assert head == 1
    assert all(0 < low < high < 1 for low, high in itertools.pairwise(stages))
    assert all(math.log2(value) == round(math.log2(value)) for value in scale.values()), "powers of the factor"
    update(4)
    assert {
        id(p): pytest.approx(group["lr"] * 10) for group in optimizer.param_groups for p in group["params"]
    } == rates


def test_balanced_weights_are_those_by_hand():
    labels = np.array([0, 0, 0, 1, 3, 3])
    assert class_balancing_weights(labels, 5).tolist() == pytest.approx([6 / (3 * 3), 6 / 3, 6 / 3, 6 / (3 * 2), 6 / 3])
    assert class_balancing_weights(labels, 5)[labels].mean().item() == pytest.approx(1)
    several = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert class_balancing_weights(several, 3).tolist() == pytest.approx([1 / 3, 3, 4])


def test_rare_classes_count_as_much_in_the_loss():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    config = make_config(**SMALL)
    model = make_model(config, Splits(None, None, None, ["a", "b", "c"], False)).eval()
    images = torch.randn(6, 3, SIZE, SIZE)
    found = Objective(model, 0.0, class_balancing_weights(labels.numpy(), 3))(pixel_values=images, labels=labels)
    each = F.cross_entropy(found.logits, labels, reduction="none")
    by_class = torch.stack([each[labels == label].mean() for label in range(3)])
    assert found.loss.item() == pytest.approx(by_class.mean().item(), rel=1e-5)


def test_rare_classes_are_drawn_as_often():
    labels = np.array([0] * 90 + [1] * 9 + [2])
    sampler = EpochSampler(100, 100, 0, class_balancing_weights(labels, 3)[torch.as_tensor(labels)])
    drawn = Counter()
    for epoch in range(100):
        sampler.set_epoch(epoch)
        drawn.update(int(labels[index]) for _, index in sampler)
    assert all(abs(drawn[label] / 10_000 - 1 / 3) < 0.02 for label in range(3))  # four standard deviations


def test_balanced_sampling_reaches_the_loop(tmp_path):
    samples = Noise()
    samples.labels = torch.tensor([0] * 20 + [1] * 4)
    training_of(tmp_path, samples, epochs=20, balance="sampling", lr=0).fit()
    share = np.mean([index >= 20 for _, index in samples.asked])
    assert abs(share - 0.5) < 0.1


def test_a_sampler_goes_on_where_it_was_cut_off():
    whole, rest = EpochSampler(20, 16, seed=3), EpochSampler(20, 16, seed=3)
    rest.skip = 6
    for epoch in range(2):
        whole.set_epoch(epoch)
        rest.set_epoch(epoch)
        assert list(rest) == list(whole)[6:]
        assert len(rest) == len(list(rest)) == 10


# --- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def from_scratch(tmp_path_factory):
    """Folder and metrics of a from-scratch run."""
    output = tmp_path_factory.mktemp("runs") / "ts"
    options = {"mode": "from-scratch", "trackers": "tensorboard", "color_jitter": 0.2, "erase": 0.3, "epochs": 3}
    return output, train(output, **options, select="auc", ema=0.7)


@pytest.fixture(scope="module")
def black_box(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "vanilla"
    return output, train(output, model="test_resnet")


PF = {"mode": "post-fit", "augment": False, "lr": 1.0}


@pytest.fixture(scope="module")
def post_fit(black_box, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "pf"
    return output, train(output, init=str(black_box[0] / "model"), **PF)


def test_a_run_leaves_its_folder(from_scratch):
    output, metrics = from_scratch
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


def test_settings_are_a_recipe_that_gives_the_same_settings(from_scratch):
    output, _ = from_scratch
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
    )
    assert config == expected


def test_every_epoch_is_logged_for_both_heads(from_scratch):
    output, metrics = from_scratch
    lines = read_log(output / "log.jsonl")
    epochs = [line for line in lines if "epoch" in line]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert [line["step"] for line in lines if "lr" in line] == list(range(1, 19))
    wanted = ("accuracy", "teacher_accuracy", "confidence", "teacher_confidence", "disagreement", "loss")
    assert {name for line in epochs for name in line if name.startswith("validation_")} == {
        f"validation_{name}" for name in SCORES
    }
    for line in epochs:
        assert {f"{split}_{name}" for split in ("train", "validation") for name in wanted} <= line.keys()
        assert line["validation_completeness_error"] < 1e-5
    best = max(epochs, key=lambda line: line["validation_auc"])
    assert (metrics["validation_auc"], metrics["epoch"]) == (best["validation_auc"], best["epoch"])


def test_tensorboard_has_every_value_of_the_log(from_scratch):
    output, _ = from_scratch
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


def test_the_curve_shows_both_heads(from_scratch):
    pixels = np.asarray(Image.open(from_scratch[0] / "curve.png").convert("RGB"))
    assert pixels.shape[1] == 2 * 560
    for colour in ((0, 90, 170), (215, 95, 0), (0, 140, 100), (190, 80, 150)):
        assert (pixels[:360, :560] == colour).all(axis=2).sum() > 50
    assert len(np.unique(pixels[:360, 560:].reshape(-1, 3), axis=0)) > 5


def images(split="test", count=VALIDATION):
    return list(load_lesions(split, count, SIZE)["image"])


def pixels_for(model, pictures=None):
    """Test images, or others, as the model is to see them."""
    transform = make_transforms(resolve_data_config({}, pretrained_cfg=dict(model.pretrained_cfg)))[1]
    return torch.stack([transform(image) for image in pictures or images()])


def test_the_model_opens_through_every_door_and_scores_as_reported(from_scratch):
    output, metrics = from_scratch
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


def test_the_vanilla_classifier_is_the_teacher(from_scratch):
    output, metrics = from_scratch
    vanilla = timm.create_model(f"local-dir:{output / 'vanilla'}", pretrained=True).eval()
    with torch.no_grad():
        logits = vanilla(pixels_for(vanilla))
    labels = torch.arange(VALIDATION) % 4
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(metrics["test_teacher_accuracy"])
    confidence = logits.softmax(1).max(1).values.mean().item()
    assert confidence == pytest.approx(metrics["test_teacher_confidence"], rel=1e-5)


def test_the_black_box_opens_through_every_door(black_box):
    output, metrics = black_box
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


# --- which part learns from what -------------------------------------------------------------------------------------


def test_the_backbone_learns_from_the_teacher_alone(from_scratch, tmp_path):
    states = {}
    for beta in (0.5, 2.0):
        training = training_of(tmp_path / str(beta), mode="from-scratch", beta=beta, epochs=1)
        states[beta] = recorded(training)[-1]
    for prefix in ("backbone.", "teacher."):
        assert equal(part(states[0.5], prefix), part(states[2.0], prefix))
    assert not torch.equal(states[0.5]["head.weight"], states[2.0]["head.weight"])


def test_post_fitting_moves_nothing_but_the_head(black_box, post_fit):
    teacher, found = weights(black_box[0]), weights(post_fit[0])
    for name, value in found.items():
        if name.startswith("backbone."):
            assert torch.equal(value, teacher[name.removeprefix("backbone.")]), name
    assert not torch.equal(found["head.weight"].flatten(), teacher["fc.weight"].flatten())
    assert equal(weights(post_fit[0], "vanilla"), teacher)
    assert post_fit[1]["test_teacher_accuracy"] == pytest.approx(black_box[1]["test_accuracy"])


def test_post_fitting_without_a_cache_ends_the_same(black_box, post_fit, tmp_path):
    train(tmp_path, init=str(black_box[0] / "model"), **PF, cache_features=False)
    assert not (tmp_path / "features").exists()
    moved = largest_difference(weights(post_fit[0]), weights(tmp_path))
    assert moved < 1e-5
    assert (post_fit[0] / "features").is_dir()
    assert read_log(tmp_path / "log.jsonl") == [
        {name: pytest.approx(value, abs=1e-5) for name, value in line.items()}
        for line in read_log(post_fit[0] / "log.jsonl")
    ]


def test_a_frozen_backbone_keeps_its_statistics_with_augmentation_too(black_box, tmp_path):
    options = {"model": "softcam_test_resnet", "freeze_backbone": True, "l1": 0.1, "epochs": 1}
    train(tmp_path, init=str(black_box[0] / "model"), **options)
    teacher, found = weights(black_box[0]), weights(tmp_path)
    assert all(torch.equal(found[f"backbone.{name}"], teacher[name]) for name in teacher if not name.startswith("fc."))
    assert not torch.equal(found["head.weight"].flatten(), teacher["fc.weight"].flatten())


# --- kinds of runs ---------------------------------------------------------------------------------------------------


def test_several_labels_per_image(tmp_path):
    options = {"data": "labels", "train_count": 32, "eval_count": 16, "data_size": SIZE, "balance": "loss"}
    metrics = train(tmp_path, model="softcam_test_resnet", **options, epochs=1)
    assert 0 <= metrics["test_accuracy"] <= 1
    assert 0 <= metrics["test_auc"] <= 1
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "model").config.problem_type.startswith("multi")
    with pytest.raises(ValueError, match="balance='sampling' needs one label per image"):
        train(tmp_path / "b", model="softcam_test_resnet", **{**options, "balance": "sampling"})


def test_a_stream(tmp_path):
    options = {"data": "lesions", "train_count": 32, "eval_count": 12, "data_size": SIZE, "streaming": True}
    with pytest.raises(ValueError, match="say how long an epoch is with --steps_per_epoch"):
        train(tmp_path / "a", **options)
    with pytest.raises(ValueError, match="balance needs to count the classes before training"):
        train(tmp_path / "c", **options, steps_per_epoch=3, balance="loss")
    metrics = train(tmp_path / "d", **options, steps_per_epoch=3, epochs=2)
    assert [line["step"] for line in read_log(tmp_path / "d" / "log.jsonl") if "lr" in line] == [1, 2, 3, 4, 5, 6]
    assert "test_accuracy" in metrics


class CutOff(Exception):
    """In the place of a kill."""


@contextmanager
def cut_off_at(step):
    """End a run when the checkpoint of this update is written."""
    save = Training._save

    def saved(self):
        save(self)
        if self.step == step:
            raise CutOff

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_save", saved)
        with pytest.raises(CutOff):
            yield


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_from_epoch_to_epoch_and_after_a_break(workers, tmp_path, monkeypatch):
    options = {"data": "lesions", "train_count": 32, "eval_count": 8, "data_size": SIZE, "streaming": True}
    options |= {"steps_per_epoch": 3, "epochs": 3, "checkpoint_steps": 1, "workers": workers, "validation_split": ""}
    shown, real = [], Training._count

    def count(self, step, labels):
        shown.append(labels.tolist())
        real(self, step, labels)

    monkeypatch.setattr(Training, "_count", count)
    train(tmp_path / "whole", **options)
    whole = shown.copy()
    assert Counter(itertools.chain(*whole[:4])) == dict.fromkeys(range(4), 8), "all 32 images before any comes again"
    for step in (3, 7):
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


def test_channels_last_changes_nothing_but_the_layout(tmp_path):
    expected = recorded(training_of(tmp_path / "a", epochs=1, ema=0.5))[-1]
    found = recorded(training_of(tmp_path / "b", epochs=1, ema=0.5, channels_last=True))[-1]
    assert largest_difference(found, expected) < 1e-4
    train(tmp_path / "c", epochs=1, ema=0.5, channels_last=True)
    weights(tmp_path / "c")


def test_low_precision(tmp_path):
    metrics = train(tmp_path, epochs=1, mixed_precision="bf16", mode="from-scratch")
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path).values())
    assert math.isfinite(metrics["test_loss"])


def test_the_seed_alone_decides(from_scratch, tmp_path):
    options = {"mode": "from-scratch", "color_jitter": 0.2, "erase": 0.3, "epochs": 3, "select": "auc", "ema": 0.7}
    train(tmp_path / "same", **options, workers=2)
    assert equal(weights(tmp_path / "same"), weights(from_scratch[0]))
    train(tmp_path / "other", **{**options, "epochs": 1}, seed=1)
    assert not equal(weights(tmp_path / "other"), weights(from_scratch[0]))


# --- what goes wrong -------------------------------------------------------------------------------------------------


def table(folder, labels):
    """A saved training split with these labels, and images of one colour."""
    pictures = [Image.new("RGB", (SIZE, SIZE), (20 * index % 255, 90, 40)) for index in range(len(labels))]
    DatasetDict({"train": Table.from_dict({"image": pictures, "label": labels})}).save_to_disk(folder)
    return str(folder)


def test_an_infinite_loss_names_step_images_and_checkpoint(tmp_path):
    options = {"schedule": "step", "decay_epochs": 1, "decay_rate": 1e30}
    with pytest.raises(NotFinite) as error:
        train(tmp_path, **options, epochs=4)
    message = str(error.value)
    assert f"the last good checkpoint is {tmp_path}/checkpoints/step-000000006" in message
    step = int(message.split("at update ")[1].split()[0])
    assert 7 <= step <= 9
    assert "(epoch 2)" in message
    named = json.loads("[" + message.split("[")[1].split("]")[0] + "]")
    order = EpochSampler(TRAIN, 48, 0)
    order.set_epoch(1)
    assert named == [index for _, index in list(order)[8 * (step - 7) : 8 * (step - 6)]]
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")][-1] == step - 1
    assert not (tmp_path / "metrics.json").exists()


def test_an_infinite_loss_before_any_checkpoint(tmp_path):
    with pytest.raises(NotFinite, match="there is no checkpoint yet. Lower lr"):
        train(tmp_path, lr=1e30)


def test_weights_that_explode_in_the_last_update_are_no_checkpoint(tmp_path):
    options = {"schedule": "constant", "lr": 1e30, "batch_size": 48}  # one update an epoch: its loss is still finite
    with pytest.raises(
        NotFinite, match="a weight is nan after update 1; there is no checkpoint yet. Lower lr or set clip"
    ):
        train(tmp_path / "a", **options, optimizer="momentum", weight_decay=1e30, epochs=1, validation_split="")
    assert not list((tmp_path / "a").glob("checkpoints/*"))
    assert not (tmp_path / "a" / "model").exists()
    with pytest.raises(NotFinite, match="the validation loss is nan after update 1; there is no checkpoint yet"):
        train(tmp_path / "b", **options, optimizer="momentum", weight_decay=1e30, epochs=1)
    assert not (tmp_path / "b" / "best").exists()


def test_a_test_loss_that_is_not_finite_is_no_result(tmp_path):
    training = training_of(tmp_path)
    training.check_score("the test loss", 0.5)
    training.step = 3
    training._save()
    with pytest.raises(
        NotFinite, match="the test loss is inf after update 3; the last good checkpoint is .*/step-000000003"
    ):
        training.check_score("the test loss", math.inf)


def test_a_score_that_cannot_be_had_is_null_in_the_log(tmp_path):
    same = Table.from_dict({"image": [Image.new("RGB", (SIZE, SIZE))] * 6, "label": [1] * 6})
    train_rows = Table.from_dict({"image": [Image.new("RGB", (SIZE, SIZE))] * 16, "label": [0, 1] * 8})
    DatasetDict({"train": train_rows, "validation": same}).save_to_disk(tmp_path / "data")
    train(tmp_path / "run", data=str(tmp_path / "data"), epochs=1)
    text = (tmp_path / "run" / "log.jsonl").read_text()
    assert "NaN" not in text
    assert '"validation_auc": null' in text
    assert (tmp_path / "run" / "curve.png").exists()


def with_boxes(folder, last):
    """A manifest whose last test image has this box."""
    lines = ["image,label,split,boxes"]
    for number in range(24):
        split = "train" if number < 16 else "validation" if number < 20 else "test"
        Image.new("RGB", (SIZE, SIZE), (9 * number, 60, 60)).save(folder / f"{number}.png")
        box = last if number == 20 else [0, 0, 9, 9]
        lines.append(f'{number}.png,{"ab"[number % 2]},{split},"[{box}]"')
    (folder / "data.csv").write_text("\n".join(lines))
    return str(folder / "data.csv")


def test_a_box_beyond_its_image_costs_a_picture_and_not_the_run(tmp_path, caplog):
    data = with_boxes(tmp_path, [0, 0, SIZE + 1, 9])
    metrics = train(tmp_path / "run", data=data, epochs=1)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    assert (tmp_path / "run" / "model" / "README.md").exists()
    assert not (tmp_path / "run" / "examples.png").exists()
    assert "not all pictures of" in caplog.text
    assert f"row 0 of split 'test' (20.png): the box [0, 0, {SIZE + 1}, 9] does not fit its image" in caplog.text


def test_a_box_that_is_none_is_found_before_training(tmp_path):
    with pytest.raises(ValueError, match="row 0 of split 'test' \\(20.png\\): \\[0, 9, 9, 9\\] is not a box"):
        train(tmp_path / "run", data=with_boxes(tmp_path, [0, 9, 9, 9]))


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="cannot be written: .*; choose another --output"):
            train(output)


def test_a_full_disk_is_noticed_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="has 0.0 GB left, but checkpoints and models take up to 0.0 GB: choose another"):
        train(tmp_path)
    assert not (tmp_path / "log.jsonl").exists()


def test_another_run_is_not_overwritten_unasked(tmp_path):
    train(tmp_path, epochs=1, lr=0)
    (tmp_path / "mine.txt").write_text("")
    before = weights(tmp_path)
    with pytest.raises(FileExistsError, match="holds an earlier training run .*--resume, .*--overwrite"):
        train(tmp_path, epochs=1, seed=1)
    assert equal(weights(tmp_path), before)
    train(tmp_path, epochs=1, seed=1, overwrite=True)
    assert not equal(weights(tmp_path), before)
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize(
    "mistake", [{"data": "/no/such/folder"}, {"model": "cape_resnet999"}, {"select": "teacher_accuracy"}], ids=str
)
def test_a_mistake_does_not_cost_the_run_that_was_to_be_overwritten(mistake, tmp_path):
    train(tmp_path, epochs=1, lr=0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises((ValueError, OSError)):
        train(tmp_path, **mistake, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_every_process_must_see_the_folder(tmp_path):
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
        ({"num_classes": 7}, "num_classes=7, but the data has 4 classes: \\['healthy'"),
        ({"batch_size": 64}, "has 50 images, fewer than one update takes: 64 x 1 accumulated x 1 processes"),
        ({"select": "teacher_accuracy"}, "'teacher_accuracy' is not a validation score here: expected loss, accuracy"),
        ({"model": "cape_resnet999"}, "resnet999"),
        ({"model": "resnet999"}, "resnet999"),
        ({"optimizer": "sgdd"}, "sgdd"),
        ({"model_args": "no_such_thing=3"}, "no_such_thing"),
        ({"trackers": "mlflow"}, "unknown tracker 'mlflow': expected tensorboard or wandb"),
        ({"data": "/no/such/folder"}, "there is no folder /no/such/folder"),
        ({"train_split": "all"}, "there is no training split 'all'"),
        ({"init": "/no/such/model"}, "/no/such/model"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_trained_is_refused(changes, expected, tmp_path):
    with pytest.raises((ValueError, OSError), match=expected):
        train(tmp_path / "run", **changes)


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
            {"mode": "from-scratch", "temperatures": "1 2", "data": no_validation},
            "there are none: set hold_out, such as",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_chosen_by_is_refused_before_training(changes, expected, tmp_path):
    data = changes.get("data")
    changes = {**changes, "data": data(tmp_path / "data")} if callable(data) else changes
    with pytest.raises(ValueError, match=expected):
        train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"mode": "from-scratch"}, {"model": "test_resnet"}, {"data": "labels"}], ids=str)
def test_the_scores_to_choose_by_are_those_of_an_evaluation(options, tmp_path):
    if "data" in options:
        options = {**options, "model": "softcam_test_resnet", "train_count": 16, "eval_count": 8, "data_size": SIZE}
    config = settings(tmp_path, **options)
    splits = load_splits(config.data)
    train(tmp_path, **options, epochs=1)
    line = next(line for line in read_log(tmp_path / "log.jsonl") if "epoch" in line)
    found = {name.removeprefix("validation_") for name in line if name.startswith("validation_")}
    assert set(score_names(make_model(config, splits), splits.multi_label)) == found


def test_the_best_temperature_becomes_the_result(black_box, tmp_path):
    options = {"init": str(black_box[0] / "model"), **PF, "temperatures": "1 4", "select": "disagreement"}
    metrics = train(tmp_path, **options)
    tried = {name: json.loads((tmp_path / f"T={name}" / "metrics.json").read_text()) for name in ("1", "4")}
    scores = {name: row["validation_disagreement"] for name, row in tried.items()}
    best = min(scores, key=scores.get)
    assert metrics == {**tried[best], "temperature": float(best), "tried": scores}
    assert equal(weights(tmp_path), weights(tmp_path / f"T={best}"))
    assert len(list((tmp_path / "features").iterdir())) == 2
    assert not (tmp_path / "checkpoints").exists()
    assert (tmp_path / "model" / "metrics.json").exists()
    assert parse(["--recipe", str(tmp_path / "settings.yaml")]) == settings(tmp_path, **options)
    assert train(tmp_path, **options, resume=True) == metrics
    with pytest.raises(FileExistsError, match="holds an earlier training run"):
        train(tmp_path, **options)
    with pytest.raises(ValueError, match="cannot resume: .* says temperatures='1 4', but now it is '1 2'"):
        train(tmp_path, **{**options, "temperatures": "1 2"}, resume=True)
    again = train(tmp_path, **options, overwrite=True)
    assert {**again, "seconds": 0} == {**metrics, "seconds": 0}


def test_temperatures_do_not_take_the_place_of_another_run(black_box, tmp_path):
    train(tmp_path, model="test_resnet", epochs=1)
    before = weights(tmp_path)
    with pytest.raises(FileExistsError, match=f"{tmp_path} holds an earlier training run"):
        train(tmp_path, init=str(black_box[0] / "model"), **PF, temperatures="1 4")
    assert equal(weights(tmp_path), before)
    assert not list(tmp_path.glob("T=*"))


def test_weights_that_have_seen_what_is_held_out_are_refused(tmp_path):
    data = table(tmp_path / "data", [*CLASSES] * 10)
    division = {"data": data, "folds": 3, "hold_out": 0.2}
    train(tmp_path / "vanilla", model="test_resnet", **division, fold=1, epochs=1)
    start = {"init": str(tmp_path / "vanilla" / "model"), **PF, "epochs": 1}
    train(tmp_path / "same", **start, **division, fold=1)
    for change in ({"fold": 2}, {"hold_out": 0.3}, {"data_seed": 1}, {"folds": 4}, {"folds": 0, "fold": 0}):
        with pytest.raises(ValueError, match="has learnt from images that are to be held out now: its run .*'fold': 1"):
            train(tmp_path / "other", **start, **{**division, "fold": 1, **change})
    train(tmp_path / "elsewhere", **start, data=table(tmp_path / "others", [*CLASSES] * 10))


def test_a_model_of_the_same_family_keeps_its_architecture(from_scratch, tmp_path):
    start = {"init": str(from_scratch[0] / "model"), "epochs": 1}
    with pytest.raises(ValueError, match="holds a test_resnet, but the model to train is cape_test_convnext"):
        train(tmp_path / "a", **start, model="cape_test_convnext")
    for args, said in {"output_stride=16": "output_stride=8, but", "drop_rate=0.5": "drop_rate=None, but"}.items():
        with pytest.raises(ValueError, match=f"was made with {said} model_args and image_size make it"):
            train(tmp_path / "b", **start, model_args=args)
    train(tmp_path / "c", **start, model_args="")
    train(tmp_path / "d", **start)
    assert equal(weights(tmp_path / "c"), weights(tmp_path / "d"))


def test_empty_split(tmp_path):
    (tmp_path / "empty.csv").write_text("image,label\n")
    with pytest.raises(ValueError, match="empty.csv"):
        train(tmp_path / "run", data=str(tmp_path / "empty.csv"))


def test_init_from_other_classes_is_refused(black_box, from_scratch, tmp_path):
    order = table(tmp_path / "order", [*CLASSES[::-1]] * 4)
    fewer = table(tmp_path / "fewer", ["healthy", "exudate"] * 8)
    for source in (black_box[0] / "model", from_scratch[0] / "model"):
        with pytest.raises(
            ValueError,
            match="was trained on the classes \\['healthy', 'microaneurysm'.*, but the data has \\['exudate'",
        ):
            train(tmp_path / "a", init=str(source), data=order)
        with pytest.raises(ValueError, match="classes"):
            train(tmp_path / "b", init=str(source), data=fewer)
    with pytest.raises(ValueError, match="holds a test_resnet, but the model to train is cape_test_convnext"):
        train(tmp_path / "c", init=str(black_box[0] / "model"), model="cape_test_convnext")


@pytest.mark.parametrize(("l1", "warned"), [(3.0, True), (2.9, False)])
def test_a_penalty_that_leaves_nothing_to_learn_leaves_a_warning(l1, warned, tmp_path, caplog):
    config = settings(tmp_path, model="softcam_test_resnet", l1=l1)
    splits = load_splits(config.data)
    with caplog.at_level(logging.WARNING):
        check_run(config, splits, make_model(config, splits), processes=1)
    assert ("leaves nothing to learn: from 3 on" in caplog.text) == warned
