"""T' fitted to held-out images: against a fine search over a transcription of eqs. 7 and 8, and at the end of a run."""

import math

import pytest
import timm
import torch

import softcam_hub
from benchmarks.reproduction.temperature import fitted_to_logits
from softcam_hub.data.splits import load_splits
from softcam_hub.evaluation.shards import make_dataset
from softcam_hub.loading import load_classifier
from softcam_hub.temperature import fit_temperature
from softcam_hub.training import make_config, run


def cape(classes=3, **args):
    torch.manual_seed(0)
    model = timm.create_model("cape_test_resnet", num_classes=classes, **args).eval()
    with torch.no_grad():
        model.head.weight.mul_(40)
    return model


def data(model, count=24, sharpness=2.0):
    """Images whose labels are drawn from the model's own probabilities at another temperature."""
    images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        evidence = model.head.evidence(model.forward_features(images))
        probabilities = model.head.compose(evidence * sharpness).softmax(dim=1)
    return images, torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(2))[:, 0]


@torch.no_grad()
def evidence_of(model, images):
    """Return the evidence (B, C, H, W) in 64 bits."""
    head, features = model.head, model.forward_features(images).double()
    return torch.einsum("ck,bkij->bcij", head.weight.double(), features) + head.bias.double()[:, None, None]


def loss_at(evidence, value, labels):
    """Compute the cross-entropy with T' = value, by eqs. 7 and 8 as they stand."""
    by_class = (evidence / value).softmax(dim=1)
    by_place = (evidence / value).mean(dim=1, keepdim=True).flatten(2).softmax(dim=2).view_as(evidence[:, :1])
    p = (by_class * by_place).sum(dim=(2, 3))
    return float(-p.gather(1, labels[:, None]).log().mean())


def best_of_many(evidence, labels):
    """Return the best of 601 values of T'."""
    return min((math.exp(step / 100) for step in range(-300, 301)), key=lambda value: loss_at(evidence, value, labels))


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 4.0])
def test_the_fitted_temperature_has_the_least_cross_entropy(sharpness):
    model = cape()
    images, labels = data(model, sharpness=sharpness)
    evidence = evidence_of(model, images)
    expected = best_of_many(evidence, labels)
    value = fit_temperature(model, [(images[:16], labels[:16]), (images[16:], labels[16:])])
    assert abs(math.log(value / expected)) < 0.03
    assert math.isclose(float(model.head.log_temperature.detach().exp()), value, rel_tol=1e-6)
    assert loss_at(evidence, value, labels) < loss_at(evidence, 1.0, labels)


def test_the_fit_does_not_depend_on_the_initial_temperature():
    model = cape()
    images, labels = data(model)
    first = fit_temperature(model, [(images, labels)])
    assert math.isclose(fit_temperature(model, [(images, labels)]), first, rel_tol=1e-4)
    model.head.log_temperature.data.fill_(1.7)
    assert math.isclose(fit_temperature(model, [(images, labels)]), first, rel_tol=1e-4)


def test_maps_add_up_afterwards_and_the_model_is_as_it_was():
    model = cape()
    images, labels = data(model)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_temperature(model, [(images, labels)])
    assert model.training
    assert {name for name, value in model.state_dict().items() if not value.equal(before[name])} == {
        "head.log_temperature"
    }
    found = model.eval().explain(images, top_k=3)
    assert (found.maps.sum(dim=(2, 3)) - found.probabilities).abs().max() < 1e-5


def test_transformers_models_too():
    model = softcam_hub.CAPEForImageClassification.from_timm("cape_test_resnet", pretrained=False, num_labels=3)
    timm_model = timm.create_model("cape_test_resnet", num_classes=3)
    timm_model.load_state_dict(model.state_dict())
    batches = [data(timm_model.eval())]
    assert fit_temperature(model, batches) == fit_temperature(timm_model, batches)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 5]), "label 5 is out of range: this model has 3 classes, 0 to 2"),
        (torch.tensor([0, -1]), "label -1 is out of range"),
        (torch.tensor([0]), r"expected labels as integer class indices \(2,\)"),
    ],
)
def test_labels_that_are_none_of_the_model(labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(cape(), [(torch.rand(2, 3, 64, 64), labels)])


@pytest.mark.parametrize("batch", [{"pixel_values": 0, "labels": 1}, torch.rand(2, 3, 64, 64), (torch.rand(2), [0, 1])])
def test_batches_that_are_no_pairs(batch):
    with pytest.raises(
        TypeError, match="every batch must be a pair of tensors, images and labels, got (dict|Tensor|tuple)"
    ):
        fit_temperature(cape(), [batch])


def test_images_that_are_bytes_and_a_value_at_the_end_of_the_range_are_told(caplog):
    model = cape()
    images, labels = data(model)
    with pytest.warns(UserWarning, match="where normalised images have single digits"):
        fit_temperature(model, [(255 * images, labels)])
    probabilities = model(images).softmax(dim=1)
    fit_temperature(model, [(images, probabilities.argmin(dim=1))])  # labels that say the contrary
    assert "is the end of the range that is tried" in caplog.text


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (lambda: timm.create_model("softcam_test_resnet"), [], "only CAPE has a temperature to fit, got Classifier"),
        (lambda: timm.create_model("test_resnet"), [], "only CAPE has a temperature to fit, got ResNet"),
        (cape, [], "no labelled images"),
        (cape, [(torch.rand(2, 3, 64, 64), torch.tensor([-100, -100]))], "no labelled images.*labels other than -100"),
        (cape, [(torch.rand(0, 3, 64, 64), torch.zeros(0, dtype=torch.long))], "no labelled images"),
        (cape, [(torch.rand(2, 3, 64, 64), torch.rand(2, 3))], r"class indices \(B,\), got torch.float32 \(2, 3\)"),
        (cape, [(torch.full((2, 3, 64, 64), torch.nan), torch.tensor([0, 1]))], "not finite"),
    ],
)
def test_what_cannot_be_fitted(model, batches, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(model(), batches)


SMALL = {"data": "lesions", "image_size": 64, "data_size": 64, "train_count": 64, "eval_count": 24, "batch_size": 16}


@pytest.mark.slow
def test_a_run_ends_with_the_temperature_fitted(tmp_path):
    options = {**SMALL, "model": "cape_test_resnet", "epochs": 1, "lr": 0.05}
    plain = run(make_config(**options, output=tmp_path / "plain"))
    metrics = run(make_config(**options, output=tmp_path / "fitted", calibrate=True))
    assert {name for name in metrics if name not in plain} == {"fitted_temperature"}
    before, after = (load_classifier(tmp_path / name / "model") for name in ("plain", "fitted"))
    assert math.isclose(
        float(after.model.head.log_temperature.detach().exp()), metrics["fitted_temperature"], rel_tol=1e-5
    )
    splits = load_splits(make_config(**options).data)
    images, labels = zip(
        *((one["pixel_values"], one["labels"]) for one in make_dataset(before.preprocessing, splits.validation)),
        strict=True,
    )
    assert math.isclose(
        fit_temperature(before.model, [(torch.stack(images), torch.stack(labels))]),
        metrics["fitted_temperature"],
        rel_tol=1e-3,
    )
    assert metrics["test_loss"] != plain["test_loss"]
    with torch.no_grad():
        predicted = after.model(torch.stack(images)).argmax(dim=1)
    right = float((predicted == torch.stack(labels)).float().mean())
    assert metrics["validation_accuracy"] == pytest.approx(right), "of the model that was saved"


def test_a_run_refuses_what_cannot_be_fitted(tmp_path):
    with pytest.raises(ValueError, match="calibrate is an option of cape"):
        make_config(model="softcam_test_resnet", calibrate=True)
    options = {**SMALL, "model": "cape_test_resnet", "epochs": 1, "validation_split": "", "hold_out": 0.0}
    with pytest.raises(ValueError, match="calibrate needs validation images, but there are none"):
        run(make_config(**options, output=tmp_path, calibrate=True))


def test_a_run_of_before_there_was_the_setting_goes_on(tmp_path):
    options = {**SMALL, "model": "cape_test_resnet", "epochs": 1, "output": tmp_path / "run"}
    done = run(make_config(**options))
    settings = tmp_path / "run" / "settings.yaml"
    lines = settings.read_text().splitlines(keepends=True)
    settings.write_text("".join(line for line in lines if not line.startswith("calibrate")))
    assert run(make_config(**options, resume=True)) == done
    with pytest.raises(ValueError, match="says calibrate=False, but now it is True"):
        run(make_config(**options, resume=True, calibrate=True))


def test_the_temperature_of_a_black_box_undoes_a_factor_of_its_logits():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4000, 5, generator=generator)
    labels = logits.softmax(dim=1).multinomial(1, generator=generator)[:, 0]
    found = fitted_to_logits(3 * logits, labels)
    assert found == pytest.approx(3, rel=0.1)
    searched = [torch.nn.functional.cross_entropy(3 * logits / t, labels) for t in torch.arange(2.0, 4.0, 0.01)]
    assert found == pytest.approx(2 + 0.01 * int(torch.stack(searched).argmin()), abs=0.011)
