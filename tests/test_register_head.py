"""Heads of another package: through every door and command, without touching a file of softcam_hub."""

import importlib
import json

import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from timm.models import save_for_hf
from transformers import AutoModelForImageClassification

import softcam_hub
from softcam_hub import EvidenceConfig, EvidenceForImageClassification, EvidenceHead, EvidenceModel, MapKind
from softcam_hub.architectures import architectures
from softcam_hub.cli import main
from softcam_hub.evaluation import benchmark
from softcam_hub.figures import per_class, top_two
from softcam_hub.hub.cards import write_card
from softcam_hub.loading import load_classifier
from softcam_hub.models.heads import HEADS, CAPEHead, describe_kind
from softcam_hub.training import make_config, run

FAMILIES = ("lse", "scaled")
NAMES = ["healthy", "microaneurysm", "haemorrhage", "exudate"]
DATA = {"data": "lesions", "data_size": 32, "train_count": 16, "eval_count": 8}
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module", autouse=True)
def heads():
    """Register the heads for these tests only."""
    before = dict(HEADS)
    module = importlib.import_module("helpers.third_heads")
    HEADS.update({head.family: head for head in (module.LogSumExpHead, module.ScaledHead)})
    yield module
    HEADS.clear()
    HEADS.update(before)


@pytest.fixture
def model(family):
    torch.manual_seed(0)
    return timm.create_model(f"{family}_test_resnet", num_classes=4).eval()


@pytest.fixture
def folder(model, tmp_path):
    names = {"id2label": dict(enumerate(NAMES))}
    EvidenceForImageClassification.from_timm(model, **names).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# Models.


@families
def test_timm_knows_every_architecture(family):
    expected = {f"{family}_{name}" for name in architectures() if timm.is_model(name)} | {f"{family}_swinv2_b"}
    assert set(timm.list_models(f"{family}_*")) == expected
    assert timm.get_pretrained_cfg(f"{family}_resnet50").hf_hub_id == timm.get_pretrained_cfg("resnet50").hf_hub_id


@families
def test_maps_make_up_the_prediction(family, model):
    images = torch.randn(2, 3, 64, 64)
    explanation = model.explain(images, top_k=2)
    logits = model(images)
    expected = explanation.map_kind.target(logits, logits.softmax(dim=1)).gather(1, explanation.classes)
    assert explanation.kind == family
    assert torch.allclose(explanation.map_kind.compose(explanation.maps), expected, atol=1e-5)


@families
def test_a_vanilla_classifier_is_converted(family):
    vanilla = timm.create_model("test_resnet", num_classes=4)
    model = softcam_hub.convert(vanilla, family)
    assert torch.equal(model.head.weight.flatten(), vanilla.get_classifier().weight.flatten())
    with pytest.raises(ValueError, match="unknown family 'other': expected one of softcam, cape, lse, scaled"):
        softcam_hub.convert(vanilla, "other")


@families
def test_maps_are_an_explainer(family, model):
    assert family in softcam_hub.list_explainers()
    images = torch.randn(2, 3, 64, 64)
    maps = softcam_hub.create_explainer(family, model, signed=True)(images, 1)
    assert torch.allclose(maps, model.explain(images, 1).maps, atol=1e-6)
    with pytest.raises(ValueError, match=f"'{family}' maps need a {family} model"):
        softcam_hub.create_explainer(family, softcam_hub.build("cape_test_resnet", num_classes=4))(images)


def test_only_maps_that_are_shares_of_a_probability_have_regions():
    images = torch.randn(1, 3, 64, 64)
    explanation = timm.create_model("lse_test_resnet", num_classes=4).explain(images, top_k=2)
    assert torch.equal(explanation.regions(0.0).share, torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"only 'cape' and 'lse' maps hold probabilities: .* is 'scaled'"):
        timm.create_model("scaled_test_resnet", num_classes=4).explain(images).regions()


def test_an_option_of_the_head_travels(tmp_path):
    model = timm.create_model("scaled_test_resnet", num_classes=4, factor=3.0)
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).head.factor == 3.0
    assert EvidenceForImageClassification.from_pretrained(tmp_path).head.factor == 3.0
    with pytest.raises(TypeError, match="neither timm's test_resnet nor the head of cape_test_resnet.*'factor'"):
        timm.create_model("cape_test_resnet", factor=3.0)


# Folders.


@families
def test_a_folder_can_be_published(folder, hub):
    write_card(folder)
    described = softcam_hub.push(folder, "ada/eyes", dry_run=True).describe()
    assert "model.safetensors" in described
    assert "modeling.py" not in described, "the code of the head is that of its user"


@families
def test_a_folder_holds_no_code_and_loads_through_every_door(family, model, folder):
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors"}
    images = torch.randn(2, 3, 64, 64)
    for loaded in (
        timm.create_model(f"local-dir:{folder}", pretrained=True),
        AutoModelForImageClassification.from_pretrained(folder),
        load_classifier(folder).model,
    ):
        assert torch.allclose(loaded.eval().explain(images).maps, model.explain(images).maps, atol=1e-6)


@families
def test_a_folder_says_which_import_is_missing(family, folder, monkeypatch):
    monkeypatch.delitem(HEADS, family)
    message = f"{family}_test_resnet has a head of the family '{family}', which is not registered here: import "
    message += "helpers.third_heads, which defines "
    doors = (AutoModelForImageClassification.from_pretrained, load_classifier, write_card)
    for door in doors:
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            door(folder)
    assert main(["explain", str(folder), "--model", str(folder), "--output", str(folder / "out")]) == 1


def test_a_name_of_no_registered_family_is_refused_with_a_hint():
    with pytest.raises(
        ValueError, match="If another package brings the head 'gated', import the module that registers"
    ):
        softcam_hub.build("gated_resnet18")


# Commands.


@families
def test_images_are_explained_by_the_command(family, folder, tmp_path):
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "image.png")
    out = tmp_path / "out"
    assert main(["explain", str(tmp_path / "image.png"), "--model", str(folder), "--output", str(out)]) == 0
    assert (out / "image.png").exists()
    assert json.loads((out / "predictions.jsonl").read_text())["kind"] == family


@families
def test_figures_are_drawn(family, model):
    image, explanation = Image.new("RGB", (64, 64)), model.explain(torch.randn(1, 3, 64, 64), top_k=2)
    assert per_class(image, explanation, NAMES).width > 64
    if explanation.map_kind.sums_to_probability:
        assert top_two(image, explanation, NAMES).width > 64
    else:
        with pytest.raises(ValueError, match="maps hold probabilities"):
            top_two(image, explanation, NAMES)


@families
def test_a_card_says_what_the_head_says(family, folder):
    card = write_card(folder).read_text()
    assert f"import helpers.third_heads  # registers the {family} head" in card
    assert (HEADS[family].card.meaning or describe_kind(family).statement) in card
    assert "trust_remote_code" not in card


@families
def test_a_head_is_trained_and_measured(family, tmp_path):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    small = {"image_size": 32, "batch_size": 8, "epochs": 1, "workers": 0, "output": str(tmp_path / "run"), **DATA}
    run(make_config(model=f"{family}_test_resnet", **small))
    folder = tmp_path / "run" / "model"
    assert "completeness_error" in (folder / "metrics.json").read_text()
    assert not list(folder.glob("*.py"))
    assert load_classifier(folder).model.family == family
    rows = benchmark(folder, tmp_path / "benchmark", measures=("table",), **DATA)
    assert {row["explainer"] for row in rows} >= {family, "random"}
    (row,) = [row for row in rows if row["explainer"] == family]
    assert row["completeness_error"] < 1e-3


def test_a_head_without_a_mode_is_refused_one():
    with pytest.raises(ValueError, match=r"mode is an option of cape_\* models, but the model is 'lse_resnet18'"):
        make_config(model="lse_resnet18", mode="post-fit")


# Classes of its own for transformers.


def test_a_head_may_bring_its_own_configuration_and_models(monkeypatch, tmp_path):
    class OwnHead(CAPEHead):
        family, title, map_kinds = "own", "Own", (MapKind("own", composition="sum"),)

        def draw(self, evidence, kind):
            return self.log_parts(evidence).exp() if kind == "own" else super().draw(evidence, kind)

    class OwnConfig(EvidenceConfig):
        model_type = "own"
        architecture: str = "own_resnet18"
        weight: float = 1.0

    class OwnModel(EvidenceModel):
        config_class = OwnConfig

    class OwnForImageClassification(EvidenceForImageClassification):
        config_class = OwnConfig

        def loss(self, *args, **options):
            return self.config.weight * super().loss(*args, **options)

    with pytest.raises(TypeError, match="config, model and classifier together"):
        softcam_hub.register_head(OwnHead, OwnConfig)
    assert softcam_hub.register_head(OwnHead, OwnConfig, OwnModel, OwnForImageClassification) is OwnHead
    model = OwnForImageClassification(OwnConfig(architecture="own_test_resnet", num_labels=3, weight=2.0)).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "own"
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 2])
    output = again(images, labels=labels)
    assert torch.allclose(output.loss, 2 * torch.nn.functional.cross_entropy(output.logits, labels))
    HEADS.pop("own")


# What is refused.


def head(**attributes):
    """Make the class of a head that lacks nothing, with other attributes."""

    def compose(self, evidence):
        return evidence.mean(dim=(2, 3))

    whole = {"family": "other", "title": "Other", "map_kinds": (MapKind("other", signed=True),), "compose": compose}
    attributes = {name: value for name, value in {**whole, **attributes}.items() if value is not None}
    return type("OtherHead", (EvidenceHead,), attributes)


REFUSED = {
    "no class": (lambda: CAPEHead(3, 2), "takes a class derived from softcam_hub.EvidenceHead"),
    "no head": (lambda: torch.nn.Linear, "takes a class derived from softcam_hub.EvidenceHead"),
    "no family": (lambda: head(family=None), "OtherHead has no family: add a class attribute"),
    "no title": (lambda: head(title=None), "OtherHead has no title: add a class attribute"),
    "no maps": (lambda: head(map_kinds=None), "OtherHead has no map_kinds: add a class attribute"),
    "no logits": (lambda: head(compose=None), r"OtherHead has no compose\(\): define it"),
    "an underscore": (lambda: head(family="my_head"), "lower-case letters and digits, without an underscore"),
    "a taken family": (lambda: head(family="cape"), "the family 'cape' is taken by softcam_hub.models.heads.CAPEHead"),
    "a family of timm": (lambda: head(family="vit"), "the family 'vit' is taken, timm has models such as vit_"),
    "maps by name": (lambda: head(map_kinds=("other",)), "map_kinds of OtherHead must be a tuple of MapKind"),
    "a map kind twice": (lambda: head(map_kinds=(MapKind("a"), MapKind("a"))), "must have different names, got a, a"),
    "a taken map kind": (lambda: head(map_kinds=(MapKind("cape"),)), "CAPE has other 'cape' maps"),
    "an explainer": (
        lambda: head(map_kinds=(MapKind("grad-cam", signed=True),)),
        "there is an explainer called 'grad-cam'",
    ),
    "negative maps": (lambda: head(map_kinds=(MapKind("other"),)), "'other' maps of OtherHead have negative values"),
    "maps that do not sum": (
        lambda: head(map_kinds=(MapKind("other", composition="sum"),), draw=lambda self, evidence, kind: evidence**2),
        "'other' maps of OtherHead do not sum to the probability",
    ),
    "logits of the wrong shape": (
        lambda: head(compose=lambda self, evidence: evidence),
        r"logits of OtherHead must be a tensor \(B, C\): got \(2, 3, 4, 4\)",
    ),
    "logits of nothing": (
        lambda: head(compose=lambda self, evidence: None),
        r"must be a tensor \(B, C\): got NoneType",
    ),
    "maps of nothing": (
        lambda: head(draw=lambda self, evidence, kind: None),
        r"'other' maps of OtherHead must be a tensor \(B, C, H, W\): got NoneType",
    ),
    "logits that are not finite": (
        lambda: head(compose=lambda self, evidence: evidence.mean(dim=(2, 3)) * float("nan")),
        "logits of OtherHead are not finite",
    ),
    "maps that are not finite": (
        lambda: head(draw=lambda self, evidence, kind: evidence / 0),
        "'other' maps of OtherHead are not finite",
    ),
    "an option of the backbone": (
        lambda: head(__init__=lambda self, in_features, num_classes, img_size=3: None),
        "an option 'img_size', which is an argument of timm's models",
    ),
    "an option without default": (
        lambda: head(__init__=lambda self, in_features, num_classes, power, **placement: None),
        "options of its own need defaults",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_whole_head_is_refused(case):
    make, message = REFUSED[case]
    before = dict(HEADS)
    with pytest.raises((TypeError, ValueError), match=message):
        softcam_hub.register_head(make())
    assert before == HEADS


def test_a_map_kind_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="cannot be signed"):
        MapKind("other", composition="sum", signed=True)
    with pytest.raises(ValueError, match="must be 'sum', 'mean' or None: 'max'"):
        MapKind("other", composition="max")


def test_options_of_another_package_take_no_argument_from_our_heads(monkeypatch):
    def make(self, in_features, num_classes, depth=3, **placement):
        EvidenceHead.__init__(self, in_features, num_classes, **placement)

    monkeypatch.setitem(HEADS, "other", head(__init__=make))
    assert HEADS["other"].options() == ("depth",)
    model = timm.create_model("softcam_test_vit", num_classes=3, depth=1)
    assert len(model.backbone.blocks) == 1


def test_a_head_is_registered_again_in_silence(recwarn):
    softcam_hub.register_head(HEADS["lse"])
    assert not recwarn.list
