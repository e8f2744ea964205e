"""The parameter-randomisation check: what it compares, in which order, and that the model comes back whole."""

import copy

import numpy as np
import pytest
import timm
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import nn

from softcam_hub.explanation_scores.randomisation import parameter_layers, randomisation_check, ssim


@pytest.fixture
def model():
    return timm.create_model("cape_test_resnet", num_classes=4).eval()


IMAGES = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([1, 3])


def native(model):
    return lambda images, classes: model.explain(images, classes[:, None]).maps


def same(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_layers_lose_their_weights_from_the_top(model):
    steps = randomisation_check(model, native(model), IMAGES, CLASSES)
    assert [step.layer for step in steps] == parameter_layers(model)[::-1]
    assert steps[0].layer == "head"
    assert steps[-1].layer.startswith("backbone.")
    assert all(step.rank_correlation.shape == step.ssim.shape == (2,) for step in steps)
    assert steps[-1].rank_correlation.abs().max() < 0.9


def test_randomisation_cascades_and_comes_back(model):
    before, seen = copy.deepcopy(model.state_dict()), []

    def explain(images, classes):
        seen.append({name for name, value in model.state_dict().items() if not torch.equal(value, before[name])})
        return native(model)(images, classes)

    randomisation_check(model, explain, IMAGES, CLASSES, layers=["head", "backbone.conv1.0"])
    assert seen[0] == set()
    assert seen[1] == {"head.weight"}  # the bias is constant, the temperature a single number
    assert seen[2] == seen[1] | {"backbone.conv1.0.weight"}
    assert same(model, before)


def test_the_weights_come_back_after_an_exception(model):
    before, calls = copy.deepcopy(model.state_dict()), []

    def explain(images, classes):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of order")
        return native(model)(images, classes)

    with pytest.raises(RuntimeError, match="out of order"):
        randomisation_check(model, explain, IMAGES, CLASSES)
    assert same(model, before)


def test_buffers_come_back_too():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)).train()
    before = copy.deepcopy(model.state_dict())
    randomisation_check(model, lambda images, _: model(images)[:, 0], IMAGES, CLASSES)
    assert same(model, before)


def test_a_map_that_does_not_ask_the_model_is_found_out(model):
    steps = randomisation_check(model, lambda images, _: images.mean(dim=1), IMAGES, CLASSES, layers=["head"])
    assert torch.allclose(steps[0].rank_correlation, torch.ones(2))
    assert torch.allclose(steps[0].ssim, torch.ones(2))


def test_rank_correlation_is_of_the_maps():
    model = nn.Conv2d(3, 1, 3)
    drawn = []

    def explain(images, _):
        drawn.append(model(images)[:, 0].detach())
        return drawn[-1]

    (step,) = randomisation_check(model, explain, IMAGES, CLASSES)
    expected = [spearmanr(a.flatten(), b.flatten())[0] for a, b in zip(*drawn, strict=True)]
    assert step.rank_correlation.tolist() == pytest.approx(expected, abs=1e-4)


def test_the_seed_decides(model):
    first, again, other = (
        randomisation_check(model, native(model), IMAGES, CLASSES, ["head"], seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first[0].rank_correlation, again[0].rank_correlation)
    assert not torch.equal(first[0].rank_correlation, other[0].rank_correlation)


def slow_ssim(first, second):
    def smooth(image):
        return gaussian_filter(image, 1.5, truncate=3.5, mode="nearest")

    a, b = (image.double().numpy() for image in (first, second))
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a**2) - mean_a**2, smooth(b**2) - mean_b**2
    both = smooth(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(np.mean(values))


def test_ssim_is_the_definition():
    first, second = torch.rand(3, 24, 31), torch.rand(3, 24, 31)
    second[1] = (first[1] + 0.1 * second[1]) / 1.1
    expected = [slow_ssim(a, b) for a, b in zip(first, second, strict=True)]
    assert ssim(first, second).tolist() == pytest.approx(expected, abs=1e-4)
    assert ssim(first, first).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_ssim_of_constants_compares_their_light():
    zero, one, half = (torch.full((1, 12, 12), value) for value in (0.0, 1.0, 0.5))
    assert ssim(zero, zero).tolist() == pytest.approx([1])
    assert ssim(zero, one).tolist() == pytest.approx([1e-4 / (1 + 1e-4)], rel=1e-3)
    assert ssim(half, one).tolist() == pytest.approx([(1 + 1e-4) / (1.25 + 1e-4)], rel=1e-3)


def test_unknown_layers(model):
    with pytest.raises(ValueError, match=r"^the model has no modules \['fc'\]: names are those of model.named_modules"):
        randomisation_check(model, native(model), IMAGES, CLASSES, layers=["fc"])
    with pytest.raises(ValueError, match=r"^the model has no parameters to randomise$"):
        randomisation_check(nn.Identity(), lambda images, _: images[:, 0], IMAGES, CLASSES)
