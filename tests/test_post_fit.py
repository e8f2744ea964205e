"""Post-fitting in one call: the weights of a run with the same settings, less disagreement, and nothing else changed."""

import json
import logging
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomise
from helpers.post_fit import FAST, cape, differences, largest_difference, noise, states, vanilla_model
from helpers.random_weights import SMALL_CLIP
from helpers.training import equal, part, settings, train, weights
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModel

import softcam_hub
from softcam_hub import (
    CAPE_LESIONS,
    CAPEForImageClassification,
    SoftCAMForImageClassification,
    post_fit,
    post_fitting,
)
from softcam_hub.data import load_lesions
from softcam_hub.data.samples import ImageDataset
from softcam_hub.data.splits import load_splits
from softcam_hub.data.transforms import make_transforms
from softcam_hub.loading import load_classifier
from softcam_hub.models.heads import CAPEHead
from softcam_hub.models.losses import Bootstrap
from softcam_hub.post_fitting import LARGEST_GRADIENT, _divide
from softcam_hub.training import parse
from softcam_hub.training.config import OptimizationConfig
from softcam_hub.training.feature_cache import store_features
from softcam_hub.training.head_fit import HeadFit
from softcam_hub.training.optimization import EpochSampler

pytestmark = pytest.mark.filterwarnings("ignore::softcam_hub.models.weights.OffTheShelfWarning")


@pytest.fixture(scope="module")
def lesions():
    """A linear probe of features that know lesions, normalised images to learn from, and labelled others."""
    backbone = timm.create_model(f"local-dir:{CAPE_LESIONS}", pretrained=True).eval()
    rows = {split: load_lesions(split, count, 128) for split, count in (("train", 96), ("validation", 80))}
    pixels = {split: backbone.as_batch(table["image"]) for split, table in rows.items()}
    labels = {split: torch.tensor(table["label"]) for split, table in rows.items()}
    with torch.no_grad():
        pooled = backbone.forward_features(pixels["train"]).mean(dim=(2, 3))
    linear = torch.nn.Linear(pooled.shape[1], 4)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(pooled), labels["train"]) + 1e-3 * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    vanilla = softcam_hub.to_vanilla(backbone)
    vanilla.get_classifier().load_state_dict(linear.state_dict())
    return vanilla, pixels["train"], pixels["validation"], labels["validation"]


@pytest.mark.slow
@torch.no_grad()
def test_it_predicts_the_classes_of_the_vanilla_classifier(lesions):
    vanilla, images, others, labels = lesions
    model = softcam_hub.convert(vanilla, "cape").eval()
    expected, before = vanilla(others).argmax(dim=1), model(others).argmax(dim=1)

    with torch.enable_grad():
        result = post_fit(model, images, epochs=150)

    found = model(others).argmax(dim=1)
    agreement = [float((one == expected).float().mean()) for one in (before, found)]
    accuracy = [float((one == labels).float().mean()) for one in (before, found, expected)]
    assert agreement[0] < 0.5 < 0.75 < agreement[1]
    assert accuracy[0] < 0.5 < 0.75 < accuracy[1] <= accuracy[2]
    assert result.divergence < result.divergence_before / 3
    assert result.disagreement < result.disagreement_before
    explanation = model.explain(others[:4], top_k=4)
    assert (explanation.maps.sum(dim=(2, 3)) - explanation.probabilities).abs().max() < 1e-5


def test_the_weights_are_those_of_a_run_with_the_same_settings(vanilla_run, tmp_path):
    options = {"mode": "post-fit", "augment": False, "epochs": 6, "lr": 0.1, "weight_decay": 0.0, "clip_grad": 1.0}
    options |= {"warmup_epochs": 0.2, "temperature": 3.0, "seed": 5, "validation_split": "", "hold_out": 0.0}
    init = str(vanilla_run[0] / "model")
    train(tmp_path / "run", init=init, **options)
    expected = part(weights(tmp_path / "run"), "head.")
    vanilla = load_classifier(init)
    splits = load_splits(settings(tmp_path / "unused", init=init, **options).data)
    images = ImageDataset(splits.train, make_transforms(vanilla.preprocessing)[1])

    fit = partial(post_fit, images=images, temperature=3.0, epochs=6, batch_size=8, hold_out=0.0)
    model = softcam_hub.convert(vanilla.model, "cape")
    result = fit(model, seed=5)

    assert result.images == 50
    assert result.held_out == 0
    start = softcam_hub.convert(vanilla.model, "cape").state_dict()
    moved = largest_difference(start, expected)
    assert moved > 1e-2
    assert largest_difference(model.state_dict(), expected) < 1e-4 * moved, "up to the order of sums"
    other = softcam_hub.convert(vanilla.model, "cape")
    fit(other, seed=6)
    assert largest_difference(other.state_dict(), expected) > 1e-3 * moved, "another order of images"


def test_the_settings_are_those_of_the_recipe(monkeypatch):
    seen = []
    monkeypatch.setattr(HeadFit, "run", lambda self, images, settings, seed: seen.append((self.bootstrap, settings)))
    recipe = parse(["--recipe=lesions-cape-pf"])
    post_fit(cape(), noise(1, 32).expand(1280, -1, -1, -1))
    post_fit(cape(), noise(20))
    post_fit(cape(), noise(20), epochs=60)
    [(bootstrap, used), (_, with_few_images), (_, chosen)] = seen
    assert used == replace(recipe.optimization, clip_grad=1.0)
    assert with_few_images == replace(used, epochs=1000, batch_size=18, warmup_epochs=1000 / 30)
    assert chosen == replace(used, epochs=60, batch_size=18, warmup_epochs=2)
    assert bootstrap.weights == recipe.model._bootstrap().weights == (0, 1)
    assert bootstrap.temperature == recipe.model.temperature == 2
    assert not bootstrap.selective


@pytest.mark.parametrize(("clip_grad", "learns"), [(LARGEST_GRADIENT, True), (None, False)])
def test_large_features_need_the_clipped_gradient(clip_grad, learns, tmp_path):
    features = (torch.randn(64, 128, 1, 1) + torch.randn(64, 128, 4, 4)).relu()
    features *= (3000 / features.square().sum(dim=1).mean()).sqrt()
    teacher = torch.nn.Linear(128, 50).requires_grad_(False)
    teacher.weight.normal_(std=3 / 3000**0.5)
    fit = HeadFit(CAPEHead(128, 50), teacher, store_features([features], tmp_path), Bootstrap("post-fit"))
    fit.start_from_teacher()
    images = list(range(64))
    before = fit.compare(images, 32)
    fit.run(images, OptimizationConfig(100, lr=0.1, weight_decay=0.0, warmup_epochs=3, clip_grad=clip_grad), seed=0)
    after = fit.compare(images, 32)
    if learns:
        assert after.divergence < before.divergence / 100
    else:
        assert after.divergence > before.divergence, "where the guard is not needed any more, remove it"
        assert after.disagreement > 0.5


def test_nothing_but_the_head_changes(lesions):
    vanilla, images, *_ = lesions
    model = softcam_hub.convert(vanilla, "cape").train()
    model.backbone.layer4.eval()
    model.backbone.conv1[0].weight.requires_grad_(False)
    assert model.alignment is not None
    before, modes = states(model), [module.training for module in model.modules()]
    trained = [weight.requires_grad for weight in model.parameters()]
    alignment, pointers = model.alignment, [weight.data_ptr() for weight in model.parameters()]

    post_fit(model, images[:12], **FAST)

    assert differences(model, before) == {"head.weight", "head.bias", "head.log_temperature"}
    assert [module.training for module in model.modules()] == modes
    assert [weight.requires_grad for weight in model.parameters()] == trained
    assert all(weight.grad is None for weight in model.parameters())
    assert [weight.data_ptr() for weight in model.parameters()] == pointers, "an optimizer of the user still holds them"
    assert model.alignment == alignment
    assert not model.measures_on_first_use


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        *((name, {}) for name in ("test_convnext", "test_vit2", "test_efficientnet", "test_mambaout", "levit_128s")),
        ("resnet50_clip", SMALL_CLIP),
    ],
)
def test_other_backbones(architecture, arguments):
    model = cape(architecture, **arguments)
    vanilla = softcam_hub.to_vanilla(model)
    images = noise(6, model.input_size[-1] if model.pretrained_cfg.get("fixed_input_size") else 64)
    result = post_fit(model, images, hold_out=0, epochs=200)
    assert result.divergence < result.divergence_before
    with torch.no_grad():
        agrees = model(images).argmax(dim=1) == vanilla(images).argmax(dim=1)
    assert result.disagreement == pytest.approx(1 - float(agrees.float().mean()), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = cape().to(dtype)
    before = states(model)
    result = post_fit(model, noise(), hold_out=0, epochs=100)
    assert result.divergence < result.divergence_before
    assert "head.weight" in differences(model, before)
    assert model.head.weight.dtype == model.head.log_temperature.dtype == dtype


def test_a_call_repeats_and_leaves_the_random_state_alone():
    def fitted(seed, order):
        model = cape()
        torch.manual_seed(order)
        random.seed(order)
        np.random.seed(order)
        loader = DataLoader(TensorDataset(noise(12)), 5, shuffle=True)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        result = post_fit(model, loader, seed=seed, **FAST)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert np.random.get_state()[1].tolist() == before[2]
        return model.head.weight.detach(), result

    first, again, other = fitted(0, 1), fitted(0, 2), fitted(1, 1)
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert not torch.equal(first[0], other[0])


def loss_settings(folder):
    config = json.loads((folder / "config.json").read_text())
    return {name: config.get(name) for name in ("mode", "alpha", "beta", "temperature", "selective", "freeze_backbone")}


@pytest.mark.parametrize("mode", [{}, {"mode": "post-fit"}, {"mode": "from-scratch", "beta": 3.0}])
def test_a_hugging_face_model_is_saved_as_that_of_a_run(mode, post_fit_run, tmp_path):
    model = CAPEForImageClassification.from_timm(vanilla_model(), **mode)
    same = cape()
    assert post_fit(model, noise(), **FAST) == post_fit(same, noise(), **FAST)
    assert equal(part(states(model), "head."), part(states(same), "head."))
    model.save_pretrained(tmp_path)
    assert loss_settings(tmp_path) == loss_settings(post_fit_run[0] / "model")
    assert not [name for name in states(model) if name.startswith("teacher.")]
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    again = CAPEForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(noise()), same.eval()(noise()))
        assert torch.equal(again(noise()).logits, loaded(noise()))


def test_the_temperature_of_the_teacher_is_written_down(tmp_path):
    model = CAPEForImageClassification.from_timm(vanilla_model(), mode="post-fit", selective=True)
    post_fit(model, noise(), temperature=4.0, **FAST)
    model.save_pretrained(tmp_path)
    found = loss_settings(tmp_path)
    assert (found["temperature"], found["selective"], found["mode"]) == (4.0, False, "direct")


def test_a_model_without_a_loss(tmp_path):
    CAPEForImageClassification.from_timm(vanilla_model()).save_pretrained(tmp_path)
    model, same = AutoModel.from_pretrained(tmp_path), cape()
    assert post_fit(model, noise(), **FAST) == post_fit(same, noise(), **FAST)
    assert equal(part(states(model), "head."), part(states(same), "head."))


@pytest.mark.parametrize("kind", ["module", "folder", "softcam", "softcam for transformers"])
def test_a_trained_head_is_fitted_to_a_teacher(kind, tmp_path):
    vanilla = vanilla_model()
    teachers = {
        "module": lambda: vanilla,
        "folder": lambda: timm.models.save_for_hf(vanilla, tmp_path, safe_serialization=True) or str(tmp_path),
        "softcam": lambda: softcam_hub.convert(vanilla),
        "softcam for transformers": lambda: SoftCAMForImageClassification.from_timm(vanilla),
    }
    model, fresh = cape(), cape()
    randomise(model.head)
    moved = post_fit(model, noise(), teachers[kind](), **FAST)
    expected = post_fit(fresh, noise(), **FAST)
    assert equal(states(model), states(fresh)), "the head starts from the teacher, whatever it has learnt"
    assert moved.divergence == expected.divergence
    assert moved.divergence_before != expected.divergence_before


def test_a_second_call_needs_the_teacher():
    model = cape()
    vanilla = softcam_hub.to_vanilla(model)
    post_fit(model, noise(), **FAST)
    once = states(model)
    with pytest.raises(ValueError, match="the head of this cape_test_resnet has learnt already.*teacher="):
        post_fit(model, noise(), **FAST)
    assert not differences(model, once)
    post_fit(model, noise(), vanilla, **FAST)
    assert not differences(model, once)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_that_the_caller_has_switched_off(context):
    model, same = cape(), cape()
    with context():
        result = post_fit(model, noise(), **FAST)
    assert result == post_fit(same, noise(), **FAST)
    assert equal(states(model), states(same))


def test_the_head_learns_in_its_own_precision_within_autocast(monkeypatch):
    precisions, loss = set(), HeadFit._loss
    monkeypatch.setattr(
        HeadFit, "_loss", lambda self, *logits: precisions.update(one.dtype for one in logits) or loss(self, *logits)
    )
    with torch.autocast("cpu", torch.bfloat16):
        post_fit(cape(), noise(), **FAST)
    assert precisions == {torch.float32}


def test_large_updates_need_no_large_passes_of_the_backbone():
    sizes, model = [], cape()
    model.backbone.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    post_fit(model, noise(70), epochs=1, batch_size=60)
    assert sizes == [32, 32, 6]


def test_images_are_divided_on_the_cpu_whatever_the_default_device_is():
    with torch.device("meta"):
        learnt, held_out = _divide(10, 0.2, 0)
        sampler = EpochSampler(10, 8, seed=0)
        assert len(set(sampler)) == 8
    assert sorted(learnt + held_out) == list(range(10))


def test_features_lie_in_the_chosen_folder_while_they_are_needed(tmp_path, monkeypatch):
    sizes, run = [], HeadFit.run

    def watched(self, *rest):
        sizes.extend(file.stat().st_size for file in tmp_path.rglob("*.bin"))
        run(self, *rest)

    monkeypatch.setattr(HeadFit, "run", watched)
    model = cape()
    post_fit(model, noise(), cache_dir=tmp_path, **FAST)
    with torch.no_grad():
        assert sizes == [model.eval().forward_features(noise()).numel() * 4]
    assert not list(tmp_path.iterdir())


def test_progress_is_logged_and_not_printed(caplog, capfd):
    with caplog.at_level(logging.INFO, logger="softcam_hub"):
        result = post_fit(cape(), noise(), epochs=100)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "computed the features of 10 images"
    assert [line.split("  ")[0] for line in lines[1:-1]] == [f"epoch {epoch}/100" for epoch in range(3, 100, 3)]
    assert lines[-1] == f"cape_test_resnet: {result.describe()}"
    assert "fitted to 9 images; on 1 held-out image, it" in lines[-1]
    assert "on the same images" in replace(result, held_out=0).describe()
    assert capfd.readouterr() == ("", "")


def test_a_result_that_is_worse_is_told(caplog):
    vanilla = vanilla_model()
    model = softcam_hub.convert(vanilla, "cape")
    result = post_fit(model, noise(), lr=1e4, hold_out=0, **FAST)
    assert result.disagreement > result.disagreement_before
    assert any("has not brought cape_test_resnet closer to the vanilla" in message for message in caplog.messages)
    caplog.clear()
    result = post_fit(model, noise(), vanilla, hold_out=0, epochs=100)
    assert result.disagreement < result.disagreement_before
    assert not caplog.messages


def test_a_single_update_is_no_warm_up():
    model = cape()
    before = states(model)
    result = post_fit(model, noise(), epochs=1, batch_size=9)
    assert result.images == 9
    assert "head.weight" in differences(model, before)


def test_the_backbone_sees_few_images_at_once_whatever_a_loader_gives():
    model, seen = cape(), []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    post_fit(model, DataLoader(TensorDataset(noise(75)), batch_size=75), epochs=1)
    assert max(seen) <= 32
    assert sum(seen) == 75


def test_a_model_that_still_predicts_other_classes_is_told_with_what_may_help(caplog, monkeypatch):
    vanilla, images = vanilla_model(), noise(100)
    classifier = vanilla.get_classifier()
    with torch.no_grad():
        classifier.weight.mul_(20)
        classifier.bias.zero_()
        classifier.bias -= vanilla(images).mean(dim=0)  # all classes are predicted
    short = {"epochs": 1, "lr": 1e-3, "hold_out": 0.5}  # far from the end
    few = post_fit(softcam_hub.convert(vanilla, "cape"), images, **short)
    assert few.disagreement_before >= few.disagreement > 0.05, "or the test shows nothing"
    (message,) = caplog.messages
    assert few.describe() in message
    assert "still differs" in message
    assert "--alpha 1" in message
    caplog.clear()
    monkeypatch.setattr(post_fitting, "FEW_IMAGES", 50 * few.disagreement)
    post_fit(softcam_hub.convert(vanilla, "cape"), images, **short)
    assert not caplog.messages
