"""One update and one epoch: order of the images, gradient, optimizer, schedule, and balancing of classes."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from helpers.training import (
    CLASSES,
    SIZE,
    SMALL,
    Noise,
    equal,
    largest_difference,
    part,
    recorded,
    train,
    training_of,
    weights,
)

from softcam_hub.data.splits import Splits
from softcam_hub.training import make_config
from softcam_hub.training.model import make_model
from softcam_hub.training.objective import Objective
from softcam_hub.training.optimization import EpochSampler, class_balancing_weights, make_optimizer, make_schedule


def test_an_epoch_shows_every_image_once_in_a_new_order(tmp_path):
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


def test_an_update_is_sgd_by_hand(tmp_path):
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


def test_class_balancing_weights_are_those_by_hand():
    labels = np.array([0, 0, 0, 1, 3, 3])
    assert class_balancing_weights(labels, 5).tolist() == pytest.approx([6 / (3 * 3), 6 / 3, 6 / 3, 6 / (3 * 2), 6 / 3])
    assert class_balancing_weights(labels, 5)[labels].mean().item() == pytest.approx(1)
    several = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert class_balancing_weights(several, 3).tolist() == pytest.approx([1 / 3, 3, 4])


def test_rare_classes_count_as_much_as_common_ones_in_the_loss():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    config = make_config(**SMALL)
    model = make_model(config, Splits(None, None, None, ["a", "b", "c"], False)).eval()
    images = torch.randn(6, 3, SIZE, SIZE)
    found = Objective(model, 0.0, class_balancing_weights(labels.numpy(), 3))(pixel_values=images, labels=labels)
    each = F.cross_entropy(found.logits, labels, reduction="none")
    by_class = torch.stack([each[labels == label].mean() for label in range(3)])
    assert found.loss.item() == pytest.approx(by_class.mean().item(), rel=1e-5)


def test_rare_classes_are_drawn_as_often_as_common_ones():
    labels = np.array([0] * 90 + [1] * 9 + [2])
    sampler = EpochSampler(100, 100, 0, class_balancing_weights(labels, 3)[torch.as_tensor(labels)])
    drawn = Counter()
    for epoch in range(100):
        sampler.set_epoch(epoch)
        drawn.update(int(labels[index]) for _, index in sampler)
    assert all(abs(drawn[label] / 10_000 - 1 / 3) < 0.02 for label in range(3))  # four standard deviations


def test_balanced_sampling_reaches_the_loop(tmp_path):
    samples = Noise(240)
    samples.labels = torch.tensor([0] * 200 + [1] * 40)
    training_of(tmp_path, samples, epochs=2, balance="sampling", lr=0).fit()
    share = np.mean([index >= 200 for _, index in samples.asked])
    assert abs(share - 0.5) < 0.1


def test_a_sampler_continues_where_it_was_interrupted():
    whole, rest = EpochSampler(20, 16, seed=3), EpochSampler(20, 16, seed=3)
    rest.skip = 6
    for epoch in range(2):
        whole.set_epoch(epoch)
        rest.set_epoch(epoch)
        assert list(rest) == list(whole)[6:]
        assert len(rest) == len(list(rest)) == 10


def test_the_backbone_learns_from_the_teacher_only(from_scratch_run, tmp_path):
    states = {}
    for beta in (0.5, 2.0):
        training = training_of(tmp_path / str(beta), mode="from-scratch", beta=beta, epochs=1)
        states[beta] = recorded(training)[-1]
    for prefix in ("backbone.", "teacher."):
        assert equal(part(states[0.5], prefix), part(states[2.0], prefix))
    assert not torch.equal(states[0.5]["head.weight"], states[2.0]["head.weight"])


def test_channels_last_changes_only_the_layout(tmp_path):
    expected = recorded(training_of(tmp_path / "a", epochs=1, ema=0.5))[-1]
    found = recorded(training_of(tmp_path / "b", epochs=1, ema=0.5, channels_last=True))[-1]
    assert largest_difference(found, expected) < 1e-4
    train(tmp_path / "c", epochs=1, ema=0.5, channels_last=True)
    weights(tmp_path / "c")


def test_a_vanilla_classifier_is_saved_from_channels_last(tmp_path):
    for layout in (False, True):
        train(tmp_path / str(layout), model="test_resnet", epochs=1, lr=1e-5, channels_last=layout)
    found, expected = weights(tmp_path / "True"), weights(tmp_path / "False")
    assert largest_difference(found, expected) < 1e-4
