"""Classifiers that `convert` takes: timm models, alone or in transformers' wrapper; and the way to go for all others."""

import pytest
import timm
import torch
import transformers
from timm.models import save_for_hf
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
)

import softcam_hub
from softcam_hub import CAPEForImageClassification, SoftCAMForImageClassification
from softcam_hub.models.alignment import Alignment

NAMES = {0: "healthy", 1: "drusen", 2: "bleeding"}


def wrapper(**settings):
    settings = {"architecture": "test_resnet", "id2label": NAMES, **settings}
    torch.manual_seed(0)
    return TimmWrapperForImageClassification(TimmWrapperConfig(**settings)).eval()


def images():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_wrapped_timm_model_is_converted_with_its_logits_and_labels(tmp_path):
    wrapper(pretrained_cfg={"mean": [0.1, 0.2, 0.3], "num_classes": 3}).save_pretrained(tmp_path)
    vanilla = TimmWrapperForImageClassification.from_pretrained(tmp_path).eval()

    model = softcam_hub.convert(vanilla)

    assert torch.allclose(model(images()), vanilla(images()).logits, atol=1e-6)
    assert model.labels == tuple(NAMES.values())
    assert model.multi_label is False
    assert list(model.pretrained_cfg["mean"]) == [0.1, 0.2, 0.3]
    assert softcam_hub.convert(vanilla, "cape").family == "cape"


@torch.no_grad()
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: torch.compile(nn.DataParallel(model))])
def test_wrappers_of_torch_are_taken_off(wrap):
    vanilla = timm.create_model("test_resnet", num_classes=3).eval()
    vanilla.alignment = Alignment((8.0, 8.0), (16.0, 16.0), (96, 96))
    model = softcam_hub.convert(wrap(vanilla))
    assert torch.allclose(model(images()), vanilla(images()), atol=1e-6)
    assert model.alignment == vanilla.alignment
    assert not [name for name in model.state_dict() if "_orig_mod" in name or "module." in name]


@torch.no_grad()
@pytest.mark.parametrize("problem_type", [None, "single_label_classification", "multi_label_classification"])
def test_from_timm_keeps_labels_and_kind_of_labels_of_a_wrapped_model(problem_type, tmp_path):
    vanilla = wrapper(problem_type=problem_type)

    model = SoftCAMForImageClassification.from_timm(vanilla).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()

    for one in (model, loaded):
        assert torch.allclose(one(images()).logits, vanilla(images()).logits, atol=1e-6)
        assert one.config.id2label == NAMES
        assert one.multi_label == (problem_type == "multi_label_classification")


def test_classes_without_names_stay_without_names():
    vanilla = wrapper(id2label={0: "LABEL_0", 1: "LABEL_1"})
    assert softcam_hub.convert(vanilla).pretrained_cfg.get("label_names") is None
    assert SoftCAMForImageClassification.from_timm(vanilla).config.num_labels == 2


def test_from_timm_keeps_the_class_names_of_a_timm_model(tmp_path):
    vanilla = timm.create_model("test_resnet", num_classes=3)
    save_for_hf(vanilla, tmp_path, model_config={"label_names": list(NAMES.values())})
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert SoftCAMForImageClassification.from_timm(loaded).config.id2label == NAMES


@torch.no_grad()
def test_a_classifier_that_starts_with_zeros_is_converted():
    vanilla = timm.create_model("test_resnet", num_classes=3).eval()
    vanilla.fc.weight.zero_()
    vanilla.fc.bias.zero_()
    assert not softcam_hub.convert(vanilla)(torch.randn(2, 3, 64, 64)).any()


def test_a_wrapper_without_classes_is_refused():
    features = TimmWrapperModel(TimmWrapperConfig(architecture="test_resnet"))
    with pytest.raises(ValueError, match="num_classes=0: there is no classifier to convert"):
        softcam_hub.convert(features)


OTHERS = {
    "transformers' ViT, by the name on the Hub": (
        lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(name_or_path="google/vit-base-patch16-224", num_labels=2)
        ),
        "vit_base_patch16_224 has as many weights, but another layout or other logits: start from "
        r"softcam_hub.build\('softcam_vit_base_patch16_224', pretrained=True\)",
    ),
    "a ResNet that timm does not have": (
        lambda: transformers.ResNetForImageClassification(
            transformers.ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], embedding_size=8)
        ),
        "timm has architectures of that name, such as resnet18: train one of them, and convert it",
    ),
    "a name": (
        lambda: "resnet18",
        "an architecture of timm computes, got str: make it with timm.create_model\\('resnet18",
    ),
    "a layer": (
        lambda: nn.Linear(2, 2),
        r"got Linear. timm has no architecture of that name: start from one of timm.list_models\('softcam_\*'\)",
    ),
    "a model that explains itself": (
        lambda: softcam_hub.build("cape_test_resnet", num_classes=3),
        "got Classifier: it explains itself already, and to_vanilla",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.slow
def test_other_classifiers_are_refused_with_the_way_to_go(case):
    make, sentence = OTHERS[case]
    with pytest.raises(TypeError, match=sentence):
        softcam_hub.convert(make())


@torch.no_grad()
@pytest.mark.parametrize("family", ["softcam", "cape"])
def test_a_folder_that_timm_saved_opens_in_transformers_by_its_class_or_its_model_type(family, tmp_path):
    # Without a model type, transformers takes such a folder for its own wrapper of a timm model. The wrapper passes
    # num_classes twice, since timm writes it among model_args, and fails on timm's vanilla models as well.
    model = timm.create_model(f"{family}_test_resnet", num_classes=3).eval()
    ours = {"softcam": SoftCAMForImageClassification, "cape": CAPEForImageClassification}[family]
    config = {"label_names": list(NAMES.values())}

    save_for_hf(model, tmp_path / "plain", safe_serialization=True, model_config=dict(config))
    save_for_hf(model, tmp_path / "typed", safe_serialization=True, model_config={**config, "model_type": family})

    for loaded in (
        ours.from_pretrained(tmp_path / "plain"),
        AutoModelForImageClassification.from_pretrained(tmp_path / "typed"),
    ):
        assert type(loaded) is ours
        assert loaded.config.id2label == NAMES
        assert torch.allclose(loaded.eval()(images()).logits, model(images()), atol=1e-6)
