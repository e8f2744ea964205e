"""Every CAM against a slow transcription of its formula, and against independent libraries where those are sound."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import captum.attr
import pytest
import pytorch_grad_cam
import timm
import torch
import torch.nn.functional as F
import torchcam.methods
from conftest import randomise, relative_error
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm.layers import ClassifierHead
from timm.models.vgg import ConvMlp

import softcam_hub
from softcam_hub.explainers import cams
from softcam_hub.explainers.explained_model import Activations, ExplainedModel
from softcam_hub.explainers.methods import create_explainer

CLASSES = torch.tensor([[0, 3], [4, 1]])
SWIN = {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8), "window_size": 2}


def maps_of(raw):
    return raw


def channels_last(raw):
    return raw.permute(0, 3, 1, 2)


def tokens(raw):
    return raw[:, 1:].transpose(1, 2).unflatten(2, (10, 10))


NETWORKS = {
    "resnet18": ({}, 128),
    "vgg11_bn": ({}, 64),
    "swinv2_tiny_window8_256": (SWIN, 64),
    "test_vit": ({}, 160),
}
PLACES = [
    ("resnet18", None, "layer4", maps_of),
    ("resnet18", "layer3", "layer3", maps_of),
    ("resnet18", "layer4.0.bn2", "layer4.0.bn2", maps_of),  # beside a shortcut, and before a ReLU that writes in place
    ("vgg11_bn", None, "features", maps_of),
    ("vgg11_bn", "features.21", "features.21", maps_of),
    ("swinv2_tiny_window8_256", None, "norm", channels_last),
    ("swinv2_tiny_window8_256", "layers.2", "layers.2", channels_last),
    ("test_vit", None, "blocks.5.norm1", tokens),
    ("test_vit", "blocks.2", "blocks.2", tokens),
]
"""(network, layer as asked for, the module that this is, how its output lies)."""


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(1)
    made = {}
    for name, (options, size) in NETWORKS.items():
        model = timm.create_model(name, num_classes=5, **options)
        if name == "vgg11_bn":  # the same head, 32 times narrower: its 120 million weights are slow to run
            model.pre_logits, model.head = ConvMlp(512, 128, 7), ClassifierHead(128, 5)
        randomise(model).double().eval()  # so that only a wrong formula shows
        made[name] = model, torch.randn(2, 3, size, size, dtype=torch.float64)
        teach(*made[name])
    return made


def small_resnet():
    return randomise(timm.create_model("test_resnet", num_classes=5)).double().eval()


@torch.no_grad()
def teach(model, images):
    """Weights that tell locations apart, as those of a trained classifier do: large, and blind to what all share."""
    fc = dict(model.named_modules())[model.pretrained_cfg["classifier"]]
    read = []
    handle = fc.register_forward_hook(lambda _, inputs, __: read.append(inputs[0]))
    model(images)
    handle.remove()
    shared = F.normalize(read[0].mean(dim=0), dim=0)
    fc.weight.mul_(10)
    fc.weight.sub_((fc.weight @ shared)[:, None] * shared)


def place_id(place):
    return f"{place[0]}-{place[1] or 'last'}"


@pytest.fixture(params=PLACES, ids=place_id)
def place(request, networks):
    name, layer, module, to_maps = request.param
    model, images = networks[name]
    return model, images, layer, module, to_maps


def activations_and_gradients(model, images, module, to_maps, classes):
    """A (B, K, H, W) and g (B, k, K, H, W), one class at a time and with the whole network in the graph."""
    kept = []

    def keep(_, __, output):
        kept.append(output)
        return output.clone()  # the next layer may write in place

    handle = model.get_submodule(module).register_forward_hook(keep)
    columns = []
    for column in classes.T:
        kept.clear()
        logits = model(images)
        columns.append(torch.autograd.grad(logits.gather(1, column[:, None]).sum(), kept[0])[0])
    handle.remove()
    return to_maps(kept[0]).detach(), torch.stack([to_maps(column) for column in columns], dim=1)


def replaced(model, image, module, raw):
    """Logits (C,) of one image if the module had given `raw`."""
    handle = model.get_submodule(module).register_forward_hook(lambda *_: raw)
    with torch.no_grad():
        logits = model(image[None])[0]
    handle.remove()
    return logits


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


def slow_fd_cam(model, image, module, to_maps, from_maps, A, g, c):
    """FD-CAM of one image and class, one channel after the other, with the quantile written out."""
    flat = A.flatten(1)
    cosine = F.cosine_similarity(flat[:, None], flat[None], dim=2)
    full, score = None, []
    for k in range(len(A)):
        similar = cosine[k] > torch.quantile(cosine[k], 0.95)
        keep = similar[:, None, None].to(A)
        full = replaced(model, image, module, from_maps(A))[c] if full is None else full
        alone = replaced(model, image, module, from_maps(A * keep))[c]
        without = replaced(model, image, module, from_maps(A * (1 - keep)))[c]
        score.append(alone + full - without)
    score, slope = torch.stack(score), g.mean(dim=(1, 2))
    score, slope = ((v - v.min()) / (v.max() - v.min()) for v in (score, slope))
    return ((score.exp() * slope - 0.5)[:, None, None] * A).sum(dim=0)


@pytest.mark.parametrize("which", ["test_resnet", "test_resnet-stages", "swinv2-last", "test_vit"])
def test_fd_cam_follows_its_formula(networks, which):
    if which.startswith("test_resnet"):
        model, images = small_resnet(), torch.randn(2, 3, 96, 64).double()
        layer, module = (None, "layer4") if which == "test_resnet" else ("layer3", "layer3")
        to_maps = maps_of
    elif which == "swinv2-last":
        (model, images), (layer, module, to_maps) = networks["swinv2_tiny_window8_256"], (None, "norm", channels_last)
    else:
        (model, images), (layer, module, to_maps) = networks["test_vit"], (None, "blocks.5.norm1", tokens)
    classes = CLASSES[:, :1]
    A, g = activations_and_gradients(model, images, module, to_maps, classes)
    expected = []
    for i, image in enumerate(images):
        raw = []
        handle = model.get_submodule(module).register_forward_hook(lambda *all, raw=raw: raw.append(all[2].detach()))
        model(image[None])
        handle.remove()

        def from_maps(maps, raw=raw[0]):
            if to_maps is channels_last:
                return maps.permute(1, 2, 0)[None]
            return torch.cat([raw[:, :1], maps.flatten(1).T[None]], dim=1) if to_maps is tokens else maps[None]

        expected.append(slow_fd_cam(model, image, module, to_maps, from_maps, A[i], g[i, 0], classes[i, 0]))
    found = create_explainer("fd-cam", model, layer, signed=True)(images, classes)
    assert relative_error(found[:, 0], torch.stack(expected)) < 1e-9
    again = create_explainer("fd-cam", model, layer, signed=True, batch=5)(images, classes)
    assert relative_error(again, found) < 1e-9


@pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 22, 40, 41, 61, 100, 257])
def test_similar_channels_are_those_above_the_quantile(count):
    features = torch.randn(count, 4, 4).relu()
    features[:: max(count // 7, 1)] = 0  # dead channels tie
    flat = features.double().flatten(1)
    cosine = F.cosine_similarity(flat[:, None], flat[None], dim=2)
    expected = cosine > torch.quantile(cosine, 0.95, dim=1, keepdim=True)
    directions = cams._directions(features.double())
    found = torch.cat([cams._similar_channels(directions, slice(start, start + 9)) for start in range(0, count, 9)])
    assert torch.equal(found.bool(), expected)


def test_fd_cam_where_something_beside_the_layer_keeps_the_batch_size():
    class Shortcut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.side = torch.nn.Conv2d(3, 8, 8, 8), torch.nn.Conv2d(3, 8, 8, 8)
            self.fc = torch.nn.Linear(16, 5)

        def forward(self, x):
            return self.fc(torch.cat([self.side(x), self.stem(x)], dim=1).square().mean(dim=(2, 3)))

    model, images = Shortcut().eval(), torch.randn(2, 3, 32, 32)
    A, g = activations_and_gradients(model, images, "stem", maps_of, CLASSES)
    found = create_explainer("fd-cam", model, "stem", signed=True)(images, CLASSES)
    for i in range(2):
        for c in range(2):
            expected = slow_fd_cam(model, images[i], "stem", maps_of, lambda m: m[None], A[i], g[i, c], CLASSES[i, c])
            assert relative_error(found[i, c], expected) < 1e-4


def threads_of_a_new_thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_fd_cam_leaves_the_number_of_threads(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        explainer = create_explainer("fd-cam", small_resnet())
        explainer(torch.randn(1, 3, 64, 64, dtype=torch.float64), 0)
        assert (torch.get_num_threads(), threads_of_a_new_thread()) == (2, 2)
        monkeypatch.setattr(cams, "_mark_similar", None)
        with pytest.raises(TypeError):
            explainer(torch.randn(1, 3, 64, 64, dtype=torch.float64), 0)
        assert (torch.get_num_threads(), threads_of_a_new_thread()) == (2, 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layer", [None, "layer3"])
def test_fd_cam_under_autocast(layer):
    model, images = small_resnet().float(), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = create_explainer("fd-cam", model, layer)(images, CLASSES)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()


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
@pytest.mark.parametrize("name", ["grad-cam", "layer-cam", "score-cam"])
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


def test_softcam_twin_gives_the_maps_of_the_vanilla_model(networks):
    model, images = networks["resnet18"]
    twin = softcam_hub.convert(model)
    for name in ("cam", "fd-cam", "lift-cam"):
        assert relative_error(create_explainer(name, twin)(images, 3), create_explainer(name, model)(images, 3)) < 1e-5
