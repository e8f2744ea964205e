"""LIFT-CAM against captum, against a slow transcription of the rescale rule, and where the rule does not hold."""

import warnings

import captum.attr
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomise, relative_error
from helpers.cams import (
    CLASSES,
    activations_and_gradients,
    make_networks,
    maps_of,
    replaced,
    small_resnet,
)

from softcam_hub.explainers import cams
from softcam_hub.explainers.create import create_explainer
from softcam_hub.explainers.explained_model import ExplainedModel


@pytest.fixture(scope="module")
def networks():
    return make_networks()


@pytest.mark.parametrize(("network", "layer"), [("resnet18", None), ("resnet18", "layer3"), ("vgg11_bn", None)])
def test_lift_cam_is_captums_deep_lift_of_the_tail(networks, network, layer):
    model, images = networks[network]
    parts = [model.pre_logits, model.head] if network == "vgg11_bn" else [model.global_pool, model.fc]
    tail = torch.nn.Sequential(*([model.layer4] if layer else []), *parts)
    module = layer or ("features" if network == "vgg11_bn" else "layer4")
    A, _ = activations_and_gradients(model, images, module, maps_of, CLASSES)
    found = create_explainer("lift-cam", model, layer, signed=True)(images, CLASSES)
    for column in range(2):
        leaf = A.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = captum.attr.DeepLift(tail).attribute(leaf, torch.zeros_like(A), target=CLASSES[:, column])
        expected = (shares.sum(dim=(2, 3), keepdim=True) * A).sum(dim=1)
        assert relative_error(found[:, column], expected.detach()) < 1e-4


def slow_deep_lift(layers, inputs, target):
    """The multipliers at the input of a chain of modules, layer by layer from the top (one image, baseline 0)."""
    there, base = [inputs[None]], [torch.zeros_like(inputs[None])]
    for layer in layers:
        there.append(layer(there[-1].clone()))
        base.append(layer(base[-1].clone()))
    slope = torch.zeros_like(there[-1])
    slope[0, target] = 1
    for n in reversed(range(len(layers))):
        layer, change, risen = layers[n], there[n] - base[n], there[n + 1] - base[n + 1]
        if isinstance(layer, torch.nn.ReLU):
            slope = torch.where(change == 0, slope, slope * risen / change.where(change != 0, 1))
        elif isinstance(layer, torch.nn.MaxPool2d):
            slope = slow_max_pool(there[n][0], base[n][0], slope[0], layer.kernel_size, layer.stride)[None]
        else:  # linear: the derivative is the slope
            leaf = there[n].clone().requires_grad_()
            (slope,) = torch.autograd.grad(layer(leaf), leaf, slope)
    return slope[0]


def slow_max_pool(there, base, slope, size, stride):
    found = torch.zeros_like(there)
    for k in range(slope.shape[0]):
        for i in range(slope.shape[1]):
            for j in range(slope.shape[2]):
                window = (k, slice(i * stride, i * stride + size), slice(j * stride, j * stride + size))
                o, o0 = there[window].max(), base[window].max()
                for share, winner in ((max(o, o0) - o0, there), (o - max(o, o0), base)):
                    if share != 0:
                        place = (winner[window] == winner[window].max()).nonzero()[0]
                        spot = (k, i * stride + place[0], j * stride + place[1])
                        found[spot] += slope[k, i, j] * share / (there[spot] - base[spot])
    return found


def test_lift_cam_through_max_pools_follows_the_rule():
    """captum is no oracle here: on VGG its contributions miss the change of the logit by 5 %."""
    layers = [
        *(torch.nn.Conv2d(4, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(inplace=True), torch.nn.MaxPool2d(3, 2)),
        *(torch.nn.Conv2d(6, 8, 2), torch.nn.ReLU(inplace=True), torch.nn.MaxPool2d(2, 2)),
        *(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5)),
    ]
    model = randomise(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), *layers)).eval()
    images = torch.randn(2, 3, 15, 15)
    A = model[0](images).detach()
    found = create_explainer("lift-cam", model, "0", signed=True)(images, CLASSES)
    for i in range(2):
        for c in range(2):
            alpha = (slow_deep_lift(layers, A[i], CLASSES[i, c]) * A[i]).sum(dim=(1, 2), keepdim=True)
            assert relative_error(found[i, c], (alpha * A[i]).sum(dim=0)) < 1e-4


@pytest.mark.parametrize(("activation", "pool"), [("relu", False), ("gelu", False), ("silu", True), ("relu_", True)])
def test_lift_cam_counts_activations_that_are_functions(activation, pool):
    act = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "relu_": lambda x: x.relu_()}[activation]

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = torch.nn.Conv2d(3, 6, 4, 4), torch.nn.Conv2d(6, 9, 3)
            self.fc = torch.nn.Linear(9, 5)

        def forward(self, x):
            x = act(self.conv(self.stem(x)))
            return self.fc(act((F.max_pool2d(x, 2) if pool else x).mean(dim=(2, 3)) - 0.1))

    model, images = Net().eval(), torch.randn(2, 3, 40, 40)
    activations = ExplainedModel(model, "stem").record(images).for_classes(CLASSES)
    shares = cams.deep_lift(activations)  # complete, or it would have been refused
    zero = [replaced(model, image, "stem", torch.zeros(1, 6, 10, 10)) for image in images]
    change = (model(images) - torch.stack(zero)).gather(1, CLASSES)
    assert relative_error(shares.sum(dim=2), change.detach()) < 1e-4


def test_lift_cam_by_hand():
    """logit = ReLU(a - 1) + ReLU(2b - 1) summed over two locations: the slopes are (f(a) - f(0)) / a."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Identity()

        def forward(self, x):
            x = self.layer(x)
            return (F.relu(x * torch.tensor([1.0, 2.0])[:, None, None] - 1)).sum(dim=(1, 2, 3))[:, None]

    A = torch.tensor([[[[3.0, 0.5]], [[1.0, 2.0]]]])
    found = create_explainer("lift-cam", Net(), "layer", layout="NCHW", signed=True)(A, 0)
    # channel a contributes 2 + 0, channel b 1 + 3
    assert torch.allclose(found, 2 * A[:, :1] + 4 * A[:, 1:])


@pytest.mark.parametrize(
    "where", [("swinv2_tiny_window8_256", "layers.3"), ("test_vit", None), ("test_vit", "blocks.2")], ids=str
)
def test_lift_cam_refuses_what_deep_lift_does_not_explain(networks, where):
    name, layer = where
    model, images = networks[name]
    with pytest.raises(ValueError, match=r"^lift-cam is not defined at layer '.*': .* miss the change of the logit by"):
        create_explainer("lift-cam", model, layer)(images, CLASSES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", ["layer2", "layer3"])
def test_lift_cam_in_half_precision(dtype, layer):
    model, images = small_resnet(), torch.randn(2, 3, 96, 96)
    expected = create_explainer("lift-cam", model, layer)(images.double(), CLASSES)
    found = create_explainer("lift-cam", model.to(dtype), layer)(images.to(dtype), CLASSES)
    assert relative_error(found.double(), expected) < 0.2


def test_lift_cam_refuses_products_in_half_precision_too():
    model = randomise(timm.create_model("efficientnet_b0", num_classes=5)).eval().bfloat16()
    with pytest.raises(ValueError, match=r"stands above the layer, or torch.bfloat16 rounds too much \(use float32\);"):
        create_explainer("lift-cam", model, "blocks.5")(torch.randn(2, 3, 64, 64).bfloat16(), CLASSES)
