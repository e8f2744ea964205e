"""Types of the public names, as a type checker shows them to a user who writes a script."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from transformers import PreTrainedConfig

import softcam_hub
from softcam_hub import create_explainer, list_explainers
from softcam_hub.explainers.layouts import LAYOUTS
from softcam_hub.explainers.methods import CLASS_ACTIVATION, PIXELS, UNINFORMED, ExplainerName
from softcam_hub.models.heads import BUILT_IN, Family
from softcam_hub.models.losses import MODES, Mode
from softcam_hub.models.map_kind import KindName

ROOT = Path(__file__).parents[1]

SCRIPT = """
from pathlib import Path

import softcam_hub
import timm
import torch
from softcam_hub import (
    CAPEConfig,
    CAPEForImageClassification,
    Classifier,
    Explanation,
    SoftCAMForImageClassification,
    create_explainer,
)
from softcam_hub.explainers.create import Explainer, Explainers
from torch import Tensor, nn
from typing_extensions import assert_type


@softcam_hub.register_head
class ReluHead(softcam_hub.EvidenceHead):
    family = "relu"
    title = "ReLU"
    map_kinds = (softcam_hub.MapKind("relu", composition="mean"),)

    def compose(self, evidence: Tensor) -> Tensor:
        return evidence.relu().mean(dim=(2, 3))


def explain(image: Path, images: Tensor, labels: Tensor) -> Tensor:
    model = softcam_hub.build("cape_resnet18", num_classes=3)
    assert_type(model, Classifier)
    assert_type(softcam_hub.build("cape_resnet18", features_only=True), nn.Module)
    assert_type(softcam_hub.convert(timm.create_model("resnet18"), "cape"), Classifier)
    assert_type(softcam_hub.to_vanilla(model), nn.Module)
    assert_type(model.head.weight, nn.Parameter)
    explanation = model.explain(images, classes=[[0, 1]], kind="mu-cape")
    assert_type(explanation, Explanation)
    for classes in (0, labels, [0, 2], "healthy", ["healthy", "drusen"]):
        model.explain(images, classes)
    softcam_hub.explain(model, image, classes="healthy")
    model.explain(images, classes=1.5)  # type: ignore[arg-type]
    softcam_hub.fit_temperature(model, [(images, labels)])
    assert_type(softcam_hub.post_fit(model, [(images, labels)], epochs=10).disagreement, float)
    softcam_hub.post_fit(model, image, timm.create_model("resnet18"))
    return explanation.heatmaps(224)


def compare(images: Tensor) -> Tensor:
    model = timm.create_model("resnet18", pretrained=True)
    explainer = create_explainer("grad-cam", model, layer="layer3", layout="NCHW")
    assert_type(explainer, Explainer)
    assert_type(create_explainer(["cam", "layer-cam"], model), Explainers)
    create_explainer("cam", model, layout="NCWH")  # type: ignore[call-overload]
    return explainer(images, [0])


def train_and_push(folder: Path) -> None:
    model = CAPEForImageClassification.from_timm("cape_resnet18", mode="post-fit", num_labels=3)
    assert_type(model, CAPEForImageClassification)
    assert_type(model.drop_teacher(), CAPEForImageClassification)
    assert_type(SoftCAMForImageClassification.from_pretrained(folder), SoftCAMForImageClassification)
    assert_type(model.config, CAPEConfig)
    CAPEConfig(temperature="two")  # type: ignore[arg-type]
    model.save_pretrained(folder)
    rows = softcam_hub.benchmark(folder, "results", data="lesions", explainers="cape grad-cam")
    print(rows[0]["average_drop"], softcam_hub.push(folder, "you/lesions", dry_run=True).describe())
    softcam_hub.export_onnx(softcam_hub.build("softcam_resnet18"), folder / "model.onnx")
    print(softcam_hub.CAPE_LESIONS, softcam_hub.list_explainers(), torch.__version__)
"""
"""Script of a user. Strict checks refuse a `type: ignore` where there is no error."""


@pytest.mark.slow  # a minute and a half, until mypy has cached the types of torch
def test_the_script_of_a_user_has_no_type_errors(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", tmp_path / "script.py"]

    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # with the settings and the cache of lint

    assert run.returncode == 0, run.stdout + run.stderr


def names_in(union):
    """The names that editors complete for a type that also takes any other string."""
    literals, text = get_args(union)[:-1], get_args(union)[-1]
    assert text is str
    return [name for literal in literals for name in get_args(literal)]


def test_literals_name_what_the_tables_hold():
    kinds = {kind.name for head in BUILT_IN for kind in head.map_kinds}
    assert sorted(names_in(KindName)) == sorted(kinds)
    assert names_in(Family) == [head.family for head in BUILT_IN]
    assert set(get_args(Mode)) == set(MODES)
    assert LAYOUTS == ("NCHW", "NHWC", "NLC")
    native = {kind.name for head in BUILT_IN for kind in head.map_kinds if kind.native}
    assert set(names_in(ExplainerName)) == {*CLASS_ACTIVATION, *UNINFORMED, *PIXELS, *native}
    assert set(names_in(ExplainerName)) <= set(list_explainers())


def test_a_name_without_a_literal_is_still_checked_when_the_script_runs():
    with pytest.raises(ValueError, match="unknown explainer 'grad-cma': did you mean grad-cam"):
        create_explainer("grad-cma", None)


@pytest.mark.parametrize("name", [name for name in softcam_hub.__all__ if callable(getattr(softcam_hub, name))])
def test_help_describes_every_argument_of_a_public_name(name):
    public = getattr(softcam_hub, name)
    text = inspect.getdoc(public) or ""
    if isinstance(public, type) and issubclass(public, PreTrainedConfig):  # transformers describes its own fields
        inherited = {field.name for field in fields(PreTrainedConfig)}
        arguments = {field.name for field in fields(public)} - inherited
    else:
        arguments = set(inspect.signature(public).parameters) - {"self"}
    described = re.findall(r"^ {4}(\w+): \S", re.split(r"\n(?:Args|Attributes):\n", text)[-1], flags=re.MULTILINE)

    assert re.match(r"[A-Z].*[^,;]\n\n|[A-Z].*\.$", text), "a first line that is a sentence"
    assert arguments <= set(described)
