"""Training with several scales: maps that learn from larger images, and the rate of finer features."""

import copy
import json
from itertools import product
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.training import CLASSES, equal, train, weights
from safetensors.torch import save_file

from softcam_hub.models.modeling import CAPEForImageClassification, SoftCAMForImageClassification
from softcam_hub.training import make_config
from softcam_hub.training.feature_cache import cache_key
from softcam_hub.training.larger_images import LargerImages, difference_of_maps
from softcam_hub.training.metrics import shares_of_depths
from softcam_hub.training.model import make_model as make_model_of
from softcam_hub.training.optimization import make_optimizer, make_schedule
from softcam_hub.training.reporting import read_log

FINE = {"model": "softcam_test_resnet", "model_args": "scales=3", "image_size": 64, "optimizer": "adamw", "lr": 0.002}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Folder of a finished run with three scales. Do not change it."""
    output = tmp_path_factory.mktemp("runs") / "first"
    train(output, **FINE)
    return output


def make_model(scales=3):
    torch.manual_seed(0)
    return SoftCAMForImageClassification.from_timm(
        "softcam_test_resnet", False, num_labels=3, model_args={"scales": scales}
    )


def test_maps_learn_where_the_larger_ones_lie_and_nothing_of_their_means():
    maps, target = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 12, 16)
    reduced = torch.zeros(2, 3, 8, 8)
    for row in range(8):
        for column in range(8):
            rows = slice(row * 12 // 8, -(-(row + 1) * 12 // 8))
            reduced[:, :, row, column] = target[:, :, rows, 2 * column : 2 * column + 2].mean(dim=(2, 3))
    centred = reduced - reduced.mean(dim=(2, 3), keepdim=True)
    ours = maps - maps.mean(dim=(2, 3), keepdim=True)
    loss = difference_of_maps(maps, target)
    torch.testing.assert_close(loss, ((ours - centred) ** 2).mean() / (centred**2).mean())
    loss.backward()
    assert maps.grad.mean(dim=(2, 3)).abs().max() < 1e-6 * maps.grad.abs().max()
    torch.testing.assert_close(difference_of_maps(reduced + 5, target), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert difference_of_maps(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 8, 8)) == 0, "a flat target teaches nothing"


def test_shares_of_depths_by_hand():
    terms = [torch.tensor([[[[-3.0]]]]), torch.tensor([[[[1.0, -1.0], [0.0, 2.0]]]]), torch.zeros(1, 1, 4, 4)]
    shares = shares_of_depths(terms, 32.0)
    assert {name: float(share) for name, share in shares.items()} == {
        "evidence_share_at_stride_32": 0.75,
        "evidence_share_at_stride_16": 0.25,
        "evidence_share_at_stride_8": 0.0,
    }


def test_the_teacher_is_a_frozen_copy_for_larger_images():
    model = make_model().train()
    larger = LargerImages(model, 96)
    x = torch.randn(2, 3, 64, 64)
    twin = copy.deepcopy(model).eval()
    enlarged = F.interpolate(x, size=(96, 96), mode="bicubic", align_corners=False)
    with torch.no_grad():
        expected = twin(enlarged).maps
        model.head.weight.zero_()
        torch.testing.assert_close(larger.maps(x), expected)
    assert not any(weight.requires_grad for weight in larger.teacher.parameters())
    assert model.training
    assert not larger.teacher.training


def test_a_run_learns_from_larger_images_and_resumes_to_the_bit(first, tmp_path, monkeypatch):
    options = {**FINE, "init": str(first / "model"), "teach_from_size": 96, "epochs": 2}
    plain, taught = tmp_path / "plain", tmp_path / "taught"
    train(plain, **{**options, "teach_from_size": None})
    train(taught, **options)
    assert not equal(weights(plain), weights(taught))
    losses = [read_log(folder / "log.jsonl")[0]["loss"] for folder in (plain, taught)]
    assert losses[1] > losses[0] + 0.01, "the difference from the maps of larger images is part of the loss"
    assert weights(taught).keys() == weights(first).keys(), "the teacher is no part of the result"

    broken = tmp_path / "broken"
    calls = []
    maps = LargerImages.maps

    def until_the_second_epoch(self, images):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return maps(self, images)

    monkeypatch.setattr(LargerImages, "maps", until_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(broken, **options)
    monkeypatch.undo()
    moved = first / "model" / "model.safetensors"
    kept = moved.read_bytes()
    other = timm.create_model("softcam_test_resnet", num_classes=4, scales=3)
    save_file(other.state_dict(), moved)
    with pytest.raises(ValueError, match="draws the maps of larger images, and is not what it was"):
        train(broken, **options, resume=True)
    moved.write_bytes(kept)
    train(broken, **options, resume=True)
    assert equal(weights(broken), weights(taught))


def test_a_run_keeps_its_scales(first):
    config = json.loads((first / "model" / "config.json").read_text())
    assert config["model_args"]["scales"] == 3
    scores = json.loads((first / "metrics.json").read_text())
    shares = [scores[f"test_evidence_share_at_stride_{stride}"] for stride in (32, 16, 8)]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    assert "evidence share at stride 8" in (first / "model" / "README.md").read_text()
    model = timm.create_model(f"local-dir:{first / 'model'}", pretrained=True)
    assert model.reads_finer, "finer features have learnt"
    assert model.explain(torch.randn(1, 3, 64, 64)).maps.shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("source", "mode"),
    [
        *product(["vanilla", "softcam, one scale", "softcam, three scales"], ["direct", "from-scratch", "post-fit"]),
        ("cape, one scale", "direct"),  # it has no teacher for the other modes without one that is saved with it
    ],
)
def test_several_scales_begin_from_any_trained_classifier(source, mode, vanilla_run, tmp_path):
    name, _, scales = source.partition(", ")
    folder = vanilla_run[0] / "model"
    if name != "vanilla":
        vanilla = timm.create_model(f"local-dir:{folder}", pretrained=True)
        model_class = {"softcam": SoftCAMForImageClassification, "cape": CAPEForImageClassification}[name]
        count = {"one scale": 1, "three scales": 3}[scales]
        folder = tmp_path / "source"
        model_class.from_timm(vanilla, model_args={"scales": count}).save_pretrained(folder)
    config = make_config(data="lesions", model="cape_test_resnet", model_args="scales=3", init=str(folder), mode=mode)
    splits = SimpleNamespace(classes=CLASSES, multi_label=False)
    model = make_model_of(config, splits)
    assert [one.ratio for one in model.anatomy.finer] == [2, 4]
    assert model.config.model_args["scales"] == 3
    trained = timm.create_model(f"local-dir:{vanilla_run[0] / 'model'}", pretrained=True)
    assert torch.equal(model.head.weight, trained.fc.weight)
    assert not model.head.fine_weight.any()


def test_a_run_without_scales_does_not_begin_from_one_with_them(first):
    config = make_config(data="lesions", model="softcam_test_resnet", init=str(first / "model"), image_size=64)
    assert make_model_of(config, SimpleNamespace(classes=CLASSES, multi_label=False)).anatomy.finer, "as it was saved"
    config = make_config(data="lesions", **{**FINE, "model_args": "scales=2"}, init=str(first / "model"))
    with pytest.raises(ValueError, match="was made with scales=3, but model_args and image_size make it 2"):
        make_model_of(config, SimpleNamespace(classes=CLASSES, multi_label=False))


@pytest.mark.parametrize("mode", ["from-scratch", "post-fit"])
def test_the_teacher_of_cape_is_a_vanilla_classifier(mode, vanilla_run, tmp_path):
    options = {**FINE, "model": "cape_test_resnet", "mode": mode, "augment": False}
    start = {"init": str(vanilla_run[0] / "model"), "image_size": 32} if mode == "post-fit" else {}
    train(tmp_path / "run", **{**options, **start})
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True)
    assert model.reads_finer
    assert (tmp_path / "run" / "vanilla" / "model.safetensors").is_file()
    vanilla = timm.create_model(f"local-dir:{tmp_path / 'run' / 'vanilla'}", pretrained=True)
    assert vanilla.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 4)


def test_features_of_other_scales_are_other_features():
    images = SimpleNamespace(transform="t", samples=SimpleNamespace(fingerprint=lambda: "f"))
    one, three = make_model(1), make_model(3)
    three.load_state_dict({**three.state_dict(), **one.state_dict()})
    keys = {cache_key(model, images, "no") for model in (one, three, make_model(3))}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "cape_test_resnet"}, "an option of models whose maps average to the logits.*'cape_test_resnet'"),
        ({"model": "test_resnet", "model_args": ""}, "an option of models whose maps average to the logits"),
        ({"init": None}, "teach_from_size needs a trained model.*name it in init"),
        ({"freeze_backbone": True}, "changes nothing in a frozen backbone"),
        ({"teach_from_size": 64}, "teach_from_size must be above image_size=64, got 64"),
    ],
)
def test_what_does_not_fit_is_refused(changes, sentence):
    settings = {**FINE, "data": "lesions", "init": "somewhere", "teach_from_size": 96, **changes}
    with pytest.raises(ValueError, match=sentence):
        make_config(**settings)


def test_a_vanilla_classifier_has_one_scale():
    with pytest.raises(ValueError, match="a vanilla classifier has one scale: train softcam_test_resnet or leave"):
        make_config(data="lesions", model="test_resnet", model_args="scales=3")


def test_a_fresh_head_cannot_teach(first, tmp_path):
    file = tmp_path / "weights.pth"
    vanilla = timm.create_model("test_resnet", num_classes=7)
    torch.save(vanilla.state_dict(), file)
    with pytest.raises(ValueError, match="has none: train one first, and name its folder in init"):
        train(tmp_path / "run", **FINE, init=str(file), teach_from_size=96)
    with pytest.raises(ValueError, match="must be above the size of the images, 64 px, got 48"):
        train(tmp_path / "run", **{**FINE, "image_size": None}, init=str(first / "model"), teach_from_size=48)
    assert not (tmp_path / "run").exists()


def test_finer_features_have_a_rate_of_their_own():
    model = make_model()
    settings = make_config(data="lesions", **{**FINE, "lr": 0.5}, fine_lr_scale=10.0, warmup_epochs=1, epochs=4)
    optimizer = make_optimizer(model, settings.optimization)
    schedule = make_schedule(optimizer, settings.optimization, updates=10)
    schedule(20)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    assert rates.keys() == {id(one) for one in model.parameters()}
    assert rates[id(model.head.fine_weight)] == pytest.approx(10 * rates[id(model.head.weight)])
    assert len({*rates.values()}) == 2
    with pytest.raises(ValueError, match="fine_lr_scale is the rate of finer features, and this model reads none"):
        make_optimizer(make_model(scales=1), settings.optimization)
