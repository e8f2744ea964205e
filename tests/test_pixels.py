"""Pixel attributions against slow transcriptions of their papers, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomise, relative_error
from torch import nn

from softcam_hub.explainers.create import create_explainer

CLASSES = torch.tensor([[0, 3], [4, 1]])


def network(name="test_resnet", **options):
    return randomise(timm.create_model(name, num_classes=5, **options)).eval(), torch.randn(2, 3, 64, 64)


class GuidedReLU(nn.Module):
    """ReLU whose backward pass lets only positive gradients through, written without hooks."""

    def __init__(self, highest):
        super().__init__()
        self.highest = highest

    def forward(self, x):
        return Guided.apply(x, self.highest)


class Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, highest):
        ctx.save_for_backward(x)
        ctx.highest = highest
        return x.clamp(0, highest)

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return slope.clamp_min(0) * (x > 0) * (x < ctx.highest), None


def with_guided_relus(module):
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU | nn.ReLU6):
            setattr(module, name, GuidedReLU(6 if isinstance(child, nn.ReLU6) else torch.inf))
        else:
            with_guided_relus(child)
    return module


@pytest.mark.parametrize(
    "name", ["test_resnet", "resnet18", "softcam_test_resnet", "cape_test_resnet", "tf_efficientnet_lite0"]
)
def test_guided_backprop_lets_only_positive_gradients_through(name):
    model, images = network(name)
    found = create_explainer("guided-backprop", model, signed=True)(images, CLASSES)
    with_guided_relus(model)
    for column in range(2):
        leaf = images.clone().requires_grad_()
        model(leaf).gather(1, CLASSES[:, [column]]).sum().backward()
        assert relative_error(found[:, column], leaf.grad.sum(dim=1)) < 1e-5


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_atto", "test_vit"])
def test_guided_backprop_refuses_networks_without_relu_modules(name):
    model, _ = network(name)
    images = torch.randn(1, 3, *model.pretrained_cfg["input_size"][1:])
    expected = (
        r"^guided-backprop changes the backward pass of nn.ReLU and nn.ReLU6 modules, and in \w+ there are none: use"
    )
    with pytest.raises(ValueError, match=expected):
        create_explainer("guided-backprop", model)(images, 0)


@pytest.mark.parametrize("function", [F.relu, torch.relu, torch.Tensor.relu, lambda x: x.clone().relu_()])
def test_guided_backprop_refuses_relus_that_are_functions(function):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 5)

        def forward(self, x):
            return self.fc(function(self.act(self.conv(x)) - 0.1).mean(dim=(2, 3)))

    with pytest.raises(ValueError, match=r"and in Net 1 ReLUs are functions: use integrated-gradients"):
        create_explainer("guided-backprop", Net())(torch.randn(1, 3, 8, 8), 0)


@pytest.mark.parametrize("name", ["test_resnet", "convnext_atto", "cape_test_resnet"])
def test_integrated_gradients_is_the_integral_along_the_path(name):
    model, images = network(name)
    points, shares = np.polynomial.legendre.leggauss(6)
    expected = torch.zeros(2, 2, 64, 64)
    for column in range(2):
        for point, share in zip((points + 1) / 2, shares / 2, strict=True):
            leaf = (float(point) * images).requires_grad_()
            model(leaf).gather(1, CLASSES[:, [column]]).sum().backward()
            expected[:, column] += float(share) * (leaf.grad * images).sum(dim=1)
    for batch in (3, 32):
        found = create_explainer("integrated-gradients", model, signed=True, steps=6, batch=batch)(images, CLASSES)
        assert relative_error(found, expected) < 1e-4


def test_integrated_gradients_add_up_to_the_change_of_the_logit():
    model, images = network("convnext_atto")
    found = create_explainer("integrated-gradients", model, signed=True, steps=200)(images, CLASSES)
    change = (model(images) - model(torch.zeros_like(images))).gather(1, CLASSES)
    assert relative_error(found.sum(dim=(2, 3)), change.detach()) < 0.02


def test_pixel_methods_need_no_spatial_features():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    images = torch.randn(2, 3, 8, 8)
    found = create_explainer(["guided-backprop", "integrated-gradients"], model)(images, CLASSES)
    assert {maps.shape for maps in found.values()} == {(2, 2, 8, 8)}
    assert all((maps >= 0).all() for maps in found.values())


@pytest.mark.parametrize("name", ["guided-backprop", "integrated-gradients"])
def test_pixel_methods_have_no_layer(name):
    model, _ = network()
    with pytest.raises(
        ValueError, match=f"^'{name}' maps are of the image's pixels and have no layer: leave layer out$"
    ):
        create_explainer(name, model, "layer3")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    model, images = network()
    with pytest.raises(ImportError, match=r"needs captum: pip install 'softcam-hub\[baselines\]'$"):
        create_explainer("integrated-gradients", model)(images, 0)


@pytest.mark.slow
def test_the_extra_is_imported_only_when_it_is_used():
    code = "import sys; import softcam_hub.explainers.methods; assert 'captum' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
