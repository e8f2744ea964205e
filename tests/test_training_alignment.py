"""Where the cells of a trained model lie: measured at the end of a run, kept with a frozen backbone, and forgotten when
another loop trains the backbone."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.processes import finish, start
from helpers.shipped_model import load_shipped
from helpers.training import cut_off_at, train, weights
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

import softcam_hub
from softcam_hub import CAPE_LESIONS, CAPEForImageClassification
from softcam_hub.data.lesions import draw
from softcam_hub.data.samples import Samples
from softcam_hub.models.alignment import Alignment
from softcam_hub.models.images import UnreadableImage

SHIPPED = json.loads((Path(CAPE_LESIONS) / "config.json").read_text())["model_args"]["alignment"]
FROM_SHIPPED = dict(init=CAPE_LESIONS, model_args="", image_size=None, epochs=1, lr=1e-5)  # noqa: C408
FROM_SHIPPED |= dict(data="lesions", data_size=128, train_count=16, eval_count=24)  # noqa: C408
"""Settings of a run that hardly changes the shipped model."""


def alignment_of(output):
    """Return what the config.json of a result says about the place of its cells, and the metrics of the run."""
    args = json.loads((output / "model" / "config.json").read_text())["model_args"]
    return args.get("alignment"), json.loads((output / "metrics.json").read_text())


def train_from(folder, output, options):
    """Train in this process, which `start` has made."""
    train(output, **{**options, "init": folder})


@pytest.fixture
def without_alignment(tmp_path):
    """The shipped model as a folder in which nothing says where its cells lie."""
    folder = Path(shutil.copytree(CAPE_LESIONS, tmp_path / "unknown"))
    config = json.loads((folder / "config.json").read_text())
    del config["model_args"]["alignment"]
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_trained_backbone_is_measured_on_validation_images(tmp_path, capsys, monkeypatch):
    read, image = [], Samples.image
    monkeypatch.setattr(Samples, "image", lambda self, index: read.append(self.split) or image(self, index))
    seen, measure = [], softcam_hub.measure_alignment

    def measured(model, images):
        seen.append((len(images), set(read[-len(images) :])))
        return measure(model, images)

    monkeypatch.setattr("softcam_hub.training.alignment.measure_alignment", measured)
    metrics = train(tmp_path, **FROM_SHIPPED)
    assert seen == [(24, {"validation"})]
    alignment, written = alignment_of(tmp_path)
    assert written == metrics
    assert alignment["start"] != SHIPPED["start"]  # measured again, on other images
    assert alignment["start"] == pytest.approx(SHIPPED["start"], abs=1.2)  # pixels of cells of 8
    assert metrics["map_offset"] == pytest.approx([start / 8 - 0.5 for start in alignment["start"]], abs=1e-3)
    assert all(0.75 <= one <= 1 for one in metrics["map_offset_correlation"])
    assert "cells look -0." in capsys.readouterr().out
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert loaded.map_offset() == pytest.approx(metrics["map_offset"], abs=1e-3)
    assert not loaded.measures_on_first_use


@pytest.mark.slow
def test_a_run_that_was_resumed_has_the_same_place(tmp_path):
    options = {**FROM_SHIPPED, "epochs": 2}
    train(tmp_path / "whole", **options)
    with cut_off_at(2):
        train(tmp_path / "resumed", **options)
    train(tmp_path / "resumed", **options, resume=True)
    assert alignment_of(tmp_path / "resumed")[0] == alignment_of(tmp_path / "whole")[0]
    assert all(
        torch.equal(one, weights(tmp_path / "whole")[name]) for name, one in weights(tmp_path / "resumed").items()
    )


def test_training_that_ruins_the_features_leaves_no_stale_place(tmp_path, capsys):
    metrics = train(tmp_path, **{**FROM_SHIPPED, "lr": 3.0})
    alignment, _ = alignment_of(tmp_path)
    assert alignment["start"] == [None, None]
    assert metrics["map_offset"] is None
    assert min(metrics["map_offset_correlation"]) < 0.75
    assert "does not count" in capsys.readouterr().out


def test_an_image_that_cannot_be_read_costs_the_place_and_not_the_run(tmp_path, monkeypatch, caplog):
    def unreadable(*_):
        raise UnreadableImage("image 3 of split 'train' cannot be read")

    monkeypatch.setattr("softcam_hub.training.alignment._choose_images", unreadable)
    metrics = train(tmp_path, **FROM_SHIPPED)
    assert (metrics["map_offset"], metrics["map_offset_correlation"]) == (None, None)
    assert alignment_of(tmp_path) == (None, metrics)
    assert "could not be measured: image 3 of split 'train' cannot be read" in caplog.text


def test_a_moving_average_does_not_keep_the_place_of_before(tmp_path):
    train(tmp_path, **FROM_SHIPPED, ema=0.9)
    assert alignment_of(tmp_path)[0]["start"] != SHIPPED["start"]


def test_a_frozen_backbone_keeps_its_place(tmp_path, capsys):
    metrics = train(tmp_path, **FROM_SHIPPED, freeze_backbone=True)
    alignment, _ = alignment_of(tmp_path)
    assert alignment == SHIPPED
    assert metrics["map_offset"] == pytest.approx([start / 8 - 0.5 for start in SHIPPED["start"]])
    assert metrics["map_offset_correlation"] is None
    assert "the backbone was frozen" in capsys.readouterr().out


def test_a_frozen_backbone_without_a_place_is_measured(without_alignment, tmp_path):
    metrics = train(tmp_path / "run", **{**FROM_SHIPPED, "init": without_alignment}, freeze_backbone=True)
    assert alignment_of(tmp_path / "run")[0]["start"] == pytest.approx(SHIPPED["start"], abs=1.2)
    assert metrics["map_offset_correlation"] is not None


@pytest.mark.parametrize("streaming", [False, True])
def test_without_validation_images_training_images_are_measured_as_in_evaluation(streaming, tmp_path):
    options = {"streaming": True, "steps_per_epoch": 1} if streaming else {"hold_out": 0}
    metrics = train(tmp_path, **{**FROM_SHIPPED, "validation_split": ""}, **options)
    assert "validation_accuracy" not in metrics
    assert metrics["map_offset"] == pytest.approx([start / 8 - 0.5 for start in SHIPPED["start"]], abs=0.2)


def test_a_vanilla_run_and_maps_of_few_cells_have_no_place(vanilla_run, from_scratch_run):
    assert "map_offset" not in vanilla_run[1]
    assert from_scratch_run[1]["map_offset"] is None
    assert from_scratch_run[1]["map_offset_correlation"] == [0, 0]


@pytest.mark.slow
def test_two_processes_write_one_place(tmp_path):
    train_from(CAPE_LESIONS, tmp_path / "one", {**FROM_SHIPPED, "batch_size": 8})
    options = {**FROM_SHIPPED, "batch_size": 4}
    finish(start(train_from, CAPE_LESIONS, tmp_path / "two", options, processes=2))
    one, two = alignment_of(tmp_path / "one"), alignment_of(tmp_path / "two")
    assert two[0]["start"] == pytest.approx(one[0]["start"], abs=0.1)
    assert two[1]["map_offset"] == pytest.approx(one[1]["map_offset"], abs=0.02)


# Loops of other people.


def rows(count=8):
    """Return samples of the lesions as `Trainer` takes them."""
    model = load_shipped()
    made = [draw(index, "train", 128) for index in range(count)]
    return [{"pixel_values": model.as_batch(one.image)[0], "labels": one.label} for one in made]


def train_by_trainer(model, folder):
    quiet = {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "report_to": "none"}
    arguments = TrainingArguments(str(folder), per_device_train_batch_size=4, max_steps=2, save_strategy="no", **quiet)
    trainer = Trainer(model, arguments, train_dataset=rows())
    trainer.train()
    return trainer


def test_trainer_makes_the_place_stale_and_explain_measures_again(tmp_path, caplog):
    model = CAPEForImageClassification.from_pretrained(CAPE_LESIONS)
    trainer = train_by_trainer(model, tmp_path)
    assert model.alignment is None
    trainer.save_model(str(tmp_path / "saved"))  # without a place: measured on first use wherever it is loaded
    assert "alignment" not in json.loads((tmp_path / "saved" / "config.json").read_text())["model_args"]
    assert CAPEForImageClassification.from_pretrained(tmp_path / "saved").measures_on_first_use
    model.explain(draw(0, "test", 128).image)
    assert caplog.text.count("measuring once") == 1
    assert model.alignment is not None
    model.explain(draw(0, "test", 128).image)
    assert caplog.text.count("measuring once") == 1


def test_trainer_keeps_the_place_of_a_frozen_backbone(tmp_path):
    model = CAPEForImageClassification.from_pretrained(CAPE_LESIONS, freeze_backbone=True)
    train_by_trainer(model, tmp_path)
    assert model.alignment == Alignment.from_dict(SHIPPED)
    assert not model.measures_on_first_use


def step(model, images, **options):
    loss = F.cross_entropy(model(images, **options).float(), torch.tensor([0, 1]))
    loss.backward()
    torch.optim.SGD(model.parameters(), 0.01).step()


def two_images():
    return torch.stack([row["pixel_values"] for row in rows(2)])


@pytest.mark.parametrize("training", [True, False], ids=["training", "with fixed batch norms"])
def test_a_loop_over_a_timm_model_makes_the_place_stale(training):
    model = load_shipped().train(training)
    step(model, two_images())
    assert (model.alignment, model.measures_on_first_use) == (None, True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_gradients_alone_move_nothing(training):
    model, images = load_shipped().train(training), two_images().requires_grad_()
    with torch.no_grad():
        model(images)
    model(images)  # without a backward pass
    torch.autograd.grad(model(images)[:, 0].sum(), images)  # as saliency by gradients
    model(images)[:, 0].sum().backward()  # as explainers that leave gradients in the weights
    assert model.alignment == Alignment.from_dict(SHIPPED)
    torch.optim.SGD(model.head.parameters(), 0.01).step()
    assert model.alignment == Alignment.from_dict(SHIPPED), "the head alone was trained"
    torch.optim.SGD(model.parameters(), 0.01).step()
    assert model.alignment is None


@pytest.mark.parametrize("trained", ["bn1.weight", "layer3.0.bn2.bias", "layer1.0.conv1.weight"])
def test_no_weight_of_the_backbone_is_overlooked(trained):
    """Norms, biases and adapters may be trained alone."""
    model = load_shipped()
    step(model, two_images())
    model = load_shipped()
    loss = model(two_images())[:, 0].sum()
    loss.backward()
    weight = dict(model.backbone.named_parameters())[trained]
    torch.optim.SGD([weight], 0.1, weight_decay=0.1).step()
    assert model.alignment is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_change_of_precision_moves_nothing(dtype):
    model = load_shipped()
    model(two_images())[:, 0].sum().backward()
    model.to(dtype)
    assert model.alignment == Alignment.from_dict(SHIPPED)
    with torch.no_grad():
        model.backbone.layer2[0].conv1.weight.mul_(1.1)
    assert model.alignment is None, "in the new precision"


def test_loaded_weights_look_where_they_look(tmp_path):
    model = load_shipped()
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert model.alignment == Alignment.from_dict(SHIPPED), "they are the same weights"
    others = {
        name: value + 0.01 * value.abs() for name, value in model.state_dict().items() if value.is_floating_point()
    }
    model.load_state_dict({**model.state_dict(), **others})
    assert (model.alignment, model.measures_on_first_use) == (None, True)

    torch.save(load_shipped().state_dict(), tmp_path / "weights.pth")
    path = str(tmp_path / "weights.pth")
    fresh = timm.create_model("cape_test_resnet", num_classes=4, output_stride=8, avg_down=False, checkpoint_path=path)
    assert (fresh.alignment, fresh.measures_on_first_use) == (None, True), "they bring no place"


def test_a_frozen_backbone_keeps_its_place_in_a_loop():
    model = load_shipped().train()
    model.backbone.requires_grad_(False)
    step(model, two_images())
    assert model.alignment is not None


def test_a_trained_model_is_saved_without_its_old_place(tmp_path):
    model = CAPEForImageClassification.from_pretrained(CAPE_LESIONS)
    model(two_images(), labels=torch.tensor([0, 1])).loss.backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    model.save_pretrained(tmp_path / "saved")
    assert CAPEForImageClassification.from_pretrained(tmp_path / "saved").alignment is None


def test_a_configuration_keeps_its_alignment_when_a_model_is_made_of_it():
    config = CAPEForImageClassification.from_pretrained(CAPE_LESIONS).config
    assert AutoModelForImageClassification.from_config(config).alignment is None, "its weights are drawn anew"
    assert config.model_args["alignment"] == SHIPPED


@pytest.mark.slow
def test_a_compiled_model_trains_in_one_graph_and_is_exported_as_before():
    model = load_shipped().train()
    images = torch.stack([row["pixel_values"] for row in rows(2)])
    step(torch.compile(model, fullgraph=True, backend="aot_eager"), images)
    assert model.alignment is not None  # a compiled graph has no hooks: docs/training.md says what to do
    torch.export.export(model, (images,))
    assert model.alignment is not None
    step(torch.fx.symbolic_trace(model), images)


def test_hidden_states_and_intermediates_are_watched_too():
    model = CAPEForImageClassification.from_pretrained(CAPE_LESIONS).train()
    model(two_images(), labels=torch.tensor([0, 1]), output_hidden_states=True).loss.backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    assert model.alignment is None
    model = load_shipped().train()
    model.forward_intermediates(two_images())[0].sum().backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    assert model.alignment is None
