"""SoftCAM and CAPE with real ImageNet weights on photographs, against the papers' formulas in double precision."""

import copy

import numpy as np
import pytest
import timm
import torch
from helpers.photographs import load_photographs

import softcam_hub
from benchmarks.imagenet_weights import imagenet_folder

ARCHITECTURES = ("tf_efficientnet_lite0", "tf_efficientnet_lite1")
"""Networks whose weights the extra [test] installs."""


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    return imagenet_folder(request.param, tmp_path_factory.mktemp("imagenet") / request.param)


@pytest.fixture(scope="module")
def vanilla(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.fixture(scope="module")
def images(vanilla):
    return load_photographs(vanilla)


@pytest.fixture(scope="module")
def layer(vanilla, images):
    """The vanilla classifier in double precision: its features of the images, its weight and its bias."""
    double = copy.deepcopy(vanilla).double()
    with torch.no_grad():
        features = double.forward_features(images.double())
    return features.numpy(), double.classifier.weight.detach().numpy(), double.classifier.bias.detach().numpy()


def softmax(values):
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def slow_cape(features, weight, bias, naive):
    """P of eq. 8 of the CAPE paper: eq. 3 times eq. 7, or times eq. 4's 1/(H·W) if `naive`, for one image (K, H, W)."""
    _, height, width = features.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    evidence = {place: weight @ features[:, place[0], place[1]] + bias for place in places}  # M' = M + b
    means = np.array([sum(evidence[place]) / len(bias) for place in places])
    saliency = np.full(len(places), 1 / len(places)) if naive else softmax(means)
    maps = np.zeros((len(bias), height, width))
    for (i, j), importance in zip(places, saliency, strict=True):
        maps[:, i, j] = softmax(evidence[i, j]) * importance
    return maps


@pytest.mark.parametrize("naive", [True, False], ids=["naive", "off-the-shelf"])
@torch.no_grad()
def test_cape_is_the_papers_formula(naive, folder, images, layer):
    features, weight, bias = layer
    expected = torch.from_numpy(np.stack([slow_cape(image, weight, bias, naive) for image in features]))
    settings = {"file": str(folder / "model.safetensors")}
    cape = softcam_hub.build(f"cape_{folder.name}", True, pretrained_cfg_overlay=settings, naive=naive).eval()
    cape.measures_on_first_use = False  # pictures are not the subject here

    explanation = cape.explain(images, classes=torch.arange(1000).expand(len(images), -1))
    torch.testing.assert_close(explanation.maps.double(), expected, rtol=0, atol=5e-6)
    torch.testing.assert_close(explanation.probabilities.double(), expected.sum(dim=(2, 3)), rtol=0, atol=5e-6)
    torch.testing.assert_close(cape(images).softmax(dim=1), explanation.probabilities, rtol=0, atol=1e-6)
    torch.testing.assert_close(explanation.maps.sum(dim=(2, 3)), explanation.probabilities, rtol=0, atol=1e-6)


@torch.no_grad()
def test_softcam_logits_equal_vanillas(vanilla, images, layer):
    softcam = softcam_hub.convert(vanilla)
    expected = vanilla(images)
    torch.testing.assert_close(softcam(images), expected, rtol=0, atol=1e-5)

    # the logits as means of maps, and in double precision as W · mean(F) + b
    explanation = softcam.explain(images, classes=torch.arange(1000).expand(len(images), -1))
    torch.testing.assert_close(explanation.maps.mean(dim=(2, 3)), expected, rtol=0, atol=2e-5)
    features, weight, bias = layer
    slow = np.stack([weight @ image.reshape(len(image), -1).mean(axis=1) + bias for image in features])
    torch.testing.assert_close(expected.double(), torch.from_numpy(slow), rtol=0, atol=1e-4)
