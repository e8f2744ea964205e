"""Saved folders that are damaged, incomplete or contradictory are refused with a sentence, and a failed save harms nothing."""

import os
import pickle
import resource
import shutil
from contextlib import contextmanager

import pytest
import timm
import torch
from helpers.saved_models import LABELS, NAMES, Saved, edit_config, images
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification

from softcam_hub import CAPEConfig, CAPEForImageClassification, SoftCAMConfig, SoftCAMForImageClassification


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return Saved(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved, tmp_path):
    """A folder of our own to break, of SoftCAM on a ResNet."""
    return shutil.copytree(saved.ours("resnet-softcam"), tmp_path / "folder")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_weights(folder, **changes):
    weights = {**load_file(folder / "model.safetensors"), **changes}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


DOORS = {
    "auto": AutoModelForImageClassification.from_pretrained,
    "features": AutoModel.from_pretrained,
    "class": SoftCAMForImageClassification.from_pretrained,
    "timm": lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
}
every_door = pytest.mark.parametrize("door", DOORS)


@every_door
@pytest.mark.parametrize("length", [0, 5, 1000, -1])
def test_truncated_weights(door, length, folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:length])
    with pytest.raises(SafetensorError):
        DOORS[door](folder)


@every_door
def test_wrong_shapes(door, folder):
    edit_weights(folder, **{"head.weight": torch.zeros(7, 96)})
    with pytest.raises(RuntimeError, match="mismatch"):
        DOORS[door](folder)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def replace_by_pickle(folder, **more):
    weights = load_file(folder / "model.safetensors")
    torch.save({**weights, **more}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("door", [door for door in DOORS if door != "timm"])  # timm raises of its own accord
def test_missing_weights(door, folder):
    weights = load_file(folder / "model.safetensors")
    del weights["backbone.conv1.0.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of the backbone, among them backbone\.conv1\.0\.weight$"):
        DOORS[door](folder)


@every_door
def test_a_pickle_runs_nothing(door, folder, tmp_path):
    replace_by_pickle(folder, evil=Evil(tmp_path / "was-run"))
    with pytest.raises((OSError, RuntimeError, ValueError, pickle.UnpicklingError)):
        DOORS[door](folder)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("door", [door for door in DOORS if door != "timm"])  # timm's own code opens that one
def test_a_pickle_is_refused(door, folder):
    replace_by_pickle(folder)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        DOORS[door](folder)


BAD_CONFIGS = {
    "unknown architecture": ({"architecture": "softcam_resnet5O"}, ValueError, "did you mean softcam_resnet50"),
    "vanilla architecture": ({"architecture": "test_resnet"}, ValueError, "did you mean softcam_test_resnet"),
    "other family": ({"architecture": "cape_test_resnet"}, ValueError, "use softcam_test_resnet"),
    "architecture type": ({"architecture": 3}, StrictDataclassError, "'architecture' expected str, got int"),
    "architecture null": ({"architecture": None}, StrictDataclassError, "'architecture' expected str"),
    "model_args type": ({"model_args": [1]}, StrictDataclassError, "'model_args'"),
    "unknown model_args": ({"model_args": {"depht": 1}}, TypeError, "depht"),
    "pretrained_cfg type": ({"pretrained_cfg": "imagenet"}, StrictDataclassError, "'pretrained_cfg'"),
    "unknown pretrained_cfg": ({"pretrained_cfg": {"colour": 1}}, TypeError, "colour"),
    "penalty type": ({"l1": "much"}, StrictDataclassError, "'l1' expected float, got str"),
    "penalty negative": ({"l2": -0.5}, ValueError, "l2 weighs a penalty and must be at least 0"),
    "penalty nan": ({"l1": float("nan")}, ValueError, "l1 weighs a penalty"),
    "flag type": ({"output_maps": "no"}, StrictDataclassError, "'output_maps' expected bool"),
    "fewer names": (
        {"id2label": {"0": "asp", "1": "bee"}, "drop": ["label2id", "num_classes", "label_names"]},
        RuntimeError,
        "mismatch",
    ),
    "one class": (
        {"id2label": {"0": "asp"}, "drop": ["label2id", "num_classes"]},
        ValueError,
        "name two classes, or for SoftCAM set problem_type='multi_label_classification'",
    ),
    "penalty infinite": ({"l1": float("inf")}, ValueError, "l1"),
    "problem type": ({"problem_type": "many"}, ValueError, "many"),
    "label numbers with a gap": ({"id2label": dict(zip("01239", NAMES, strict=True))}, ValueError, "id2label"),
    "two numbers of classes": ({"num_classes": 4}, ValueError, "num_classes"),
    "label list": ({"id2label": NAMES}, ValueError, "id2label"),
    "architecture missing": ({"drop": ["architecture"]}, ValueError, "architecture"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_bad_config_is_refused(case, folder):
    changes, error, message = BAD_CONFIGS[case]
    edit_config(folder, **changes)
    before = content(folder)
    with pytest.raises(error, match=message):
        AutoModelForImageClassification.from_pretrained(folder)
    assert content(folder) == before


def test_a_missing_config_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match=r"config\.json"):
        SoftCAMForImageClassification.from_pretrained(folder)


def test_whole_numbers_are_numbers():
    assert SoftCAMConfig(l1=1).l1 == 1
    assert CAPEConfig(temperature=3, mode="post-fit", alpha=0, beta=1).bootstrap.temperature == 3


def test_broken_json(folder):
    (folder / "config.json").write_text("{")
    for door in ("auto", "features", "class"):
        with pytest.raises(OSError, match="not a valid JSON"):
            DOORS[door](folder)


def test_label_maps_come_from_the_names(folder):
    edit_config(folder, drop=["id2label", "label2id"])
    config = AutoModelForImageClassification.from_pretrained(folder).config
    assert (config.id2label, config.label2id) == (LABELS["id2label"], LABELS["label2id"])
    edit_config(folder, drop=["id2label", "label2id", "label_names"])
    assert AutoModelForImageClassification.from_pretrained(folder).config.num_labels == 5


def test_one_label_map_gives_the_other(folder):
    edit_config(folder, drop=["label2id"])
    assert AutoModelForImageClassification.from_pretrained(folder).config.label2id == LABELS["label2id"]


@pytest.mark.parametrize("mode", ["from-scratch", "post-fit"])
def test_a_mode_whose_teacher_is_not_in_the_folder_is_refused(mode, saved, tmp_path):
    folder = shutil.copytree(saved.ours("resnet"), tmp_path / "folder")
    edit_config(folder, mode=mode)
    for load in (AutoModelForImageClassification.from_pretrained, CAPEForImageClassification.from_pretrained):
        with pytest.raises(ValueError, match=f"mode '{mode}' learns from a teacher, but this checkpoint holds none"):
            load(folder)
    features = AutoModel.from_pretrained(folder)
    assert features(images(features)).logits.shape == (2, 5)


def test_saving_over_a_file_leaves_it_alone(folder, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(folder)
    (tmp_path / "target").write_text("mine")
    with pytest.raises(OSError, match="target"):
        model.save_pretrained(tmp_path / "target")
    assert (tmp_path / "target").read_text() == "mine"


@contextmanager
def full_disk(largest_file):
    """No file grows beyond `largest_file` bytes, for this process and as the system sees it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("begun", [False, True])
def test_a_save_that_fails_leaves_what_was_there(begun, folder, saved, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(saved.ours("convnext"))
    target = folder if begun else tmp_path / "new"
    before = content(target)
    with full_disk(200_000), pytest.raises(SafetensorError):
        model.save_pretrained(target)
    assert begun or not (target / "model.safetensors").exists()
    assert not begun or content(target) == before


@pytest.mark.parametrize(("size", "shards"), [("300KB", 4), ("5GB", 0)])
def test_a_second_save_replaces_the_first(size, shards, folder):
    model = AutoModelForImageClassification.from_pretrained(folder)
    model.save_pretrained(folder, max_shard_size="5GB" if shards else "300KB")
    torch.nn.init.ones_(model.head.bias)
    model.save_pretrained(folder, max_shard_size=size)
    assert torch.equal(AutoModelForImageClassification.from_pretrained(folder).head.bias, model.head.bias)
    assert len(list(folder.glob("model-*"))) == shards
