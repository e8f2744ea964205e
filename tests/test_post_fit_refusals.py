"""Models, teachers, images and settings that post-fitting refuses, and that it leaves a model as it was then."""

import pytest
import timm
import torch
from helpers.post_fit import FAST, cape, differences, noise, states, vanilla_model

import softcam_hub
from softcam_hub import (
    EvidenceHead,
    MapKind,
    post_fit,
)
from softcam_hub.models.heads import HEADS
from softcam_hub.training import NotFinite

pytestmark = pytest.mark.filterwarnings("ignore::softcam_hub.models.weights.OffTheShelfWarning")


def changed(vanilla):
    vanilla.layer1[0].conv1.weight.data[0, 0] += 0.1
    return vanilla


def broken(model, name):
    dict(model.named_parameters())[name].data.view(-1)[0] = torch.nan
    return model


MODELS = {
    "vanilla": (vanilla_model, TypeError, r"takes a CAPE model, got ResNet: .*convert\(model, 'cape'\)"),
    "wrapped": (lambda: torch.nn.DataParallel(cape()), TypeError, "got DataParallel.*out of its wrapper"),
    "softcam": (
        lambda: softcam_hub.convert(vanilla_model()),
        ValueError,
        "fits a head to a vanilla classifier, as CAPE learns from one, and SoftCAM gives its logits anyway",
    ),
    "naive": (
        lambda: timm.create_model("cape_test_resnet", num_classes=3, naive=True),
        ValueError,
        "naive CAPE weighs all locations alike, and is not fitted: make cape_test_resnet without naive=True",
    ),
    "no classes": (lambda: timm.create_model("cape_test_resnet", num_classes=0), ValueError, "num_classes=0"),
    "class token": (
        lambda: timm.create_model("cape_test_vit", num_classes=3),
        ValueError,
        "cape_test_vit has no vanilla classifier that can be applied at each location",
    ),
    "fresh head": (
        lambda: timm.create_model("cape_test_resnet", num_classes=3),
        ValueError,
        r"the head of this cape_test_resnet is fresh.*convert\(vanilla, 'cape'\)",
    ),
    "broken head": (lambda: broken(cape(), "head.weight"), ValueError, "NaN or infinite weights"),
    "broken backbone": (
        lambda: broken(cape(), "backbone.layer4.0.conv1.weight"),
        ValueError,
        "the features of image 0 are NaN or infinite: check the weights",
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_that_cannot_be_fitted(kind):
    make, error, message = MODELS[kind]
    with pytest.raises(error, match=message):
        post_fit(make(), noise())


def test_a_head_of_another_package_cannot_be_fitted(monkeypatch):
    class MaximumHead(EvidenceHead):
        family = "maximum"
        title = "Maximum"
        map_kinds = (MapKind("maximum"),)

        def compose(self, evidence):
            return evidence.amax(dim=(2, 3))

    monkeypatch.setitem(HEADS, "maximum", MaximumHead)
    model = softcam_hub.convert(vanilla_model(), "maximum")
    with pytest.raises(ValueError, match="and Maximum has no such loss: train it with labels"):
        post_fit(model, noise())


@pytest.mark.parametrize(
    ("teacher", "error", "message"),
    [
        (lambda: cape(), TypeError, "the teacher is a vanilla classifier, got cape_test_resnet"),
        (
            lambda: changed(vanilla_model()),
            ValueError,
            r"another backbone than the model: layer1.0.conv1.weight differs",
        ),
        (lambda: vanilla_model("test_convnext"), ValueError, "a test_convnext, and the backbone .* a test_resnet"),
        (lambda: timm.create_model("test_resnet", num_classes=5), ValueError, "has 5 classes, and the model 3"),
        (lambda: vanilla_model(in_chans=1), ValueError, "conv1.0.weight differs"),
        (lambda: "no/such/folder", FileNotFoundError, "there is no model 'no/such/folder'"),
        (lambda: 3, TypeError, "expected a model, its folder, its timm name or its Hub id, got int"),
    ],
)
def test_teachers_that_do_not_fit(teacher, error, message):
    with pytest.raises(error, match=message):
        post_fit(cape(), noise(), teacher())


def test_a_teacher_of_several_labels():
    vanilla = vanilla_model()
    vanilla.multi_label = True
    with pytest.raises(ValueError, match="has several labels per image, and cape_test_resnet one"):
        post_fit(cape(), noise(), vanilla)
    with pytest.raises(ValueError, match="CAPE's class probabilities sum to one"):
        softcam_hub.convert(vanilla, "cape")


IMAGES = {
    "none": ([], ValueError, "there is no image to compute features of"),
    "empty tensor": (noise(0), ValueError, "there is no image to compute features of"),
    "two sizes": ([noise(2), noise(2, 96)], ValueError, "images must have one size, got 64x64 and 96x96"),
    "not finite": (noise() / 0, ValueError, "images with NaN or infinite values"),
    "one channel": (noise()[:, :1], ValueError, "expected images with 3 channels, got 1"),
    "labels alone": ([torch.zeros(4, dtype=torch.int64)], ValueError, "expected images of shape"),
    "other keys": ([{"img": noise()}], ValueError, "'pixel_values', got the keys img"),
    "number": (3, TypeError, "a loader, data set, folder or list of them, got int"),
    "missing file": (["missing.png"], ValueError, "missing.png cannot be read"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_that_cannot_be_used(kind):
    images, error, message = IMAGES[kind]
    model = cape()
    before = states(model)
    with pytest.raises(error, match=message):
        post_fit(model, images, **FAST)
    assert not differences(model, before)


def test_a_folder_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no image in folder"):
        post_fit(cape(), tmp_path)


def test_images_of_a_size_that_the_architecture_does_not_take():
    small = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "img_size": 64, "window_size": 4}
    model = cape("swinv2_tiny_window8_256", **small)
    with pytest.raises(ValueError, match="cape_swinv2_tiny_window8_256 takes no images of 96x96: Input height"):
        post_fit(model, noise(side=96))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": -1.0}, "lr"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"hold_out": 1.0}, "hold_out is a share of the images"),
        ({"hold_out": -0.1}, "hold_out is a share of the images"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_settings_are_checked_before_the_images_are_read(options, message):
    def images():
        pytest.fail("images were read")
        yield

    with pytest.raises(ValueError, match=message):
        post_fit(cape(), images(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
    ],
)
def test_settings_of_another_kind_are_refused_before_the_images_are_read(options, message):
    with pytest.raises(TypeError, match=message):
        post_fit(cape(), iter([]), **options)


def test_a_rate_at_which_training_fails_leaves_the_model_as_it_was(tmp_path):
    model = cape().train()
    before = states(model)
    with pytest.raises(NotFinite, match=r"the loss is (nan|inf) at update \d+ \(epoch \d+\): lower lr"):
        post_fit(model, noise(), lr=1e38, cache_dir=tmp_path)
    assert not differences(model, before)
    assert model.training
    assert all(module.training for module in model.modules())
    assert not list(tmp_path.iterdir()), "the features are deleted"


@pytest.mark.parametrize("kind", ["fresh", "trained"])
def test_a_head_that_is_no_vanilla_classifier_is_no_teacher(kind):
    source = {
        "fresh": lambda: timm.create_model("cape_test_resnet", num_classes=5),
        "trained": lambda: timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True),
    }[kind]()
    with pytest.raises(ValueError, match="mode 'post-fit' fits CAPE to a trained classifier, but cape_test_resnet has"):
        softcam_hub.CAPEForImageClassification.from_timm(source, mode="post-fit")
    model = softcam_hub.CAPEForImageClassification.from_timm(cape(), mode="post-fit")
    assert torch.equal(model.teacher.weight, model.head.weight), "a converted classifier is one"
