"""What makes maps sparse: the mathematics of every candidate, the heads trained at once, and the page of the rows."""

import math

import pytest
import torch

from benchmarks.sparsity.candidates import CANDIDATES, contrast, entropy, hoyer
from benchmarks.sparsity.entmax import entmax15, sparsemax
from benchmarks.sparsity.features import Features
from benchmarks.sparsity.heads import Heads, Setting, predict, train
from benchmarks.sparsity.rule import shortfall

ALPHA = {sparsemax: 2.0, entmax15: 1.5}
SETTINGS = [Setting(name, value) for name, one in CANDIDATES.items() for value in (one.grid[0], one.grid[-1])]


def bisected(values, alpha):
    """Find t by bisection, so that p_i = max((α - 1)·x_i - t, 0)^(1 / (α - 1)) sums to 1."""
    scaled = [(alpha - 1) * value for value in values]
    low, high = max(scaled) - 1, max(scaled)
    for _ in range(200):
        t = (low + high) / 2
        total = sum(max(value - t, 0) ** (1 / (alpha - 1)) for value in scaled)
        low, high = (t, high) if total > 1 else (low, t)
    return [max(value - t, 0) ** (1 / (alpha - 1)) for value in scaled]


@pytest.mark.parametrize("function", ALPHA)
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 30.0])
def test_softmaxes_with_zeros_are_those_that_bisection_finds(function, scale):
    values = scale * torch.randn(20, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.tensor([bisected(row, ALPHA[function]) for row in values.tolist()], dtype=torch.float64)
    torch.testing.assert_close(function(values), expected, atol=1e-9, rtol=0)
    assert (function(values) == 0).any() or scale < 1


@pytest.mark.parametrize("function", ALPHA)
def test_softmaxes_with_zeros_have_the_right_gradient(function):
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, values)


def random_evidence(classes=3, side=4):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(5, classes, side, side, generator=generator) * 2, torch.randn(classes, generator=generator)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_maps_make_up_the_prediction(setting):
    evidence, bias = random_evidence()
    logits, maps = setting.compose(evidence, bias)
    if setting.candidate.startswith("cape"):
        torch.testing.assert_close(maps.sum(dim=(2, 3)), logits.softmax(dim=1))
        torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(5))
    else:
        rest = 0 if setting.candidate in ("dense", "l1", "rectified") else bias
        torch.testing.assert_close(maps.mean(dim=(2, 3)) + rest, logits)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_losses_and_gradients_are_finite(setting, scale):
    evidence, bias = random_evidence()
    evidence = (evidence * scale).requires_grad_()
    loss = setting.loss(evidence, bias, torch.tensor([0, 1, 2, 0, 1]), 1.0)
    loss.backward()
    assert loss.isfinite()
    assert evidence.grad.isfinite().all()


def test_without_sparsity_predictions_are_those_of_the_vanilla_classifier():
    evidence, bias = random_evidence()
    vanilla = evidence.mean(dim=(2, 3)) + bias
    for name, value in {
        "threshold": 0.0,
        "threshold-image": 0.0,
        "attended": 0.0,
        "highest": 1.0,
        "hoyer": 1.0,
    }.items():
        torch.testing.assert_close(Setting(name, value).compose(evidence, bias)[0], vanilla, msg=name)
    centred = Setting("centred", 0.0).compose(evidence, bias)[0]
    torch.testing.assert_close(centred.log_softmax(dim=1), vanilla.log_softmax(dim=1))


def test_a_soft_threshold_is_relative_to_the_evidence():
    evidence, bias = random_evidence()
    for name in ("threshold", "threshold-image"):
        maps = Setting(name, 1.0).compose(evidence, bias)[1]
        for image, klass in ((0, 0), (3, 2)):
            values = evidence[image, klass].flatten().tolist()
            of = values if name == "threshold" else evidence[image].flatten().tolist()
            limit = sum(abs(value) for value in of) / len(of)
            expected = [math.copysign(max(abs(value) - limit, 0), value) for value in values]
            torch.testing.assert_close(maps[image, klass].flatten(), torch.tensor(expected))
        assert 0.4 < (maps == 0).float().mean() < 0.8
        larger = Setting(name, 1.0).compose(7 * evidence, bias)[1]
        torch.testing.assert_close(larger, 7 * maps)


def test_one_sided_maps_compete_across_classes():
    evidence, bias = random_evidence()
    maps = Setting("one-sided", 0.5).compose(evidence, bias)[1]
    assert (maps >= 0).all()
    shared = evidence + torch.randn(5, 1, 4, 4)
    torch.testing.assert_close(Setting("one-sided", 0.5).compose(shared, bias)[1], maps, atol=1e-5, rtol=1e-5)
    assert (Setting("one-sided", 0.0).compose(evidence, bias)[1] > 0).any(dim=1).all(), "a class leads everywhere"


def test_the_highest_cells_are_kept():
    evidence, bias = random_evidence()
    maps = Setting("highest", 0.25).compose(evidence, bias)[1]
    assert (maps != 0).flatten(2).sum(dim=2).unique().tolist() == [4]
    torch.testing.assert_close(maps.amax(dim=(2, 3)), 4 * evidence.amax(dim=(2, 3)))


def test_contrast_does_not_see_what_all_classes_share():
    evidence, bias = random_evidence()
    shared = evidence + torch.randn(5, 1, 4, 4)
    torch.testing.assert_close(contrast(shared.flatten(2)), contrast(evidence.flatten(2)), atol=1e-5, rtol=1e-5)
    setting = Setting("cape-contrast", 1.0)
    torch.testing.assert_close(setting.compose(shared, bias)[1], setting.compose(evidence, bias)[1])


def test_penalties_of_flat_maps_and_of_single_cells():
    flat, single = torch.full((2, 3, 4, 4), -5.0), torch.zeros(2, 3, 4, 4)
    single[:, :, 1, 2] = 7
    assert hoyer(flat) == pytest.approx(1)
    assert hoyer(single) == pytest.approx(1 / 16)
    assert hoyer(torch.tensor([[[[1.0, -3.0]]]])) == pytest.approx(16 / 20)
    assert entropy(flat) == pytest.approx(1)
    assert entropy(single) == pytest.approx(0)
    assert entropy(torch.tensor([[[[1.0, -3.0]]]])) == pytest.approx(0.8113, abs=1e-4)


def test_heads_learn_together_as_they_learn_alone():
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(90) % 3
    values = torch.rand(90, 9, 6, generator=generator).half()
    values[torch.arange(90), torch.arange(90) % 9, labels] += 3
    features = Features(values, labels, 3, torch.empty(90, 0, 0), torch.zeros(90, dtype=torch.bool))
    start = Heads(torch.zeros(1, 3, 6), torch.zeros(1, 3))
    settings = [Setting("dense", 0.0), Setting("threshold-annealed", 1.0), Setting("cape-contrast", 1.0)]
    together = train(settings, start, features, seed=0, epochs=4)
    for index, setting in enumerate(settings):
        alone = train([setting], start, features, seed=0, epochs=4)
        torch.testing.assert_close(together.weights[index], alone.weights[0], atol=1e-5, rtol=1e-4)
    logits, maps = predict(settings[0], together, 0, features)
    assert (logits.argmax(dim=1) == labels).float().mean() > 0.9
    assert maps.shape == (90, 3, 3, 3)


def test_the_shortfall_adds_up_what_is_missing():
    dense = {"accuracy": 0.96, "zeros": 0.0, "gini": 0.4, "precision": 0.5}
    cams = [{"precision": 0.52}, {"precision": 0.4}]
    kept = {"accuracy": 0.956, "zeros": 0.8, "gini": 0.4, "precision": 0.53}
    assert shortfall(kept, dense, cams) == 0
    assert shortfall({**kept, "zeros": 0.0, "gini": 0.56}, dense, cams) == 0, "Gini counts too"
    assert shortfall({**kept, "accuracy": 0.935}, dense, cams) == pytest.approx(2.0)
    assert shortfall({**kept, "zeros": 0.7}, dense, cams) == pytest.approx(10.0)
    assert shortfall({**kept, "precision": 0.51}, dense, cams) == pytest.approx(1.0)
    assert shortfall({**dense}, dense, cams) == pytest.approx(15 + 2)
