"""A config.json that describes impossible images or classes is refused by every door that loads it, by name."""

import json
import shutil
from pathlib import Path

import pytest
import timm
from timm.models import PretrainedCfg

import softcam_hub
from softcam_hub import CAPEForImageClassification, SoftCAMForImageClassification
from softcam_hub.cli import main
from softcam_hub.demo.models import DemoModel
from softcam_hub.loading import load_classifier
from softcam_hub.models.preprocessing import check_pretrained_cfg
from softcam_hub.training.objective import VanillaForTraining
from softcam_hub.training.parsing import make_config

CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder of ours and one of timm's."""
    root = tmp_path_factory.mktemp("folders")
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: n for n, name in enumerate(CLASSES)}}
    ours = SoftCAMForImageClassification.from_timm("softcam_test_resnet", pretrained=False, **names)
    ours.save_pretrained(root / "ours")
    vanilla = timm.create_model("test_resnet", num_classes=len(CLASSES))
    VanillaForTraining(vanilla, False, CLASSES).save_pretrained(root / "timms")
    return root


def spoil(folder, target, changes):
    """A copy of a model folder; changes whose name is an entry of `pretrained_cfg` are made there."""
    shutil.copytree(folder, target)
    file = target / "config.json"
    config = json.loads(file.read_text())
    for name, value in changes.items():
        at_root = name in ("num_classes", "label_names", "model_args", "pretrained_cfg")
        (config if at_root else config["pretrained_cfg"])[name] = value
    file.write_text(json.dumps(config))
    return target


IMPOSSIBLE = {
    "label_names_short": ({"label_names": ["a", "b"]}, "label_names has 2 names, but num_classes is 3"),
    "label_names_long": ({"label_names": ["a", "b", "c", "d"]}, "label_names has 4 names, but num_classes is 3"),
    "label_names_text": ({"label_names": "abc"}, "label_names must be a list of class names, got 'abc'"),
    "label_names_numbers": ({"label_names": [1, 2, 3]}, "label_names must be a list of class names"),
    "num_classes_negative": ({"num_classes": -1, "label_names": None}, "num_classes"),
    "num_classes_text": ({"num_classes": "3"}, "num_classes"),
    "interpolation": ({"interpolation": "cubic"}, "unknown interpolation 'cubic': expected one of nearest, bilinear"),
    "interpolation_number": ({"interpolation": 3}, "unknown interpolation 3"),
    "crop_mode": ({"crop_mode": "middle"}, "unknown crop_mode 'middle': expected one of center"),
    "crop_pct_tiny": ({"crop_pct": 1e-6}, "would resize images to"),
    "crop_pct_zero": ({"crop_pct": 0}, "crop_pct is a share of the resized image"),
    "crop_pct_negative": ({"crop_pct": -0.9}, "crop_pct is a share"),
    "crop_pct_nan": ({"crop_pct": float("nan")}, "crop_pct is a share"),
    "crop_pct_text": ({"crop_pct": "0.9"}, "crop_pct is a share"),
    "crop_pct_percent": ({"crop_pct": 90}, "crop_pct is a share"),
    "input_size_huge": ({"input_size": [3, 1_000_000, 1_000_000]}, "input_size asks for images of 1000000 x 1000000"),
    "input_size_wide": ({"input_size": [3, 64, 1_000_000]}, "input_size asks for images"),
    "input_size_channels": ({"input_size": [10**9, 64, 64]}, "input_size asks for images"),
    "input_size_zero": ({"input_size": [3, 0, 64]}, r"input_size must be \(channels, height, width\)"),
    "input_size_pair": ({"input_size": [64, 64]}, r"input_size must be \(channels, height, width\)"),
    "input_size_number": ({"input_size": 64}, r"input_size must be \(channels, height, width\)"),
    "input_size_float": ({"input_size": [3, 64.5, 64]}, r"input_size must be \(channels, height, width\)"),
    "test_input_size": ({"test_input_size": [3, 10**6, 10**6]}, "test_input_size asks for images"),
    "mean_nan": ({"mean": [float("nan"), 0.5, 0.5]}, "mean must be a list of finite numbers"),
    "mean_text": ({"mean": ["a", 0.5, 0.5]}, "mean must be a list of finite numbers"),
    "mean_number": ({"mean": 0.5}, "mean must be a list of finite numbers"),
    "mean_two": ({"mean": [0.5, 0.5]}, "mean has 2 values for images with 3 channels"),
    "std_zero": ({"std": [0.2, 0.0, 0.2]}, "std divides the images and must be above 0"),
    "std_negative": ({"std": [0.2, -1.0, 0.2]}, "std divides the images"),
    "std_infinite": ({"std": [0.2, float("inf"), 0.2]}, "std must be a list of finite numbers"),
    "img_size": ({"model_args": {"img_size": 1_000_000}}, "img_size asks for images of 1000000 x 1000000"),
    "img_size_text": ({"model_args": {"img_size": "big"}}, "img_size must be a side in pixels"),
    "scales": ({"model_args": {"scales": 9}}, "scales must be a whole number from 1 to 5, got 9"),
    "in_chans": ({"model_args": {"in_chans": -3}}, "(in_chans|input_size) must be"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_folders_are_refused_by_every_door(case, folders, tmp_path):
    changes, message = IMPOSSIBLE[case]
    ours = spoil(folders / "ours", tmp_path / "ours", changes)
    timms = spoil(folders / "timms", tmp_path / "timms", changes)
    for folder in (ours, timms):
        with pytest.raises(ValueError, match=message):
            load_classifier(folder)
    with pytest.raises((ValueError, TypeError), match=message.partition(" ")[0]):  # transformers checks some types
        SoftCAMForImageClassification.from_pretrained(ours)
    with pytest.raises(ValueError, match=message):
        timm.create_model(f"local-dir:{ours}")


@pytest.mark.parametrize("words", [["export", "--output", "x.onnx", "--model"], ["explain", "--model"]])
def test_commands_end_with_a_sentence_on_an_impossible_folder(words, folders, tmp_path, capsys):
    folder = spoil(folders / "ours", tmp_path / "ours", {"interpolation": "cubic"})
    if words[0] == "explain":
        picture = str(Path(softcam_hub.CAPE_LESIONS) / "examples.png")
        words = ["explain", picture, "--output", str(tmp_path / "out"), "--model"]
    assert main([*words, str(folder)]) == 1
    assert "unknown interpolation 'cubic': expected one of" in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown interpolation 'cubic'"):
        DemoModel(folder)


def test_possible_folders_load(folders, tmp_path):
    for number, changes in enumerate(
        [{"crop_pct": 1}, {"mean": [0.5], "std": [0.5]}, {"label_names": None}, {"interpolation": None}]
    ):
        for name in ("ours", "timms"):
            assert load_classifier(spoil(folders / name, tmp_path / f"{name}{number}", changes)).model.num_classes == 3


def test_every_description_of_timm_passes():
    for name in timm.list_models():
        for cfg in timm.models.get_arch_pretrained_cfgs(name).values():
            check_pretrained_cfg(cfg)
    check_pretrained_cfg(PretrainedCfg())
    check_pretrained_cfg(None)


CONFIGS = {
    "nothing": ("", "it is not valid JSON"),
    "cut off": ('{"architecture": "softcam_te', "it is not valid JSON"),
    "a list": ("[1]", "must hold names and values, but holds a list"),
    "null": ("null", "must hold names and values, but holds nothing"),
    "pretrained_cfg a list": ('{"architecture": "test_resnet", "pretrained_cfg": [1]}', "must map names to values"),
    "model_args a list": (
        '{"architecture": "test_resnet", "pretrained_cfg": {}, "model_args": [1]}',
        "model_args must",
    ),
    "unknown architecture": ('{"architecture": "resnot", "pretrained_cfg": {}}', "resnot"),
    "no architecture": ('{"num_classes": 3, "pretrained_cfg": {}}', "names no timm architecture"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_damaged_configurations_are_named(case, folders, tmp_path):
    text, message = CONFIGS[case]
    shutil.copytree(folders / "timms", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_classifier(tmp_path / "model")


@pytest.mark.parametrize("init", ["no/such/model", "nosuchmodel", "./here", "/nowhere/model", "a b/c"])
def test_a_folder_that_does_not_exist_is_said_not_to_exist(init):
    from softcam_hub.training.model import make_model
    from softcam_hub.training.run import load_splits

    config = make_config(model="softcam_test_resnet", init=init, data="lesions", train_count=8, eval_count=4)
    splits = load_splits(config.data)
    with pytest.raises(FileNotFoundError, match="there is no such folder; expected a model folder or a Hub id"):
        make_model(config, splits)


def test_a_hub_id_that_does_not_exist_is_said_to_be_no_folder_either(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["export", "--model", "nosuchfolder/x", "--output", "x.onnx"]) == 1
    assert (
        "there is no folder 'nosuchfolder/x' here, and the Hub gives no model of that name" in capsys.readouterr().err
    )


def test_a_checkpoint_of_cape_is_checked_as_one_of_softcam_is(tmp_path):
    changes = {"pretrained_cfg": {"std": [0.0, 0.0, 0.0]}}
    folder = spoil(softcam_hub.CAPE_LESIONS, tmp_path / "cape", changes)
    with pytest.raises(ValueError, match="std divides the images"):
        CAPEForImageClassification.from_pretrained(folder)
