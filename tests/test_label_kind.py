"""Whether an image may have several labels travels with a folder, and decides in every door."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from conftest import randomise
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    pipeline,
)

import softcam_hub
from softcam_hub import SoftCAMConfig, SoftCAMForImageClassification, create_explainer
from softcam_hub.cli import main
from softcam_hub.demo.models import DemoModel
from softcam_hub.evaluation.models import ModelPair, fingerprint, resolve_multi_label
from softcam_hub.loading import load_classifier
from softcam_hub.models.heads import SoftCAMHead
from softcam_hub.models.label_kind import MULTI_LABEL, SINGLE_LABEL, is_multi_label, written_multi_label
from softcam_hub.training.objective import VanillaForTraining

LABELS = {0: "cat", 1: "dog", 2: "owl"}
ARGUMENTS = {"pretrained": False, "id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def edited(folder, target, edit):
    """A copy of a model folder with another config.json."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    edit(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Model folders by the way in which they were written, and the logits that all of them give."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("folders")
    model = SoftCAMForImageClassification.from_timm("softcam_test_resnet", **ARGUMENTS, problem_type=MULTI_LABEL)
    model = randomise(model).eval()
    model.save_pretrained(root / "transformers")
    ours = timm.create_model(f"local-dir:{root / 'transformers'}", pretrained=True)
    timm.models.save_for_hf(ours, root / "timm", safe_serialization=True)
    again = timm.create_model(f"local-dir:{root / 'timm'}", pretrained=True)
    timm.models.save_for_hf(again, root / "timm twice", safe_serialization=True)
    edited(root / "transformers", root / "before this record", lambda config: config.pop("model_args"))
    old = timm.create_model(f"local-dir:{root / 'before this record'}", pretrained=True)
    timm.models.save_for_hf(old, root / "timm from before", safe_serialization=True)
    SoftCAMForImageClassification.from_timm(ours).save_pretrained(root / "from timm")
    SoftCAMForImageClassification.from_pretrained(root / "timm").save_pretrained(root / "transformers from timm")
    with torch.no_grad():
        return root, model(IMAGES).logits


WRITTEN = ["transformers", "timm", "timm twice", "before this record", "timm from before", "from timm"]
WRITTEN += ["transformers from timm"]

DOORS = {
    "timm": lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
    "our loader": lambda folder: load_classifier(folder).model,
    "classifier": lambda folder: SoftCAMForImageClassification.from_pretrained(folder),
    "auto classifier": AutoModelForImageClassification.from_pretrained,
    "auto features": AutoModel.from_pretrained,
    "features": lambda folder: softcam_hub.SoftCAMModel.from_pretrained(folder),
    "through a folder": lambda folder: load_classifier(SoftCAMForImageClassification.from_pretrained(folder)).model,
    "vanilla and back": lambda folder: softcam_hub.convert(softcam_hub.to_vanilla(load_classifier(folder).model)),
    "deep copy": lambda folder: copy.deepcopy(load_classifier(folder).model),
    "pickle": lambda folder: pickle.loads(pickle.dumps(load_classifier(folder).model)),
}


NAMES_NO_CLASS = ("timm", "timm twice", "timm from before")
"""Folders of timm's own export, for which transformers' `Auto` classes do not know what to build."""


@pytest.mark.parametrize(
    ("door", "written"),
    [(door, written) for door in DOORS for written in WRITTEN if door[:4] != "auto" or written not in NAMES_NO_CLASS],
)
def test_every_door_gives_each_class_a_probability_of_its_own(door, written, folders):
    root, logits = folders
    model = DOORS[door](root / written).eval()
    assert torch.allclose(model.probabilities(logits), logits.sigmoid())
    found = model.explain(IMAGES, [[0, 1, 2]])
    assert torch.allclose(found.probabilities, logits.sigmoid(), atol=1e-5)


@pytest.mark.parametrize("written", ["transformers", "before this record"])
def test_the_pipeline_the_page_and_the_command_line_agree(written, folders, tmp_path):
    root, _ = folders
    picture = Image.new("RGB", (64, 64), (200, 30, 90))
    picture.save(tmp_path / "a.png")
    model = DemoModel(root / written)
    explained = model.explain(picture)
    expected = model.model(explained.pixels).detach().cpu()[0].sigmoid()
    assert torch.allclose(explained.probabilities, expected, atol=1e-6)
    explanations, _ = model.post_hoc(model.explain_classes(explained, [1]))
    assert torch.allclose(explanations["cam"].probabilities.cpu(), expected[1], atol=1e-5)
    rows = pipeline("image-explanation", model=str(root / written))(picture, classes=[0, 1, 2])
    assert [row["score"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)
    for number, options in enumerate(([], ["--explainer", "grad-cam"])):
        out = tmp_path / str(number)
        arguments = ["explain", str(tmp_path / "a.png"), "--model", str(root / written), "--output", str(out)]
        assert main([*arguments, *options]) == 0
        line = json.loads((out / "predictions.jsonl").read_text())
        assert list(line["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("written", ["transformers", "timm", "before this record"])
def test_a_repo_of_the_hub_says_it_too(written, folders, tmp_path, monkeypatch):
    root, logits = folders
    repo = tmp_path / "models--you--birds"
    shutil.copytree(root / written, repo / "snapshots" / ("0" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = timm.create_model("hf-hub:you/birds", pretrained=True, cache_dir=tmp_path).eval()
    assert torch.allclose(model.probabilities(logits), logits.sigmoid())


READ_ELSEWHERE = """
import sys, torch
from transformers import AutoModelForImageClassification
for folder in sys.argv[1:]:
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
    assert "softcam_hub" not in sys.modules
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    assert torch.equal(model.probabilities(logits), logits.sigmoid()), folder
"""


@pytest.mark.slow
def test_the_copied_code_says_it_too(folders, tmp_path):
    paths = [str(folders[0] / written) for written in ("transformers", "before this record")]
    done = subprocess.run(
        [sys.executable, "-c", READ_ELSEWHERE, *paths],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "home"), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_one_label_per_image_stays_a_softmax(tmp_path):
    model = SoftCAMForImageClassification.from_timm("softcam_test_resnet", **ARGUMENTS, problem_type=SINGLE_LABEL)
    model.save_pretrained(tmp_path)
    assert "multi_label" not in json.loads((tmp_path / "config.json").read_text())["model_args"]
    logits = torch.randn(2, 3)
    for door in DOORS.values():
        assert torch.equal(door(tmp_path).probabilities(logits), logits.softmax(dim=1))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_explainers_ask_a_classifier_of_transformers(wrapped, several):
    if wrapped:
        model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_resnet", num_labels=3))
    else:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
        model = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3))
    model.config.problem_type = MULTI_LABEL if several else SINGLE_LABEL
    model.eval()
    found = create_explainer("grad-cam", model).explain(IMAGES, [[0, 1, 2]]).probabilities
    with torch.no_grad():
        logits = model(IMAGES).logits
    assert torch.allclose(found, logits.sigmoid() if several else logits.softmax(dim=1), atol=1e-6)


def test_the_kind_of_labels_given_at_load_decides(folders):
    root, logits = folders
    options = {"problem_type": SINGLE_LABEL}
    model = SoftCAMForImageClassification.from_pretrained(root / "transformers", **options)
    assert torch.equal(model.probabilities(logits), logits.softmax(dim=1))
    model = timm.create_model(f"local-dir:{root / 'before this record'}", pretrained=True, multi_label=False)
    assert torch.equal(model.probabilities(logits), logits.softmax(dim=1))


@pytest.mark.parametrize("door", ["timm", "classifier"])
@pytest.mark.parametrize(("problem", "told"), [(SINGLE_LABEL, True), (MULTI_LABEL, False)])
def test_a_config_that_contradicts_itself_is_refused(door, problem, told, folders, tmp_path):
    facts = {"problem_type": problem, "model_args": {"multi_label": told}}
    folder = edited(folders[0] / "transformers", tmp_path / "edited", lambda config: config.update(facts))
    with pytest.raises(ValueError, match="config.json contradicts itself: problem_type is"):
        DOORS[door](folder)


CAPE = {
    "made": lambda _: softcam_hub.build("cape_test_resnet", num_classes=3, multi_label=True),
    "by timm": lambda _: timm.create_model("cape_test_resnet", num_classes=3, multi_label=True),
    "configured": lambda _: softcam_hub.CAPEConfig(architecture="cape_test_resnet", problem_type=MULTI_LABEL),
    "model_args": lambda _: softcam_hub.CAPEConfig(architecture="cape_test_resnet", model_args={"multi_label": True}),
    "converted": lambda root: softcam_hub.convert(softcam_hub.to_vanilla(load_classifier(root / "timm").model), "cape"),
}


@pytest.mark.parametrize("case", CAPE)
def test_cape_of_several_labels_is_refused(case, folders):
    with pytest.raises(ValueError, match="CAPE's class probabilities sum to one"):
        CAPE[case](folders[0])


def test_a_configuration_says_it_to_timm():
    config = SoftCAMConfig(architecture="softcam_test_resnet", num_labels=3, model_args={"multi_label": True})
    assert config.problem_type == MULTI_LABEL
    assert not config.model_args
    assert config.to_dict()["model_args"]["multi_label"] is True
    assert SoftCAMConfig.from_dict(config.to_dict()).problem_type == MULTI_LABEL


# Vanilla classifiers.


@pytest.fixture(scope="module")
def vanillas(tmp_path_factory):
    """Vanilla classifiers as training writes them, by whether an image may have several labels."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("vanilla")
    vanilla = timm.create_model("test_resnet", num_classes=3)
    for several in (False, True):
        VanillaForTraining(vanilla, several, list(LABELS.values())).save_pretrained(root / f"{several}")
    timm.models.save_for_hf(vanilla, root / "unsaid", safe_serialization=True)
    return root


@pytest.mark.parametrize("several", [False, True])
def test_a_vanilla_classifier_says_it(several, vanillas, tmp_path):
    for model in (
        load_classifier(vanillas / f"{several}").model,
        timm.create_model(f"local-dir:{vanillas / f'{several}'}"),
    ):
        assert is_multi_label(model, default=not several) == several
        assert is_multi_label(softcam_hub.convert(model)) == several
        assert is_multi_label(SoftCAMForImageClassification.from_timm(model)) == several
    Image.new("RGB", (64, 64), (200, 30, 90)).save(tmp_path / "a.png")
    arguments = ["explain", str(tmp_path / "a.png"), "--model", str(vanillas / f"{several}"), "--explainer", "cam"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    line = json.loads((tmp_path / "out" / "predictions.jsonl").read_text())
    assert (sum(line["probabilities"].values()) == pytest.approx(1)) == (not several)


@pytest.mark.parametrize(
    ("model", "vanilla", "in_data", "expected"),
    [
        (True, None, True, True),
        (True, None, False, True),
        (False, None, False, False),
        (None, True, True, True),
        (None, True, False, True),
        (None, "unsaid", True, True),
        (None, "unsaid", False, False),
        (True, "unsaid", False, True),
        (False, "unsaid", False, False),
        (False, None, True, ValueError),
        (None, False, True, ValueError),
        (True, False, True, ValueError),
    ],
)
def test_in_a_benchmark_the_model_decides_before_the_data(model, vanilla, in_data, expected, vanillas):
    ours = None if model is None else SimpleNamespace(multi_label=model, model=SimpleNamespace(head_class=SoftCAMHead))
    pair = ModelPair(ours, None if vanilla is None else load_classifier(vanillas / f"{vanilla}"))
    role = "model" if vanilla is None else "vanilla"
    if expected is ValueError:
        with pytest.raises(ValueError, match=f"the {role} gives one label per image"):
            resolve_multi_label(pair, role, in_data)
    else:
        assert resolve_multi_label(pair, role, in_data) == expected


def test_a_benchmark_does_not_go_on_with_another_kind_of_labels(vanillas):
    assert fingerprint(load_classifier(vanillas / "True")) != fingerprint(load_classifier(vanillas / "False"))


def test_a_config_without_either_name_says_nothing():
    assert written_multi_label({"architecture": "resnet18"}) is None


def test_a_kind_of_labels_that_is_no_truth_value_is_refused():
    with pytest.raises(ValueError, match="multi_label in model_args must be true or false, got 'no'"):
        written_multi_label({"model_args": {"multi_label": "no"}})


def test_a_wrapper_cannot_be_given_another_kind_of_labels(tmp_path):
    softcam_hub.CAPEForImageClassification.from_timm("cape_test_resnet", **ARGUMENTS).save_pretrained(tmp_path)
    wrapper = TimmWrapperForImageClassification.from_pretrained(tmp_path)
    assert load_classifier(wrapper).multi_label is False
    wrapper = TimmWrapperForImageClassification.from_pretrained(tmp_path, problem_type=MULTI_LABEL)
    with pytest.raises(ValueError, match="was trained with one label per image: leave problem_type out"):
        load_classifier(wrapper)


@pytest.mark.parametrize("family", ["softcam", "cape"])
def test_one_class_has_no_softmax_in_either_door(family):
    sentence = "num_classes=1 can neither predict nor learn, as a softmax over one class is always 1"
    with pytest.raises(ValueError, match=sentence):
        timm.create_model(f"{family}_test_resnet", num_classes=1)
    model = timm.create_model(f"{family}_test_resnet", num_classes=3)
    with pytest.raises(ValueError, match=sentence):
        model.reset_classifier(1)
    assert model.num_classes == 3


def test_one_class_by_itself_travels_through_transformers(tmp_path):
    options = {"num_labels": 1, "problem_type": MULTI_LABEL}
    made = SoftCAMForImageClassification.from_timm("softcam_test_resnet", pretrained=False, **options)
    assert SoftCAMForImageClassification(made.config).num_classes == 1
    taken_over = timm.create_model("softcam_test_resnet", num_classes=1, multi_label=True)
    for number, model in enumerate((made, SoftCAMForImageClassification.from_timm(taken_over))):
        model.eval().save_pretrained(tmp_path / str(number))
        again = SoftCAMForImageClassification.from_pretrained(tmp_path / str(number)).eval()
        with torch.no_grad():
            assert torch.equal(again(IMAGES).logits, model(IMAGES).logits)
        assert torch.equal(again.probabilities(torch.zeros(2, 1)), torch.full((2, 1), 0.5))


def test_one_class_by_itself_has_a_sigmoid():
    model = timm.create_model("softcam_test_resnet", num_classes=1, multi_label=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).sigmoid()
    probabilities = model.explain(images).probabilities
    torch.testing.assert_close(probabilities, expected)
    assert bool((probabilities < 1).all())
