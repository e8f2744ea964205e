"""The Hugging Face models and the timm models read one another's folders."""

import json

import pytest
import timm
import torch
from conftest import randomise
from timm.models import save_for_hf
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

import softcam_hub
from softcam_hub import CAPEConfig, CAPEForImageClassification, SoftCAMConfig, SoftCAMForImageClassification
from softcam_hub.models.saved_format import FORMAT_OF_ONE_SCALE

CLASSES = {"softcam": SoftCAMForImageClassification, "cape": CAPEForImageClassification}
SMALL_SWIN = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "img_size": 64, "window_size": 4}
BACKBONES = {
    "test_resnet": {},
    "test_convnext": {"output_stride": 8},
    "swinv2_tiny_window8_256": SMALL_SWIN,
    "test_vit": {"img_size": 64},
}


@pytest.fixture(params=[(family, backbone) for family in CLASSES for backbone in BACKBONES], ids="-".join)
def timm_model(request):
    family, backbone = request.param
    model = timm.create_model(f"{family}_{backbone}", num_classes=5, **BACKBONES[backbone])
    return randomise(model).eval()


def images():
    return torch.randn(2, 3, 64, 64)


def test_one_folder_for_timm_and_transformers(timm_model, tmp_path):
    x = images()
    save_for_hf(timm_model, tmp_path / "timm", safe_serialization=True)
    ours, report = CLASSES[timm_model.family].from_pretrained(tmp_path / "timm", output_loading_info=True)
    assert not any(report[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.allclose(ours(x).logits, timm_model(x), atol=1e-6)

    ours.save_pretrained(tmp_path / "ours")
    assert {file.suffix for file in (tmp_path / "ours").iterdir()} == {".json", ".safetensors", ".py"}
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(x).logits, ours(x).logits)
    through_timm = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    assert torch.equal(through_timm(x), timm_model(x))
    assert torch.allclose(through_timm.explain(x).maps, again.explain(x).maps, atol=1e-6)

    features_first = AutoModel.from_pretrained(tmp_path / "ours")(x)
    assert torch.allclose(features_first[0], timm_model.forward_features(x), atol=1e-5)
    assert features_first.maps.shape == (2, 5, *features_first[0].shape[2:])


def test_folder_says_what_both_libraries_read(tmp_path):
    config = CAPEConfig(architecture="cape_test_resnet", id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    CAPEForImageClassification(config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "cape"
    assert written["architecture"] == "cape_test_resnet"
    assert written["num_classes"] == 2
    assert written["label_names"] == ["cat", "dog"]
    assert written["model_args"] == {"format": FORMAT_OF_ONE_SCALE}
    assert AutoConfig.from_pretrained(tmp_path).id2label == {0: "cat", 1: "dog"}


def test_a_new_model_keeps_timms_initialisation():
    torch.manual_seed(5)
    ours = SoftCAMForImageClassification(SoftCAMConfig(architecture="softcam_test_convnext", num_labels=3))
    torch.manual_seed(5)
    timm_model = timm.create_model("softcam_test_convnext", num_classes=3)
    assert all(torch.equal(value, timm_model.state_dict()[key]) for key, value in ours.state_dict().items())


def test_outputs(tmp_path):
    model = CAPEForImageClassification(CAPEConfig(architecture="cape_test_resnet", num_labels=3)).eval()
    x, labels = images(), torch.tensor([0, 2])
    output = model(x, labels=labels, output_hidden_states=True)
    assert torch.allclose(output.maps.sum(dim=(2, 3)), output.logits.softmax(dim=1), atol=1e-6)
    assert torch.allclose(output.loss, -output.logits[[0, 1], labels].mean())
    assert len(output.hidden_states) == 5
    assert model(x, output_maps=False).maps is None
    assert isinstance(model(x, return_dict=False), tuple)


def test_softcam_loss_penalises_maps():
    config = SoftCAMConfig(architecture="softcam_test_resnet", num_labels=3, l1=0.5, l2=0.25)
    model = SoftCAMForImageClassification(config).eval()
    x, labels = images(), torch.tensor([0, 2])
    maps = model(x).maps
    expected = torch.nn.functional.cross_entropy(maps.mean(dim=(2, 3)), labels)
    expected = expected + 0.5 * maps.abs().mean() + 0.25 * maps.square().mean()
    without_maps = model(x, labels=labels, output_maps=False)
    assert torch.allclose(without_maps.loss, expected)
    assert without_maps.maps is None


def test_several_labels_per_image():
    config = SoftCAMConfig(architecture="softcam_test_resnet", num_labels=3, problem_type="multi_label_classification")
    model = SoftCAMForImageClassification(config).eval()
    x, labels = images(), torch.tensor([[1, 0, 1], [0, 0, 0]])
    output = model(x, labels=labels)
    expected = -torch.where(labels == 1, output.logits.sigmoid().log(), (-output.logits).sigmoid().log()).mean()
    assert torch.allclose(output.loss, expected)
    assert torch.allclose(model.explain(x, classes=1).probabilities[:, 0], output.logits[:, 1].sigmoid())


CONTRADICTIONS = {
    "family": (
        lambda: CAPEConfig(architecture="softcam_resnet18"),
        "a cape configuration describes cape_* architectures, got 'softcam_resnet18': use cape_resnet18, or the "
        "configuration of softcam",
    ),
    "family of a folder": (
        lambda: SoftCAMForImageClassification.from_pretrained(softcam_hub.CAPE_LESIONS),
        "a softcam configuration describes softcam_* architectures, got 'cape_test_resnet': use softcam_test_resnet, or "
        "the configuration of cape",
    ),
    "penalty": (
        lambda: SoftCAMConfig(l1=-0.1),
        "l1 weighs a penalty and must be at least 0 and finite, got -0.1",
    ),
    "several labels": (
        lambda: CAPEConfig(problem_type="multi_label_classification"),
        "CAPE's class probabilities sum to one, so problem_type='multi_label_classification' is not possible: use "
        "SoftCAM for several labels per image",
    ),
    "no classes": (
        lambda: SoftCAMConfig(num_labels=0),
        "num_labels must be at least 1: a model that shows evidence has classes to show it for",
    ),
    "timm's word": (
        lambda: SoftCAMConfig(num_classes=3),
        "num_classes=3 is timm's word: configurations take num_labels, or id2label",
    ),
    "regression": (
        lambda: SoftCAMConfig(problem_type="regression"),
        "problem_type='regression' is not possible, evidence maps are maps of classes: expected "
        "single_label_classification or multi_label_classification",
    ),
    "mode": (
        lambda: CAPEConfig(mode="postfit"),
        "unknown mode 'postfit' for CAPE: expected one of direct, from-scratch, post-fit",
    ),
    "architecture": (
        lambda: SoftCAMConfig(architecture="softcam_resnet5O"),
        f"unknown architecture 'softcam_resnet5O': timm {timm.__version__} has no 'resnet5O'; did you mean "
        "softcam_resnet50, softcam_resnet51q, softcam_resnet50t?",
    ),
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_a_contradictory_configuration_is_refused(contradiction):
    do, expected = CONTRADICTIONS[contradiction]
    with pytest.raises(ValueError) as error:  # noqa: PT011, compared word for word below
        do()
    assert str(error.value) == expected


def test_public_names_exist():
    assert all(hasattr(softcam_hub, name) for name in softcam_hub.__all__)
