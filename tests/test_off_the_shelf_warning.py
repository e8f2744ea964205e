"""CAPE with the weights of a vanilla classifier warns until it is fitted, and other models do not."""

import warnings

import pytest
import timm
from helpers.post_fit import FAST, cape, noise, vanilla_model
from helpers.training import CLASSES, train
from safetensors.torch import save_file

import softcam_hub
from softcam_hub import (
    CAPE_LESIONS,
    CAPEForImageClassification,
    post_fit,
)
from softcam_hub.loading import load_classifier
from softcam_hub.models.weights import OffTheShelfWarning

pytestmark = pytest.mark.filterwarnings("ignore::softcam_hub.models.weights.OffTheShelfWarning")


def given(make):
    """The warnings about a head off the shelf that a call gives."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        make()
    return [str(one.message) for one in seen if issubclass(one.category, OffTheShelfWarning)]


def pretrained(architecture, folder, **options):
    """Make a model with weights that timm provides: those of a file."""
    file = folder / "vanilla.safetensors"
    save_file(vanilla_model().state_dict(), file)
    overlay = {"file": str(file), "num_classes": 3}
    return timm.create_model(
        architecture, pretrained=True, pretrained_cfg_overlay=overlay, **{"num_classes": 3, **options}
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: softcam_hub.convert(vanilla_model(), "cape"),
        lambda folder: pretrained("cape_test_resnet", folder),
        lambda folder: CAPEForImageClassification.from_timm(vanilla_model()),
    ],
)
def test_cape_off_the_shelf_gives_a_warning_that_names_post_fit(make, tmp_path):
    messages = given(lambda: make(tmp_path))
    assert len(messages) == 1
    assert messages[0].startswith("cape_test_resnet holds the weights of the vanilla classifier as they are")
    assert "softcam_hub.post_fit(model, images)" in messages[0]


def saved(model, folder):
    CAPEForImageClassification.from_timm(model).save_pretrained(folder)
    return f"local-dir:{folder}"


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: softcam_hub.convert(vanilla_model()),
        lambda folder: pretrained("softcam_test_resnet", folder),
        lambda folder: pretrained("cape_test_resnet", folder, num_classes=5),
        lambda folder: timm.create_model("cape_test_resnet"),
        lambda folder: timm.create_model(f"local-dir:{CAPE_LESIONS}", pretrained=True),
        lambda folder: CAPEForImageClassification.from_timm(vanilla_model(), mode="post-fit"),
        lambda folder: CAPEForImageClassification.from_timm(vanilla_model(), mode="from-scratch"),
    ],
)
def test_other_models_give_no_such_warning(make, tmp_path):
    assert not given(lambda: make(tmp_path))


def test_a_folder_gives_the_warning_until_its_model_is_fitted(tmp_path):
    model = cape()
    name = saved(model, tmp_path / "before")
    assert len(given(lambda: timm.create_model(name, pretrained=True))) == 1
    assert not given(lambda: post_fit(model, noise(), vanilla_model(), **FAST))
    assert not given(lambda: timm.create_model(saved(model, tmp_path / "fitted"), pretrained=True))


@pytest.mark.parametrize("mode", ["direct", "post-fit"])
def test_a_run_that_trains_the_head_gives_no_warning(mode, vanilla_run, tmp_path):
    options = {"epochs": 1, "init": str(vanilla_run[0] / "model"), "mode": mode, "augment": False}
    assert not given(lambda: train(tmp_path, **options))
    assert load_classifier(tmp_path / "model").labels == CLASSES
