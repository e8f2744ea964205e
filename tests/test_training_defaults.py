"""What a run does on its own: it says what it starts from, holds images out, shows whole images, and scores its result."""

import logging

import pytest
import timm
import torch
import yaml
from datasets import Dataset as Table, DatasetDict
from helpers.data import load, manifest, manifest_text
from helpers.training import CLASSES, SIZE, settings, table, train
from PIL import Image
from timm.data import create_transform, resolve_data_config
from transformers import AutoImageProcessor, pipeline

import softcam_hub
from softcam_hub import CAPE_LESIONS
from softcam_hub.data.config import DataConfig
from softcam_hub.data.splits import Splits
from softcam_hub.data.transforms import make_transforms
from softcam_hub.evaluation.run import choose_split
from softcam_hub.loading import load_classifier
from softcam_hub.training.folder import continue_settings, write_settings
from softcam_hub.training.model import load_model, make_model
from softcam_hub.training.parsing import make_config, parse
from softcam_hub.training.results import data_config


def undivided(folder, labels=None):
    """Save a training split alone, and return its folder."""
    return table(folder, labels or [*CLASSES] * 10)


# A run without validation and test split.


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """A run of one epoch on a training split alone, with its log and its metrics."""
    root = tmp_path_factory.mktemp("plain")
    metrics = train(root / "run", draw=True, data=undivided(root / "data"), epochs=1, model="softcam_test_resnet")
    return root / "run", metrics


def test_the_result_is_scored_and_explained_on_held_out_images(plain_run):
    output, metrics = plain_run
    assert {f"validation_{name}" for name in ("accuracy", "loss", "auc", "kappa", "sparseness")} <= metrics.keys()
    assert not any(name.startswith("test_") for name in metrics)
    assert (output / "examples.png").is_file()
    card = (output / "model" / "README.md").read_text()
    assert f"| accuracy | {100 * metrics['validation_accuracy']:.1f} % |" in card


def test_the_scores_are_those_of_the_images_that_were_held_out(plain_run):
    output, metrics = plain_run
    recorded = yaml.safe_load((output / "settings.yaml").read_text())
    assert recorded["hold_out"] == 0.2
    splits = load(recorded["data"], hold_out=0.2)
    model = load_model(output / "model", splits).eval()
    transform = make_transforms(data_config(model))[1]
    pixels = torch.stack([transform(splits.validation.image(index)) for index in range(8)])
    with torch.no_grad():
        found = (model(pixels).logits.argmax(1) == torch.as_tensor(splits.validation.labels)).float().mean()
    assert float(found) == pytest.approx(metrics["validation_accuracy"])


def test_a_run_says_first_what_it_does_and_warns(tmp_path, capsys, caplog):
    options = {"data": undivided(tmp_path / "data"), "epochs": 2}
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "a", **options)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("32 training + 8 validation images, 4 classes, cpu; cape_test_resnet from random weights; ")
    assert first.endswith(" parameters are trained in 8 updates")
    assert "WARNING: cape_test_resnet starts from random weights, and 32 images of 4 classes are few" in caplog.text
    assert "has no validation split: 8 of its 40 training images are held out for validation (20 % of" in caplog.text


def test_trained_weights_and_data_that_are_not_divided_give_no_warning(tmp_path, capsys, caplog):
    options = {"data": "lesions", "train_count": 16, "data_size": SIZE, "validation_split": "", "test_split": ""}
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "a", **options, epochs=1, init=CAPE_LESIONS, model_args="", image_size=None)
    assert "starts from" not in caplog.text
    assert "held out" not in caplog.text
    out = capsys.readouterr().out
    assert out.startswith(
        f"16 training images, 4 classes, cpu; cape_test_resnet from {CAPE_LESIONS} with its classifier; "
    )
    assert "no image was held out, so that the result has no scores: set --hold-out" in out


def test_the_number_of_trained_parameters_leaves_out_what_is_frozen(tmp_path, capsys):
    options = {"data": undivided(tmp_path / "data"), "epochs": 1, "freeze_backbone": True, "augment": False}
    train(tmp_path / "a", model="softcam_test_resnet", **options)
    assert f"; {96 * 4 + 4} of " in capsys.readouterr().out.splitlines()[0]


def test_images_with_several_labels_are_explained_too(tmp_path):
    pictures = [Image.new("RGB", (SIZE, SIZE), (20 * index, 90, 40)) for index in range(12)]
    labels = [[index % 2, 1, 0] for index in range(12)]
    DatasetDict({"train": Table.from_dict({"image": pictures, "labels": labels})}).save_to_disk(tmp_path / "data")
    options = {"data": str(tmp_path / "data"), "epochs": 1, "batch_size": 4}
    metrics = train(tmp_path / "run", draw=True, model="softcam_test_resnet", **options)
    assert "validation_auc" in metrics or "validation_accuracy" in metrics
    assert (tmp_path / "run" / "examples.png").is_file()


# Measuring afterwards.


def test_the_best_held_out_split_is_measured(tmp_path, caplog):
    cells = [f"{name},{split}" for name in "ab" for split in ("train", "train", "validation", "test")]
    path = manifest(tmp_path, manifest_text(*cells, header="image,label,split"))
    data = DataConfig(str(path))
    assert choose_split(load(path), data, "") == "test"
    assert choose_split(load(path), data, "train") == "train"
    with caplog.at_level(logging.WARNING):
        assert choose_split(load(path, test_split=""), data, "") == "validation"
    assert "there is no test split" in caplog.text
    assert "has validation and train images, and the validation images are measured" in caplog.text
    with pytest.raises(ValueError, match="there is no test split: .* has validation and train images; choose one of"):
        choose_split(load(path, test_split=""), data, "test")
    with pytest.raises(ValueError, match="no image was held out: .* has train images, from which a model may have"):
        choose_split(load(path, test_split="", validation_split=""), data, "")


# Whole images, the same through every door.


def picture(size=(90, 40)):
    values = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(values.to(torch.uint8).numpy())


@pytest.mark.parametrize("resize", [None, "squash", "pad", "crop"])
@pytest.mark.parametrize("model", ["softcam_test_resnet", "test_resnet"])
def test_every_door_prepares_images_as_training_did(model, resize, tmp_path):
    config = make_config(model=model, image_size=64, resize=resize, data="lesions")
    made = make_model(config, Splits(None, None, None, CLASSES, False))
    made.save_pretrained(tmp_path)
    expected = make_transforms(data_config(made), config.augmentation)[1](picture())
    found = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    doors = {
        "timm": create_transform(**resolve_data_config({}, model=found))(picture()),
        "timm validation": create_transform(**resolve_data_config({}, model=found, use_test_size=True))(picture()),
        "ours": create_transform(**load_classifier(tmp_path).preprocessing)(picture()),
        "transformers": AutoImageProcessor.from_pretrained(tmp_path)(picture())["pixel_values"][0],
    }
    if model != "test_resnet":
        doors["pipeline"] = pipeline("image-explanation", model=str(tmp_path)).preprocess(picture())["images"][0]
        ours = softcam_hub.SoftCAMForImageClassification.from_pretrained(tmp_path).eval()
        assert torch.equal(ours.explain(picture()).maps, ours.explain(expected[None]).maps)
    assert all(torch.equal(pixels, expected) for pixels in doors.values())
    mode = {None: "squash", "pad": "border", "crop": "center"}.get(resize, resize)
    assert (found.pretrained_cfg["crop_mode"], found.pretrained_cfg["crop_pct"]) == (
        mode,
        0.95 if resize == "crop" else 1,
    )


def test_a_kept_classifier_sees_images_as_it_did_before(tmp_path):
    for resize, mode in {"pad": "border", "squash": "squash", "crop": "center"}.items():
        config = make_config(model="test_resnet", image_size=64, resize=resize)
        make_model(config, Splits(None, None, None, CLASSES, False)).save_pretrained(tmp_path / resize)
        start = {"model": "cape_test_resnet", "init": str(tmp_path / resize)}
        for classes, expected in ((CLASSES, mode), (["a", "b"], "squash")):
            made = make_model(make_config(**start), Splits(None, None, None, classes, False))
            assert made.pretrained_cfg["crop_mode"] == expected


# Runs that began with other defaults.


def record_older_run(output, **changes):
    """Write the settings of a run as the release before recorded them."""
    write_settings(settings(output, **{"crop_scale": 0.08, "hold_out": 0.0, **changes}))
    file = output / "settings.yaml"
    older = yaml.safe_load(file.read_text())
    del older["resize"]
    file.write_text(yaml.safe_dump(older))
    return file


def test_an_older_run_continues_with_what_it_recorded(tmp_path):
    record_older_run(tmp_path)
    for _ in range(2):
        config = continue_settings(settings(tmp_path, resume=True))
        assert (config.augmentation.crop_scale, config.augmentation.resize, config.data.hold_out) == (
            0.08,
            "model",
            0.0,
        )
        write_settings(config)
    for name, value in {"crop_scale": 0.5, "resize": "pad", "hold_out": 0.3}.items():
        with pytest.raises(ValueError, match=f"cannot resume: .* says {name}=.*, but now it is {value!r}"):
            continue_settings(settings(tmp_path, resume=True, **{name: value}))


def test_an_older_run_is_repeated_with_the_images_that_it_saw(tmp_path):
    config = parse(["--recipe", str(record_older_run(tmp_path))])
    assert (config.augmentation.crop_scale, config.augmentation.resize, config.data.hold_out) == (0.08, "model", 0.0)
    (tmp_path / "mine.yaml").write_text("model: cape_test_resnet\ncrop_scale: 0.5\n")
    assert parse(["--recipe", str(tmp_path / "mine.yaml")]).augmentation.resize is None
    assert parse(["--recipe", f"{CAPE_LESIONS}/recipe.yaml"]).augmentation.resize == "model"
