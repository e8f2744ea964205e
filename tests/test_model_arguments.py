"""`model_args` and files of weights: what says where weights are is used once; the rest survives save and load."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from softcam_hub import CAPEConfig, CAPEForImageClassification, SoftCAMForImageClassification
from softcam_hub.data.splits import load_splits
from softcam_hub.loading import load_classifier
from softcam_hub.models.saved_format import FORMAT_OF_ONE_SCALE
from softcam_hub.models.weights import SOURCES
from softcam_hub.training.checks import check_reloads
from softcam_hub.training.model import make_model
from softcam_hub.training.parsing import make_config
from softcam_hub.training.run import run

CLASSES = 4  # of the generated lesions
TINY = {"data": "lesions", "train_count": 8, "eval_count": 4}
MODELS = ("test_resnet", "softcam_test_resnet", "cape_test_resnet")


@pytest.fixture(scope="module")
def splits():
    return load_splits(make_config(**TINY).data)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of weights: of a vanilla model with other classes, with those of the data, and damaged ones."""
    root = tmp_path_factory.mktemp("files")
    torch.manual_seed(7)
    for name, classes in {"ten": 10, "four": CLASSES}.items():
        state_dict = timm.create_model("test_resnet", num_classes=classes).state_dict()
        save_file({key: value.contiguous() for key, value in state_dict.items()}, root / f"{name}.safetensors")
        torch.save({"state_dict": state_dict, "epoch": 3}, root / f"{name}.pth")
    state_dict.pop("fc.weight")
    save_file({key: value.contiguous() for key, value in state_dict.items()}, root / "headless.safetensors")
    whole = (root / "four.safetensors").read_bytes()
    (root / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (root / "cut.pth").write_bytes((root / "four.pth").read_bytes()[:500])
    (root / "text.pth").write_text("no weights")
    torch.save(Path("code"), root / "pickle.pth")
    torch.save(torch.zeros(3), root / "tensor.pth")
    other = timm.create_model("test_convnext", num_classes=10).state_dict()
    save_file({key: value.contiguous() for key, value in other.items()}, root / "other.safetensors")
    ours = timm.create_model("softcam_test_resnet", num_classes=CLASSES).state_dict()
    save_file({key: value.contiguous() for key, value in ours.items()}, root / "ours.safetensors")
    return root


def make(splits, **settings):
    return make_model(make_config(**TINY, **settings), splits)


def backbone_of(model):
    weights = getattr(model, "vanilla", getattr(model, "backbone", None)).state_dict()
    return {key: value for key, value in weights.items() if not key.startswith("fc.")}


# Where weights come from.


def overlay(file):
    return f'pretrained_cfg_overlay={{"file":"{file}","num_classes":10}}'


@pytest.mark.parametrize("model", MODELS)
def test_an_overlay_gives_weights_and_leaves_no_trace(model, files, splits, tmp_path):
    made = make(splits, model=model, pretrained=True, model_args=overlay(files / "ten.safetensors"))
    expected = timm.models.load_state_dict(str(files / "ten.safetensors"))
    assert all(torch.equal(value, expected[key]) for key, value in backbone_of(made).items())
    made.save_pretrained(tmp_path)
    assert "ten.safetensors" not in (tmp_path / "config.json").read_text()
    assert load_classifier(tmp_path).model.num_classes == CLASSES
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == CLASSES


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"model": "cape_test_resnet", "mode": "from-scratch"}, {"model": "softcam_test_resnet"}]
)
def test_a_run_that_starts_from_an_overlay_ends_with_a_model_that_loads(settings, files, tmp_path):
    short = {"image_size": 64, "epochs": 1, "batch_size": 4, "output": str(tmp_path / "run"), "hold_out": 0.25}
    run(make_config(**TINY, **short, **settings, pretrained=True, model_args=overlay(files / "ten.safetensors")))
    assert load_classifier(tmp_path / "run" / "model").model.num_classes == CLASSES
    assert "ten.safetensors" not in (tmp_path / "run" / "model" / "config.json").read_text()


@pytest.mark.parametrize("name", SOURCES)
def test_a_configuration_does_not_keep_where_weights_are(name):
    config = CAPEConfig(
        architecture="cape_test_resnet", num_labels=3, model_args={name: "/home/ada/x", "drop_rate": 0.1}
    )
    assert config.to_dict()["model_args"] == {"drop_rate": 0.1, "format": FORMAT_OF_ONE_SCALE}


def test_from_timm_takes_an_overlay_and_a_cache(files, tmp_path):
    args = {"pretrained_cfg_overlay": {"file": str(files / "ten.safetensors"), "num_classes": 10}}
    args["cache_dir"] = str(tmp_path / "cache")
    made = SoftCAMForImageClassification.from_timm("softcam_test_resnet", num_labels=3, model_args=args)
    made.save_pretrained(tmp_path / "model")
    assert SoftCAMForImageClassification.from_pretrained(tmp_path / "model").num_classes == 3
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()


# A file as `init`.


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_of_weights_is_started_from(model, suffix, files, splits, tmp_path):
    expected = timm.models.load_state_dict(str(files / "four.safetensors"))
    made = make(splits, model=model, init=str(files / f"four.{suffix}"))
    assert all(torch.equal(value, expected[key]) for key, value in backbone_of(made).items())
    head = made.vanilla.fc if hasattr(made, "vanilla") else made.head
    assert torch.equal(head.weight.flatten(1), expected["fc.weight"])
    made.save_pretrained(tmp_path)
    assert f"four.{suffix}" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("model", MODELS)
def test_a_file_for_other_classes_gives_its_backbone_and_a_fresh_head(model, files, splits):
    expected = timm.models.load_state_dict(str(files / "ten.safetensors"))
    made = make(splits, model=model, init=str(files / "ten.safetensors"))
    assert all(torch.equal(value, expected[key]) for key, value in backbone_of(made).items())
    assert made.probabilities(torch.zeros(1, CLASSES)).shape == (1, CLASSES)


def test_a_file_gives_cape_its_teacher(files, splits):
    expected = timm.models.load_state_dict(str(files / "four.safetensors"))
    made = make(splits, model="cape_test_resnet", mode="post-fit", init=str(files / "four.safetensors"))
    assert torch.equal(made.teacher.weight, expected["fc.weight"])
    with pytest.raises(ValueError, match="mode 'post-fit' fits CAPE to a trained classifier"):
        make(splits, model="cape_test_resnet", mode="post-fit", init=str(files / "ten.safetensors"))


def test_a_file_of_our_weights_is_started_from(files, splits):
    expected = timm.models.load_state_dict(str(files / "ours.safetensors"))
    made = make(splits, model="softcam_test_resnet", init=str(files / "ours.safetensors"))
    assert all(torch.equal(value, expected[key]) for key, value in made.state_dict().items())


UNREADABLE = {
    "cut.safetensors": "holds no weights that can be read",
    "cut.pth": "holds no weights that can be read",
    "text.pth": "holds no weights that can be read",
    "pickle.pth": "holds no weights that can be read",
    "tensor.pth": "holds no weights that can be read",
    "headless.safetensors": "cannot be made from",
    "other.safetensors": "cannot be made from",
}


@pytest.mark.parametrize("model", ["test_resnet", "softcam_test_resnet"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_files_that_do_not_hold_these_weights_are_refused(model, name, files, splits):
    with pytest.raises(ValueError, match=UNREADABLE[name]):
        make(splits, model=model, init=str(files / name))


def test_our_weights_are_refused_for_a_black_box(files, splits):
    with pytest.raises(ValueError, match="cannot be made from"):
        make(splits, model="test_resnet", init=str(files / "ours.safetensors"))


# Other arguments.

REFUSED = {
    "pretrained=true": "set --pretrained",
    "num_classes=7": "comes from the data",
    "checkpoint_path=x.pth": "give the file to --init",
    "features_only=true": "a classifier is trained",
    "out_indices=[1]": "a classifier is trained",
    "device=cpu": "accelerate",
    "dtype=float16": "--mixed-precision",
    "drop_rate=2024-01-01": "cannot be saved in config.json",
    "block_args={1:2}": "cannot be saved in config.json",
    "img_size=1000000": "img_size asks for images",
    "img_size=big": "img_size must be",
    "in_chans=0": "in_chans must be",
    "drop_rate={": "is not valid YAML",
    'pretrained_cfg_overlay={"architecture":"test_vit"}': "name it with --model",
    "pretrained_cfg_overlay=x.pth": "must map names to values",
    'pretrained_cfg_overlay={"file":"x.pth"}': "only loaded with --pretrained",
    'pretrained_cfg_overlay={"crop_pct":0.0001}': "would resize images",
    'pretrained_cfg_overlay={"interpolation":"cubic"}': "unknown interpolation 'cubic'",
}


@pytest.mark.parametrize("model", ["test_resnet", "cape_test_resnet"])
@pytest.mark.parametrize("argument", REFUSED)
def test_what_is_no_argument_of_an_architecture_is_refused_by_name(model, argument):
    with pytest.raises(ValueError, match=REFUSED[argument]):
        make_config(**TINY, model=model, model_args=argument)


@pytest.mark.parametrize("model", ["test_resnet", "softcam_test_resnet"])
@pytest.mark.parametrize("argument", ["nosuch=3", "output_stride=7", "layers=3", 'channels={"a":1}'])
def test_what_timm_does_not_take_is_a_sentence(model, argument, splits):
    with pytest.raises(ValueError, match=r"model_args .* cannot be made"):
        make(splits, model=model, model_args=argument)


def test_an_argument_that_is_not_recorded_is_named(splits):
    made = make(splits, model="softcam_test_resnet")
    made.config.model_args = {"drop_rate": 0.1, "in_chans": 4}
    with pytest.raises(ValueError, match="made with in_chans=4 can be saved, but not loaded again"):
        check_reloads(made, {"drop_rate": 0.1, "in_chans": 4})


@pytest.mark.parametrize("model", [*MODELS, "softcam_test_vit", "test_vit", "cape_test_convnext"])
def test_ordinary_arguments_survive_save_and_load(model, splits, tmp_path):
    argument = "output_stride=8 drop_path_rate=0.1" if "conv" in model else "drop_rate=0.1 drop_path_rate=0.1"
    made = make(splits, model=model, model_args=argument, image_size=64)
    made.save_pretrained(tmp_path)
    if model not in ("test_resnet", "test_vit"):  # timm records what changes the weights of its own models
        assert json.loads((tmp_path / "config.json").read_text())["model_args"]["drop_path_rate"] == 0.1
    assert load_classifier(tmp_path).model.num_classes == CLASSES


def test_the_trial_leaves_random_numbers_alone(splits):
    made = make(splits, model="cape_test_resnet")
    before = torch.get_rng_state()
    check_reloads(made, {"drop_rate": 0.1})
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(made, CAPEForImageClassification)
