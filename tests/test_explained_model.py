"""The layer that a model is explained at: libraries of models, layouts of features, and layers that are refused."""

import pytest
import timm
import torch
import transformers
from conftest import randomise, relative_error
from helpers.explainers import CAMS, CLASSES, EVERYWHERE, network
from torch import nn

from softcam_hub import SoftCAMForImageClassification
from softcam_hub.explainers.create import create_explainer
from softcam_hub.explainers.explained_model import ExplainedModel
from softcam_hub.explainers.layouts import Hints, find_layout

HF = {
    "resnet": lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_type="basic", num_labels=5
        )
    ),
    "swin": lambda: transformers.SwinForImageClassification(
        transformers.SwinConfig(
            image_size=96, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[1, 2], window_size=3, num_labels=5
        )
    ),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=96,
            patch_size=16,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            num_labels=5,
        )
    ),
    "convnext": lambda: transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], num_labels=5)
    ),
    "siglip": lambda: transformers.SiglipForImageClassification(
        transformers.SiglipConfig(
            vision_config={
                "image_size": 96,
                "patch_size": 16,
                "hidden_size": 36,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
            },
            num_labels=5,
        )
    ),
    "dinov2": lambda: transformers.Dinov2WithRegistersForImageClassification(
        transformers.Dinov2WithRegistersConfig(
            image_size=98, patch_size=14, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, num_labels=5
        )
    ),
}


LAST = {
    "resnet": ("resnet.encoder.stages.3", lambda raw: raw, (3, 3)),
    "swin": ("swin.layernorm", lambda raw: raw.transpose(1, 2).unflatten(2, (12, 12)), (12, 12)),
    "vit": (None, lambda raw: raw[:, 1:].transpose(1, 2).unflatten(2, (6, 6)), (6, 6)),
    "convnext": (None, lambda raw: raw, (3, 3)),
    "siglip": ("vision_model.post_layernorm", lambda raw: raw.transpose(1, 2).unflatten(2, (6, 6)), (6, 6)),
    "dinov2": (None, lambda raw: raw, (7, 7)),
}


@pytest.mark.parametrize("name", HF)
def test_transformers_models(name):
    model, images = randomise(HF[name]()).eval(), torch.randn(2, 3, 96, 96)
    images = torch.randn(2, 3, 98, 98) if name == "dinov2" else images
    maps = create_explainer(EVERYWHERE, model, n=2, signed=True)(images, CLASSES)
    assert {one.shape[2:] for one in maps.values()} == {LAST[name][2]}
    assert all(one.any() for one in maps.values())
    explained = ExplainedModel(model)
    activations = explained.record(images).for_classes(CLASSES)
    assert (activations.linear is not None) == (name in ("resnet", "swin", "siglip"))
    expected_layer, to_maps, _ = LAST[name]
    if expected_layer:
        assert explained.layer_name == expected_layer
    if name == "dinov2":
        return
    kept = []
    handle = explained.layer.register_forward_hook(lambda _, __, output: kept.append(output))
    chosen = model(images).logits.gather(1, CLASSES)
    handle.remove()
    g = to_maps(torch.autograd.grad(chosen[:, 1].sum(), kept[0])[0])
    expected = (g.mean(dim=(2, 3), keepdim=True) * to_maps(kept[0])).sum(dim=1)
    assert relative_error(maps["grad-cam"][:, 1], expected.detach()) < 1e-5


def test_transformers_wrapper_of_timm_is_the_timm_model():
    config = transformers.TimmWrapperConfig(architecture="test_resnet", num_labels=5)
    model, images = randomise(transformers.TimmWrapperForImageClassification(config)).eval(), torch.randn(2, 3, 96, 96)
    for layer in (None, "layer3"):
        expected = create_explainer("grad-cam", model.timm_model, layer)(images, CLASSES)
        assert torch.equal(
            create_explainer("grad-cam", model, layer and f"timm_model.{layer}")(images, CLASSES), expected
        )


def test_our_hugging_face_model_is_the_timm_model():
    model, images = network("softcam_test_resnet")
    ours = SoftCAMForImageClassification.from_timm(model).eval()
    names = [*CAMS, "softcam"]
    expected, found = (create_explainer(names, one, n=2)(images, CLASSES) for one in (model, ours))
    for name in names:
        assert torch.allclose(found[name], expected[name], atol=1e-6), name


def test_any_module_can_be_explained():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    images = torch.randn(2, 3, 20, 12)
    maps = create_explainer(CAMS, model, n=2)(images, CLASSES)
    assert {one.shape for one in maps.values()} == {(2, 2, 20, 12)}
    by_hand = torch.einsum("bck,bkhw->bchw", model[4].weight[CLASSES], model[1](model[0](images))).relu()
    assert relative_error(maps["cam"], by_hand.detach()) < 1e-5
    assert torch.equal(create_explainer("cam", model, model[1])(images, CLASSES), maps["cam"])


def test_images_that_are_not_square():
    model, _ = network()
    for layer, grid in ((None, (5, 3)), ("layer2", (20, 12))):
        assert create_explainer("grad-cam", model, layer)(torch.randn(1, 3, 160, 96), 0).shape[2:] == grid


def layout(shape, image=(224, 224), **hints):
    found = find_layout(torch.zeros(shape), image, Hints(**hints))
    return found.name, found.prefix_tokens, found.grid


def test_layouts():
    assert layout((2, 512, 7, 7))[0] == "NCHW"
    assert layout((2, 7, 7, 512))[0] == "NHWC"
    assert layout((2, 7, 5, 512), (210, 150))[0] == "NHWC"
    assert layout((2, 512, 8, 5), (230, 150))[0] == "NCHW"
    assert layout((2, 7, 7, 7), expected_layout="NHWC")[0] == "NHWC"
    assert layout((2, 197, 768)) == ("NLC", 1, (14, 14))
    assert layout((2, 261, 384), layout="NLC") == ("NLC", 5, (16, 16))
    assert layout((2, 49, 64), expected_prefix=0) == ("NLC", 0, (7, 7))
    assert layout((2, 1 + 12 * 8, 64), (192, 128)) == ("NLC", 1, (12, 8))
    assert layout((2, 53, 60), prefix_tokens=4) == ("NLC", 4, (7, 7))


@pytest.mark.parametrize(
    ("shape", "hints", "expected"),
    [
        ((2, 7, 7, 7), {}, "can be read as NCHW and as NHWC: pass layout='NCHW' or layout='NHWC'"),
        ((2, 7, 6, 512), {}, "in the shape of the image neither as NCHW nor NHWC: pass layout="),
        (
            (2, 61, 768),
            {},
            r"61 tokens fill a grid .* if no number up to 8 of them are class tokens: pass prefix_tokens",
        ),
        ((2, 49, 64), {}, r"\(2, 49, 64\) can be read as tokens \(B, L, K\) and as \(B, K, L\): pass layout='NLC'"),
        ((2, 512), {}, r"shape \(2, 512\) has no locations: expected \(B, K, H, W\)"),
        ((2, 512, 7, 7), {"layout": "NLC"}, r"layout='NLC' does not fit shape \(2, 512, 7, 7\)"),
        ((2, 512, 7, 7), {"layout": "HWC"}, "unknown layout 'HWC': expected one of NCHW, NHWC, NLC"),
        ((2, 3, 8), {"prefix_tokens": 3}, "prefix_tokens=3 leaves 0 of 3 tokens, which fill no grid in the shape of"),
        ((2, 197, 8), {"prefix_tokens": 0}, "prefix_tokens=0 leaves 197 of 197 tokens, which fill no grid"),
        ((2, 197, 8), {"prefix_tokens": 5}, "leaves 192 of 197 tokens, which fill no grid in the shape of the 224x224"),
        ((2, 195, 8), {"prefix_tokens": -1}, "prefix_tokens=-1 leaves 196 of 195 tokens"),
    ],
)
def test_layouts_that_cannot_be_read(shape, hints, expected):
    with pytest.raises(ValueError, match=expected):
        layout(shape, **hints)


def test_swin_is_read_channels_last_and_a_hint_overrules():
    model, images = network(
        "swinv2_tiny_window8_256", 64, img_size=64, embed_dim=24, depths=(1, 1, 1, 1), window_size=2
    )
    assert ExplainedModel(model).record(images).features.shape == (2, 192, 2, 2)
    assert ExplainedModel(model, "layers.1").record(images).features.shape == (2, 48, 8, 8)
    assert ExplainedModel(model, "layers.1", layout="NCHW").record(images).features.shape == (2, 8, 8, 48)


class Tokens(nn.Module):
    """timm's two halves on 36 tokens of 16 channels, where 16 could be a grid too."""

    def __init__(self, kept=36, pool=torch.mean):
        super().__init__()
        self.conv, self.head, self.kept, self.pool = nn.Conv2d(3, 16, 16, 16), nn.Linear(16, 5), kept, pool

    def forward_features(self, x):
        return self.conv(x).flatten(2).transpose(1, 2)[:, : self.kept]

    def forward_head(self, x):
        return self.pool(self.head(x), dim=1)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def test_tokens_of_timm_are_tokens_and_may_be_classified_one_by_one():
    images = torch.randn(2, 3, 96, 96)
    model = Tokens()
    by_hand = torch.einsum("bck,bkhw->bchw", model.head.weight[CLASSES], model.conv(images)).relu()
    assert relative_error(create_explainer("cam", model)(images, CLASSES), by_hand.detach()) < 1e-5
    model = Tokens(pool=torch.amax)  # as volo's auxiliary head: not linear in the average
    assert create_explainer("grad-cam", model)(images, CLASSES).shape == (2, 2, 6, 6)
    with pytest.raises(ValueError, match="^cam needs logits that are linear"):
        create_explainer("cam", model)(images, CLASSES)


def test_class_tokens_for_features_ask_for_a_layer():
    with pytest.raises(ValueError, match=r"^layer 'forward_features': its 1 tokens can only be class tokens.*earlier"):
        create_explainer("grad-cam", Tokens(kept=1))(torch.randn(2, 3, 96, 96), 0)


class Wrapped(nn.Module):
    """A timm network as a module of which nothing is known."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("name", ["test_resnet", "convnext_atto"])
def test_images_too_small_for_the_last_features_are_refused(name):
    model = Wrapped(network(name)[0])
    explainer = create_explainer("grad-cam", model)
    with pytest.raises(
        ValueError, match=r"^images of 32x32 pixels are too small: .*or pass layer=\.\.\., such as 'inner"
    ):
        explainer(torch.randn(1, 3, 32, 32), 0)
    assert explainer(torch.randn(1, 3, 96, 96), 0).shape[2:] == (3, 3)  # the refusal settled nothing
    assert create_explainer("grad-cam", model, "inner.layer3" if name == "test_resnet" else "inner.stages.2")(
        torch.randn(1, 3, 32, 32), 0
    ).shape[2:] == (2, 2)


def test_small_features_of_a_network_of_one_size_are_explained():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 5)
    )
    assert create_explainer("grad-cam", model)(torch.randn(2, 3, 32, 32), 0).shape[2:] == (2, 2)


def test_class_tokens_alone_have_no_map():
    model, images = network("test_vit", 160)
    with pytest.raises(ValueError, match="^the logits read class tokens only at layer 'blocks.5'"):
        create_explainer("grad-cam", model, "blocks.5")(images, 0)
    explained = ExplainedModel(model)
    explained.record(images)
    assert explained.layer_name == "blocks.5.norm1"
    pooled = ExplainedModel(timm.create_model("test_vit", num_classes=5, global_pool="avg").eval())
    pooled.record(images)
    assert pooled.layer_name == "forward_features"


@pytest.mark.parametrize(
    ("layer", "error", "expected"),
    [
        ("layer9", ValueError, "^ResNet has no layer 'layer9': expected a dotted path below conv1"),
        (nn.Identity(), ValueError, "^layer is no module of this model: pass its dotted path"),
        ("global_pool", ValueError, r"^layer 'global_pool': shape \(2, 96\) has no locations"),
    ],
)
def test_layers_that_cannot_be_explained(layer, error, expected):
    model, images = network()
    with pytest.raises(error, match=expected):
        create_explainer("grad-cam", model, layer)(images, 0)


class Odd(nn.Module):
    """A network with layers that cannot be explained."""

    def __init__(self):
        super().__init__()
        self.conv, self.unused, self.aside = (nn.Conv2d(3, 6, 1) for _ in range(3))
        self.twice, self.fc, self.listing = nn.Conv2d(6, 6, 1), nn.Linear(6, 5), nn.Module()
        self.listing.forward = lambda x: {"x": x}

    def forward(self, x):
        self.aside(x)
        return self.fc(self.listing(self.twice(self.twice(self.conv(x))))["x"].mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("layer", "error", "expected"),
    [
        ("twice", ValueError, "^layer 'twice' ran 2 times in one forward pass: choose a layer that runs once$"),
        ("unused", ValueError, "^layer 'unused' ran 0 times"),
        ("aside", ValueError, "^the logits do not depend on layer 'aside': name another layer$"),
        ("listing", TypeError, "^layer 'listing' gives no tensor but dict: choose another layer$"),
    ],
)
def test_layers_that_run_oddly(layer, error, expected):
    with pytest.raises(error, match=expected):
        create_explainer("grad-cam", Odd(), layer)(torch.randn(2, 3, 8, 8), 0)


def test_models_without_spatial_features():
    images = torch.randn(1, 3, 240, 240)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 240 * 240, 5))
    with pytest.raises(ValueError, match="^Sequential has no spatial features to explain: pass layer="):
        create_explainer("grad-cam", flat)(images, 0)
    crossvit = timm.create_model("crossvit_tiny_240", num_classes=5).eval()
    with pytest.raises(ValueError, match="^forward_features gives a list, which has no spatial features: pass layer="):
        create_explainer("grad-cam", crossvit)(images, 0)
    with pytest.raises(ValueError, match=r"^expected a classifier that gives logits \(B, C\), got"):
        create_explainer("grad-cam", nn.Sequential(nn.Conv2d(3, 5, 3)), "0")(images, 0)
    with pytest.raises(TypeError, match="^expected a model as a torch.nn.Module, got str$"):
        create_explainer("grad-cam", "resnet18")
