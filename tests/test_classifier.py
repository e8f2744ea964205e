"""The timm model's own behaviour: conversion both ways, `explain`, and what a user reads after a mistake."""

import copy
import re

import pytest
import timm
import torch
from conftest import randomise, relative_error
from torch import nn

import softcam_hub
from softcam_hub.models.backbone import NoEvidenceMap

SMALL = {"num_classes": 5}


def cape(**options):
    return timm.create_model("cape_test_resnet", **{**SMALL, **options})


def softcam(**options):
    return timm.create_model("softcam_test_resnet", **{**SMALL, **options})


def images(batch=2):
    return torch.randn(batch, 3, 64, 64)


@pytest.mark.parametrize(
    "architecture", ["test_resnet", "test_convnext", "test_vit2", "test_mambaout", "levit_128s", "repvit_m1"]
)
def test_convert_and_back(architecture):
    args = {"img_size": 64} if architecture == "test_vit2" else {}
    vanilla = randomise(timm.create_model(architecture, num_classes=5, **args)).eval()
    x = torch.randn(2, 3, 224, 224) if "levit" in architecture else images()
    ours = softcam_hub.convert(vanilla, "softcam")
    assert not ours.training
    assert relative_error(ours(x), vanilla(x)) < 1e-5
    back = softcam_hub.to_vanilla(ours)
    assert type(back) is type(vanilla)
    assert relative_error(back(x), vanilla(x)) < 1e-5
    shelf = softcam_hub.convert(vanilla, "cape")
    assert torch.equal(shelf.head.weight, ours.head.weight)
    assert relative_error(softcam_hub.to_vanilla(shelf)(x), vanilla(x)) < 1e-5


def test_convert_keeps_mode_dtype_and_arguments():
    vanilla = timm.create_model("test_resnet", num_classes=3, in_chans=1, output_stride=8).double().train()
    ours = softcam_hub.convert(vanilla, "cape")
    assert ours.training
    assert ours.head.weight.dtype == torch.float64
    assert ours.forward_features(torch.randn(1, 1, 64, 64).double()).shape[2:] == (8, 8)


def test_convert_refuses_what_it_cannot_convert():
    reasons = {
        "test_vit": "its classifier reads a class token or attention pool, not the patches",
        "vgg11": "its 7x7 fully connected layers cannot be applied per location",
    }
    for architecture, reason in reasons.items():
        vanilla = timm.create_model(architecture, num_classes=2)
        with pytest.raises(ValueError, match=f"^{architecture} cannot be converted with its classifier: {reason}$"):
            softcam_hub.convert(vanilla)
    sentence = (
        r"^convert\(\) takes a model from timm.create_model, .* got Linear. timm has no architecture of that name: "
    )
    with pytest.raises(TypeError, match=sentence):
        softcam_hub.convert(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="^test_resnet has num_classes=0: there is no classifier to convert$"):
        softcam_hub.convert(timm.create_model("test_resnet", num_classes=0))
    with pytest.raises(ValueError, match="^unknown family 'gradcam': expected one of softcam, cape$"):
        softcam_hub.convert(timm.create_model("test_resnet"), "gradcam")


@pytest.mark.parametrize("pool", ["max", "avgmax"])
def test_convert_refuses_another_pool(pool):
    vanilla = timm.create_model("test_resnet", num_classes=3, global_pool=pool)
    with pytest.raises(
        ValueError, match="^this test_resnet does not average its features and multiply once, as timm's"
    ):
        softcam_hub.convert(vanilla)


@pytest.mark.parametrize("architecture", ["levit_128s", "repvit_m1"])
def test_affine_heads_fold_without_loss_in_half_precision(architecture):
    vanilla = randomise(timm.create_model(architecture, num_classes=7)).eval()
    expected = softcam_hub.convert(vanilla).head.weight
    folded = softcam_hub.convert(vanilla.to(torch.bfloat16)).head.weight
    assert relative_error(folded.float(), expected) < 2**-7


def test_to_vanilla_carries_the_preprocessing_back():
    model = timm.create_model("softcam_resnet18.tv_in1k", pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    cfg = softcam_hub.to_vanilla(model).pretrained_cfg
    assert (cfg["tag"], cfg["mean"], cfg["interpolation"]) == ("tv_in1k", (0.1, 0.2, 0.3), "bilinear")
    assert (cfg["first_conv"], cfg["classifier"], cfg["architecture"]) == ("conv1", "fc", "resnet18")


def test_an_encoder_without_classifier_gets_a_fresh_head():
    vanilla = timm.create_model("vit_tiny_patch16_dinov3_qkvb", img_size=64)
    assert vanilla.num_classes == 0
    source = {"state_dict": vanilla.state_dict()}
    with pytest.warns(UserWarning, match="has no pretrained head"):
        ours = timm.create_model(
            "softcam_vit_tiny_patch16_dinov3_qkvb",
            pretrained=True,
            num_classes=5,
            img_size=64,
            pretrained_cfg_overlay=source,
        ).eval()
    assert ours(images()).shape == (2, 5)
    assert torch.equal(ours.backbone.patch_embed.proj.weight, vanilla.patch_embed.proj.weight)


def test_an_empty_state_dict_asks_nobody_for_weights():
    assert cape().load_state_dict({}, strict=False).missing_keys


def test_explain_while_training_sees_todays_weights():
    model = timm.create_model("cape_tiny_vit_5m_224", num_classes=3).train()
    x = torch.randn(1, 3, 224, 224)
    model.explain(x)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attention_biases" in name:
                parameter.normal_(std=3)
    after = model.explain(x)
    assert torch.equal(after.maps, copy.deepcopy(model).eval().explain(x).maps)
    assert model.training


def test_to_vanilla_refuses_what_has_no_counterpart():
    weights = timm.create_model("test_vit", num_classes=2).state_dict()
    vit = timm.create_model("cape_test_vit", num_classes=2)
    with pytest.warns(UserWarning, match="cape_test_vit has no pretrained head"):
        vit.load_state_dict(weights)
    with pytest.raises(
        ValueError, match="^cape_test_vit has no vanilla counterpart: its classifier reads a class token"
    ):
        softcam_hub.to_vanilla(vit)


def test_inexact_models_say_so():
    assert cape().exact
    vgg = timm.create_model("softcam_vgg11", num_classes=2)
    assert not vgg.exact
    assert vgg.forward_features(torch.randn(1, 3, 96, 128)).shape == (1, 4096, 3, 4)
    assert vgg.backbone.pre_logits.fc1.kernel_size == (1, 1)


@pytest.mark.slow
def test_vgg_takes_pretrained_convolutions_and_leaves_its_evidence_layers_fresh():
    vanilla = timm.create_model("vgg11", num_classes=2)
    with pytest.warns(UserWarning, match="softcam_vgg11 has no pretrained head: its evidence layer is random"):
        ours = timm.create_model(
            "softcam_vgg11",
            num_classes=2,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": vanilla.state_dict(), "num_classes": 2},
        )
    assert torch.equal(ours.backbone.features[0].weight, vanilla.features[0].weight)
    assert ours.backbone.pre_logits.fc1.weight.shape == (4096, 512, 1, 1)


def test_naive_variant_weighs_every_location_the_same():
    model, x = cape(naive=True).eval(), images()
    evidence = model.head.evidence(model.forward_features(x))
    assert torch.allclose(model(x).exp(), evidence.softmax(dim=1).mean(dim=(2, 3)), atol=1e-6)
    model.reset_classifier(3)
    assert model.head.naive


def test_explain_defaults_to_the_prediction():
    model, x = cape(), images(3)
    explanation = model.explain(x)
    assert explanation.kind == "cape"
    assert torch.equal(explanation.classes[:, 0], model.eval()(x).argmax(dim=1))


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (3, [[3], [3]]),
        (torch.tensor([4, 0]), [[4], [0]]),
        ([4, 0], [[4], [0]]),
        ([[1, 2, 3]], [[1, 2, 3], [1, 2, 3]]),
        (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    ],
)
@pytest.mark.parametrize("kind", ["cape", "mu-cape", "cam"])
def test_explain_takes_classes_per_image(classes, expected, kind):
    model, x = cape(), images()
    explanation = model.explain(x, classes=classes, kind=kind)
    assert explanation.classes.tolist() == expected
    everything = model.eval().head.maps(model.forward_features(x), kind=kind)
    for image, row in enumerate(expected):
        for rank, index in enumerate(row):
            assert torch.equal(explanation.maps[image, rank], everything[image, index])


def test_explain_evaluates_and_restores_every_mode():
    model = cape().train()
    model.backbone.layer1.eval()
    before = {name: module.training for name, module in model.named_modules()}
    statistics = model.backbone.bn1.running_mean.clone()
    model.explain(images())
    with pytest.raises(ValueError, match="channels"):
        model.explain(torch.randn(2, 4, 64, 64))
    handle = model.backbone.layer4.register_forward_pre_hook(lambda _, inputs: inputs[0][:, :1])
    with pytest.raises(RuntimeError, match="channels"):
        model.explain(images())
    handle.remove()
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(model.backbone.bn1.running_mean, statistics)


def message(error):
    return re.sub(r"\s+", " ", str(error.value))


MISTAKES = {
    "wrong channels": (
        lambda: cape()(torch.randn(2, 1, 64, 64)),
        "expected images with 3 channels, got 1 in shape (2, 1, 64, 64): convert them, or build the model with in_chans=1",
    ),
    "one image without batch": (
        lambda: cape()(torch.randn(3, 64, 64)),
        "expected images of shape (B, 3, H, W), got (3, 64, 64): add the batch dimension with images[None]",
    ),
    "wrong rank": (
        lambda: cape().explain(torch.randn(3, 64)),
        "expected images of shape (B, 3, H, W), got (3, 64)",
    ),
    "bytes": (
        lambda: cape()(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)),
        "expected floating-point images, got torch.uint8: scale to [0, 1] and normalise them first",
    ),
    "no tensor": (
        lambda: cape()([[0.0]]),
        "expected images as a torch.Tensor (B, 3, H, W), got list: convert them with timm.data.create_transform",
    ),
    "class index": (
        lambda: cape().explain(images(), classes=5),
        "class index 5 is out of range: this model has 5 classes, 0 to 4",
    ),
    "negative class": (
        lambda: cape().explain(images(), classes=torch.tensor([1, -1])),
        "class index -1 is out of range: this model has 5 classes, 0 to 4",
    ),
    "class names": (
        lambda: cape().explain(images(), classes=torch.tensor([0.5, 1.0])),
        "classes must be integer class indices, got torch.float32",
    ),
    "class shape": (
        lambda: cape().explain(images(), classes=[1, 2, 3]),
        "classes must be an int, (2,) or (2, k) for 2 images, got shape (3,): to explain several classes of every image "
        "pass [[3, 5]]",
    ),
    "class name": (
        lambda: cape().explain(images(), classes="cat"),
        "unknown class 'cat': the labels of this model are 0, 1, 2, 3, 4",
    ),
    "half a class": (
        lambda: cape().explain(images(), top_k=1.5),
        "top_k must be a whole number from 1 to the number of classes 5, got 1.5",
    ),
    "top_k": (
        lambda: cape().explain(images(), top_k=6),
        "top_k must be a whole number from 1 to the number of classes 5, got 6",
    ),
    "no classes": (
        lambda: cape(num_classes=0).explain(images()),
        "explain() needs classes: this model has num_classes=0; call reset_classifier(n) first",
    ),
    "not finite": (
        lambda: cape().explain(images() / 0),
        "there are images with NaN or infinite values: check the preprocessing",
    ),
    "kind of map": (
        lambda: softcam().explain(images(), kind="cape"),
        "unknown map kind 'cape' for softcam: expected one of softcam, cam",
    ),
    "regions of SoftCAM": (
        lambda: softcam().explain(images()).regions(),
        "regions() adds up probabilities, and only 'cape' maps hold probabilities: this explanation is 'softcam'. Use a "
        "cape_* model with kind='cape', or rank locations with heatmaps()",
    ),
    "other pool": (
        lambda: cape(global_pool="max"),
        "global_pool='max' is not possible: evidence is averaged into logits, expected 'avg'",
    ),
    "naive SoftCAM": (
        lambda: softcam(naive=True),
        "naive is an option of CAPE, and SoftCAM has no such option: leave it out, or build cape_<timm name>",
    ),
    "misspelt": (
        lambda: softcam_hub.build("cape_resnet5O"),
        f"unknown architecture 'cape_resnet5O': timm {timm.__version__} has no 'resnet5O'; did you mean cape_resnet50, "
        "cape_resnet51q, cape_resnet50t?",
    ),
    "no family": (
        lambda: softcam_hub.build("resnet50"),
        "unknown architecture 'resnet50': did you mean softcam_resnet50 or cape_resnet50?",
    ),
    "family alone": (
        lambda: softcam_hub.build("cape", "resnet50"),
        "unknown architecture 'cape': expected cape_<timm name>",
    ),
    "nonsense": (
        lambda: softcam_hub.build("zebra"),
        "unknown architecture 'zebra': expected softcam_<timm name> or cape_<timm name>",
    ),
    "no evidence map": (
        lambda: softcam_hub.build("cape_pit_ti_224"),
        "cape_pit_ti_224 is not possible: pit_ti_224 admits no evidence map, because its features keep no patch tokens, only "
        "class tokens. Use one that timm.list_models('cape_*') lists, such as resnet50, efficientnet_b0, convnext_tiny or "
        "swinv2_tiny_window8_256",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_words(mistake):
    do, expected = MISTAKES[mistake]
    with pytest.raises((ValueError, TypeError)) as error:
        do()
    assert message(error) == expected


def test_refusal_is_a_value_error_of_its_own():
    with pytest.raises(NoEvidenceMap):
        softcam_hub.build("softcam_pit_ti_224")


@torch.no_grad()
def test_what_build_was_given_is_saved(tmp_path):
    model = softcam_hub.build("softcam_test_resnet", num_classes=3, output_stride=8).eval()
    softcam_hub.SoftCAMForImageClassification.from_timm(model).save_pretrained(tmp_path)
    loaded = softcam_hub.SoftCAMForImageClassification.from_pretrained(tmp_path)
    x = torch.randn(2, 3, 64, 64)
    assert loaded(x).maps.shape == (2, 3, 8, 8)
    torch.testing.assert_close(loaded(x).logits, model(x))
