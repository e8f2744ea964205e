"""Gradient methods and Score-CAM against slow transcriptions of their formulas, and against independent libraries."""

import copy

import captum.attr
import pytest
import pytorch_grad_cam
import timm
import torch
import torch.nn.functional as F
import torchcam.methods
from conftest import randomise, relative_error
from helpers.cams import (
    CLASSES,
    PLACES,
    activations_and_gradients,
    make_networks,
    maps_of,
    place_id,
    small_resnet,
    tokens,
)
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import softcam_hub
from softcam_hub.explainers import cams
from softcam_hub.explainers.create import create_explainer
from softcam_hub.explainers.explained_model import Activations, ExplainedModel


@pytest.fixture(scope="module")
def networks():
    return make_networks()


@pytest.fixture(params=PLACES, ids=place_id)
def place(request, networks):
    name, layer, module, to_maps = request.param
    model, images = networks[name]
    return model, images, layer, module, to_maps


def slow_plus_plus(A, first, second, third):
    """Grad-CAM++ of one image and class, channel by channel: A, D1, D2, D3 are (K, H, W)."""
    total = torch.zeros_like(A[0])
    for a, d1, d2, d3 in zip(A, first, second, third, strict=True):
        alpha = d2 / (2 * d2 + (a * d3).sum())
        alpha[d2 == 0] = 0
        total = total + (alpha * d1.relu()).sum() * a
    return total


def slow_grad_cam(A, g):
    return sum(channel.mean() * a for a, channel in zip(A, g, strict=True))


def slow_layer_cam(A, g):
    return sum(channel.relu() * a for a, channel in zip(A, g, strict=True))


SLOW = {
    "grad-cam": slow_grad_cam,
    "layer-cam": slow_layer_cam,
    "grad-cam++": lambda A, g: slow_plus_plus(A, g, g**2, g**3),
}


def test_gradient_methods_follow_their_formula(place):
    model, images, layer, module, to_maps = place
    A, g = activations_and_gradients(model, images, module, to_maps, CLASSES)
    found = create_explainer(list(SLOW), model, layer, signed=True)(images, CLASSES)
    positive = create_explainer(list(SLOW), model, layer)(images, CLASSES)
    for name, slow in SLOW.items():
        expected = torch.stack([torch.stack([slow(A[i], g[i, c]) for c in range(2)]) for i in range(2)])
        assert relative_error(found[name], expected) < 1e-9
        assert torch.equal(positive[name], found[name].relu())


def test_smooth_grad_cam_pp_follows_its_formula(place):
    model, images, layer, module, to_maps = place
    A, clean = activations_and_gradients(model, images, module, to_maps, CLASSES)
    generator = torch.Generator().manual_seed(7)
    sums = [torch.zeros_like(clean) for _ in range(3)]
    for _ in range(3):
        noisy = images + (0.2 * torch.randn(images.shape[1:], generator=generator)).double()
        g = activations_and_gradients(model, noisy, module, to_maps, CLASSES)[1]
        sums = [total + g**power / 3 for power, total in enumerate(sums, start=1)]
    expected = torch.stack(
        [torch.stack([slow_plus_plus(A[i], *(total[i, c] for total in sums)) for c in range(2)]) for i in range(2)]
    )
    explainer = create_explainer("smooth-grad-cam++", model, layer, n=3, sigma=0.2, seed=7, signed=True)
    assert relative_error(explainer(images, CLASSES), expected) < 1e-9


@pytest.mark.parametrize("layer", [None, "layer3"])
def test_smooth_grad_cam_pp_needs_a_noisy_image(layer):
    with pytest.raises(ValueError, match="^n is the number of noisy images and must be at least 1, got 0$"):
        create_explainer("smooth-grad-cam++", small_resnet(), layer, n=0)(torch.randn(1, 3, 64, 64).double(), 0)


def test_cam_is_the_classifiers_weights_and_torchcams_cam(networks):
    model, images = networks["resnet18"]
    A, _ = activations_and_gradients(model, images, "layer4", maps_of, CLASSES)
    weight = model.fc.weight.detach()
    found = create_explainer("cam", model, signed=True)(images, CLASSES)
    for i in range(2):
        for c in range(2):
            expected = sum(weight[CLASSES[i, c], k] * A[i, k] for k in range(A.shape[1]))
            assert relative_error(found[i, c], expected) < 1e-5
    with torchcam.methods.CAM(model, "layer4", "fc") as peer:
        model(images)
        (expected,) = peer(CLASSES[:, 0].tolist(), normalized=False)
    assert relative_error(found[:, 0], expected.detach()) < 1e-5


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
@pytest.mark.parametrize("name", ["grad-cam", "layer-cam", pytest.param("score-cam", marks=pytest.mark.slow)])
def test_torchcam_agrees(networks, layer, name):
    model, images = networks["resnet18"]
    if name == "score-cam":
        model, images = small_resnet(), images[:1]
    kind = {"grad-cam": "GradCAM", "layer-cam": "LayerCAM", "score-cam": "ScoreCAM"}[name]
    with getattr(torchcam.methods, kind)(model, layer) as peer:
        scores = model(images)
        targets = CLASSES[: len(images), 0].tolist()
        (expected,) = peer(targets, scores, normalized=False)
    found = create_explainer(name, model, layer)(images, CLASSES[: len(images)])[:, 0]
    # torchcam scales Score-CAM's masks before it enlarges them, which changes the weights a little
    tolerance = 0.02 if name == "score-cam" else 1e-5
    assert relative_error(found, expected.detach()) < tolerance


@pytest.mark.parametrize("where", [p for p in PLACES if p[1] is None or "." not in p[1]], ids=place_id)
@pytest.mark.parametrize("name", ["grad-cam", "layer-cam"])
def test_pytorch_grad_cam_agrees(networks, where, name):
    network, layer, module, to_maps = where
    model, images = networks[network]
    kind = {"grad-cam": "GradCAM", "layer-cam": "LayerCAM"}[name]
    with getattr(pytorch_grad_cam, kind)(model, [model.get_submodule(module)], reshape_transform=to_maps) as peer:
        expected = peer(images, [ClassifierOutputTarget(int(c)) for c in CLASSES[:, 1]])
    model.zero_grad(set_to_none=True)
    found = create_explainer(name, model, layer)(images, CLASSES)[:, 1]
    scaled = scale_cam_image(scale_cam_image(found.numpy(), tuple(images.shape[-2:])))
    assert abs(scaled - expected).max() < 1e-3  # it adds 1e-7 to what it divides by


@pytest.mark.parametrize("network", ["resnet18", "vgg11_bn"])
def test_captums_grad_cam_agrees(networks, network):
    model, images = networks[network]
    module = model.layer4 if network == "resnet18" else model.features
    peer = captum.attr.LayerGradCam(model, module)
    expected = peer.attribute(images, CLASSES[:, 0], relu_attributions=True)
    assert relative_error(create_explainer("grad-cam", model)(images, CLASSES)[:, :1], expected.detach()) < 1e-5


@pytest.mark.parametrize("network", ["test_resnet", "test_vit"])
def test_score_cam_follows_its_formula(networks, network):
    if network == "test_resnet":
        model, images = small_resnet(), torch.randn(2, 3, 96, 64).double()
        module, to_maps = "layer4", maps_of
    else:
        (model, images), (module, to_maps) = networks["test_vit"], ("blocks.5.norm1", tokens)
    A, _ = activations_and_gradients(model, images, module, to_maps, CLASSES)
    expected = torch.zeros(2, 2, *A.shape[2:]).to(A)
    for i, image in enumerate(images):
        masked, baseline = [], model(torch.zeros_like(image)[None])[0].detach()
        for channel in A[i]:
            mask = F.interpolate(channel[None, None], size=image.shape[1:], mode="bilinear")[0, 0]
            mask = (mask - mask.min()) / (mask.max() - mask.min()) if mask.max() > mask.min() else 0 * mask
            masked.append(model((image * mask)[None])[0].detach() - baseline)
        weights = torch.stack(masked).softmax(dim=0)  # (K, C)
        for c in range(2):
            expected[i, c] = (weights[:, CLASSES[i, c], None, None] * A[i]).sum(dim=0)
    for batch in (32, 7):
        found = create_explainer("score-cam", model, signed=True, batch=batch)(images, CLASSES)
        assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize(
    "network", ["resnet18", "swinv2_tiny_window8_256", "softcam_resnet18", "softcam_convnext_atto"]
)
def test_the_closed_form_is_the_gradient_path(networks, network, monkeypatch):
    if network.startswith("softcam"):
        model, images = randomise(timm.create_model(network, num_classes=5)).eval(), torch.randn(2, 3, 64, 64)
    else:
        model, images = copy.deepcopy(networks[network][0]).float(), networks[network][1].float()
    names = ["grad-cam", "grad-cam++", "smooth-grad-cam++", "layer-cam", "lift-cam", "fd-cam"]
    found = create_explainer(names, model, signed=True, n=2)(images, CLASSES)
    assert ExplainedModel(model).record(images).linear is not None
    monkeypatch.setattr(Activations, "_linear_in_average", lambda *_, **__: None)
    expected = create_explainer(names, model, signed=True, n=2)(images, CLASSES)
    for name in names:
        assert relative_error(found[name], expected[name]) < 1e-5, name


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        ("convnext_atto", None),  # a norm stands between pool and linear layer
        ("cape_resnet18", None),
        ("resnet18", "layer3"),
        ("resnet18", "layer4.0"),  # as many channels as the last layer, and not the last
        ("levit_128s", None),  # a batch norm after the pool
    ],
)
def test_no_closed_form_where_the_logit_is_not_linear_in_the_average(network, layer):
    model = randomise(timm.create_model(network, num_classes=5)).eval()
    size = 224 if network == "levit_128s" else 64
    activations = ExplainedModel(model, layer).record(torch.randn(2, 3, size, size)).for_classes(CLASSES)
    assert activations.linear is None
    if network == "cape_resnet18":
        by_cam = cams.combine(model.head.weight.detach()[CLASSES], activations.features)
        assert relative_error(cams.grad_cam(activations).relu(), by_cam.relu()) > 0.05


@pytest.mark.parametrize("layer", [None, "layer3"])
def test_cam_needs_a_linear_classifier(networks, layer):
    model, images = networks["vgg11_bn" if layer is None else "resnet18"]
    with pytest.raises(ValueError, match=r"^cam needs logits that are linear in the average of layer '.*', and they"):
        create_explainer("cam", model, layer)(images, CLASSES)


@pytest.mark.parametrize("network", ["softcam_resnet18", "cape_resnet18", "softcam_convnext_atto", "cape_test_vit"])
def test_cam_of_our_models_is_the_map_they_draw(network):
    model = randomise(timm.create_model(network, num_classes=5)).eval()
    images = torch.randn(2, 3, *model.input_size[1:]) if "vit" in network else torch.randn(2, 3, 64, 64)
    found = create_explainer("cam", model)(images, CLASSES)
    assert relative_error(found, model.explain(images, CLASSES, kind="cam").maps) < 1e-5


def test_methods_on_cape_differentiate_its_logits():
    model = randomise(timm.create_model("cape_test_resnet", num_classes=5)).eval()
    images = torch.randn(2, 3, 96, 96)
    F_ = model.forward_features(images).detach().requires_grad_()
    chosen = model.head(F_).gather(1, CLASSES)
    for column in range(2):
        (g,) = torch.autograd.grad(chosen[:, column].sum(), F_, retain_graph=True)
        expected = (g.mean(dim=(2, 3), keepdim=True) * F_.detach()).sum(dim=1)
        found = create_explainer("grad-cam", model, signed=True)(images, CLASSES)[:, column]
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("scale", [1e-14, 1e10])
def test_vanishing_and_exploding_gradients_leave_grad_cam_pp_finite(scale):
    model = randomise(timm.create_model("test_resnet", num_classes=5)).eval()
    activations = ExplainedModel(model, "layer3").record(torch.randn(2, 3, 96, 96)).for_classes(CLASSES)
    activations.__dict__["gradient"] = activations.gradient * scale
    found = cams.grad_cam_pp(activations)
    A, g = activations.features[0].double(), activations.gradient[0, 0].double()
    assert relative_error(found[0, 0].double(), slow_plus_plus(A, g, g**2, g**3)) < 1e-3


def test_softcam_gives_the_maps_of_the_vanilla_model(networks):
    model, images = networks["resnet18"]
    softcam = softcam_hub.convert(model)
    for name in ("cam", "fd-cam", "lift-cam"):
        assert (
            relative_error(create_explainer(name, softcam)(images, 3), create_explainer(name, model)(images, 3)) < 1e-5
        )
