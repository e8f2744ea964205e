"""Measuring where the cells of maps look: correlations of mirror images, measurements, and what is kept of them."""

import copy
import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from helpers.shipped_model import load_shipped

import softcam_hub
from softcam_hub.data.lesions import draw
from softcam_hub.models.flip_correlation import correlate_flips, find_offset
from softcam_hub.models.flip_registration import find_steps, noise_images


def waves(offset, count=16, images=3, classes=2, seed=0):
    """Smooth random maps whose cell i looks at i + 1/2 + offset, as a sum of sines."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.rand(images, classes, 1, 1, 6, generator=generator, dtype=torch.float64) * 0.8
    phase = torch.rand(images, classes, 7, 1, 6, generator=generator, dtype=torch.float64) * 6.3
    places = torch.arange(count, dtype=torch.float64)[:, None] + 0.5 + offset
    return torch.sin(frequency * places + phase).sum(dim=-1)


def register(maps, mirrored):
    correlations = correlate_flips(maps, mirrored)
    return find_offset(correlations), correlations.amax(dim=1)


@pytest.mark.parametrize("offset", [-1.1, -0.47, -0.25, 0.0, 0.13, 0.5])
def test_registration_finds_a_known_offset(offset):
    found, correlation = register(waves(offset), waves(-offset))
    assert found.tolist() == pytest.approx([offset] * 3, abs=0.02)
    assert correlation.min() > 0.99


def test_registration_agrees_with_a_slow_search():
    maps, mirrored = waves(0.2, seed=1)[:1, :1], waves(-0.2, seed=1)[:1, :1] + 0.5 * waves(0.0, seed=2)[:1, :1]

    def interpolate(row, place):  # Keys, 1981, with a = -1/2
        total = 0.0
        for index, value in enumerate(row.tolist()):
            x = abs(place - index)
            if x <= 1:
                total += value * (1.5 * x**3 - 2.5 * x**2 + 1)
            elif x < 2:
                total += value * (-0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)
        return total

    best = (-2.0, 0.0)
    for hundredth in range(-75, 76, 5):
        offset = hundredth / 100
        pairs = [
            (interpolate(one, quarter / 4 - offset), interpolate(other, quarter / 4 + offset))
            for one, other in zip(maps[0, 0], mirrored[0, 0], strict=True)
            for quarter in range(2 * 4, 13 * 4 + 1)
        ]
        best = max(best, (float(torch.corrcoef(torch.tensor(pairs, dtype=torch.float64).T)[0, 1]), offset))
    found, correlation = register(maps, mirrored)
    assert float(found) == pytest.approx(best[1], abs=0.05)
    assert best[0] - 1e-9 <= float(correlation) <= best[0] + 0.01


def test_too_few_cells_are_not_registered():
    found, correlation = register(waves(0.1, count=6), waves(-0.1, count=6))
    assert found.isnan().all()
    assert correlation.tolist() == [0, 0, 0]


@pytest.fixture(scope="module")
def lesions():
    return [draw(index, "validation", 128).image for index in range(32)]


@pytest.fixture(scope="module")
def measured(lesions):
    model = load_shipped().train()
    return model, softcam_hub.measure_alignment(model, lesions)


def test_a_trained_model_is_measured(measured):
    model, measurement = measured
    assert measurement.accepted == (True, True)
    assert model.map_offset() == pytest.approx(measurement.offset, abs=1e-3)
    assert model.map_offset(256) == pytest.approx(measurement.offset, abs=1e-3)
    assert model.map_offset((128, 192)) == pytest.approx(measurement.offset, abs=1e-3)
    assert all(-0.6 < offset < -0.2 for offset in measurement.offset)
    assert measurement.describe().startswith("cells look -0.4")


def test_measuring_leaves_model_and_random_state_alone(lesions):
    model = load_shipped().train()
    weights, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    softcam_hub.measure_alignment(model)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_central_gradients_agree(measured, lesions):
    """The centroid of |∂ cell / ∂ pixel| of cells in the middle, which says where they look, needs no mirror image."""
    model, measurement = measured
    model = copy.deepcopy(model).eval()
    offsets = []
    for image in lesions[:6]:
        pixels = model.as_batch(image).requires_grad_()
        evidence = model.head.evidence(model.forward_features(pixels))[0]
        for row, column in ((6, 9), (7, 7), (8, 8), (9, 6)):
            (gradient,) = torch.autograd.grad(evidence[:, row, column].max(), pixels, retain_graph=True)
            weight = gradient[0].abs().sum(dim=0).double()
            places = torch.arange(128, dtype=torch.float64) + 0.5
            down = float(weight.sum(dim=1) @ places / weight.sum()) - (row + 0.5) * 8
            right = float(weight.sum(dim=0) @ places / weight.sum()) - (column + 0.5) * 8
            offsets.append((down / 8, right / 8))
    centroid = torch.tensor(offsets).mean(dim=0)
    assert (centroid - torch.tensor(measurement.offset)).abs().max() < 0.25
    assert (centroid < -0.1).all()


def test_random_weights_are_not_measured():
    torch.manual_seed(0)
    model = softcam_hub.build("softcam_resnet18", num_classes=5)
    assert model.map_offset() is None
    assert not model.measures_on_first_use
    measurement = softcam_hub.measure_alignment(model)
    assert measurement.accepted == (False, False)
    assert model.map_offset() is None
    assert "does not count" in measurement.describe()


def test_a_vanilla_model_and_a_model_without_classes_are_refused():
    with pytest.raises(TypeError, match=r"softcam_hub\.convert"):
        softcam_hub.measure_alignment(timm.create_model("test_resnet"))
    with pytest.raises(ValueError, match="num_classes=0"):
        softcam_hub.measure_alignment(softcam_hub.build("cape_test_resnet", num_classes=0))


@pytest.mark.parametrize(
    ("name", "size", "step"),
    [
        ("softcam_resnet18", 300, 32),
        ("softcam_test_resnet", 160, 32),
        ("softcam_test_vit", 160, 16),
        ("softcam_test_convnext", 160, 32),
        ("softcam_test_efficientnet", 150, 32),
    ],
)
def test_steps_are_counted_and_not_divided(name, size, step):
    model = softcam_hub.build(name).eval()
    features = model.forward_features(torch.zeros(1, 3, size, size))
    cells = (features.shape[2], features.shape[3])
    assert find_steps(model, (size, size), cells) == (step, step)


def test_both_models_save_the_alignment_and_load_it(measured, tmp_path):
    model, _ = measured
    hugging_face = softcam_hub.CAPEForImageClassification.from_timm(model)
    hugging_face.save_pretrained(tmp_path / "hf")
    timm.models.save_for_hf(model, tmp_path / "timm", safe_serialization=True)
    for folder in ("hf", "timm"):
        assert json.loads((tmp_path / folder / "config.json").read_text())["model_args"]["alignment"]
        again = timm.create_model(f"local-dir:{tmp_path / folder}", pretrained=True)
        other = softcam_hub.CAPEForImageClassification.from_pretrained(tmp_path / folder)
        assert again.alignment == other.alignment == model.alignment
        assert not again.measures_on_first_use
        assert not other.measures_on_first_use


def test_conversion_keeps_the_alignment(measured):
    model, _ = measured
    vanilla = softcam_hub.to_vanilla(model)
    assert softcam_hub.convert(vanilla).alignment == model.alignment
    model = copy.deepcopy(model)
    model.reset_classifier(7)
    assert model.alignment is not None


def test_a_folder_without_alignment_measures_once_on_first_use(tmp_path, caplog):
    model = softcam_hub.CAPEForImageClassification.from_timm("cape_test_resnet", pretrained=False, num_labels=3)
    assert not model.measures_on_first_use
    model.save_pretrained(tmp_path / "random")
    fresh = softcam_hub.CAPEForImageClassification.from_pretrained(tmp_path / "random")
    fresh.explain(torch.zeros(1, 3, 160, 160))
    assert "measuring once" not in caplog.text  # it has random weights
    model.train()(torch.randn(4, 3, 160, 160))
    model.save_pretrained(tmp_path)
    again = softcam_hub.CAPEForImageClassification.from_pretrained(tmp_path)
    assert again.measures_on_first_use
    again.explain(torch.zeros(1, 3, 160, 160))
    again.explain(torch.zeros(1, 3, 160, 160))
    assert caplog.text.count("measuring once") == 1
    assert again.alignment is not None
    again.save_pretrained(tmp_path)
    assert not softcam_hub.CAPEForImageClassification.from_pretrained(tmp_path).measures_on_first_use


def test_random_weights_have_no_place():
    config = softcam_hub.CAPEConfig.from_pretrained(softcam_hub.CAPE_LESIONS)
    assert softcam_hub.CAPEForImageClassification(config).alignment is None
    assert load_shipped(pretrained=False).alignment is None
    assert softcam_hub.CAPEForImageClassification.from_pretrained(softcam_hub.CAPE_LESIONS).alignment is not None


def test_few_or_equal_images_say_nothing(lesions, caplog):
    model = load_shipped()
    model.alignment = None
    assert softcam_hub.measure_alignment(model, lesions[:7]).accepted == (False, False)
    assert softcam_hub.measure_alignment(model, lesions[:1] * 9).accepted == (False, False)
    with pytest.raises(ValueError, match="no image"):
        softcam_hub.measure_alignment(model, torch.zeros(0, 3, 128, 128))


def test_too_few_images_do_not_cost_an_earlier_measurement(lesions, caplog):
    model = load_shipped()
    known = model.alignment
    assert not any(softcam_hub.measure_alignment(model, torch.zeros(1, 3, 128, 128)).accepted)
    assert model.alignment == known
    assert "8 different images are needed" in caplog.text
    assert "the earlier one is kept" in caplog.text


def test_a_measurement_that_breaks_off_is_repeated(monkeypatch, tmp_path):
    model = load_shipped()
    model.alignment, model.measures_on_first_use = None, True
    monkeypatch.setattr("softcam_hub.models.flip_registration.noise_images", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.explain(torch.rand(1, 3, 128, 128))
    monkeypatch.undo()
    assert model.measures_on_first_use
    model.explain(torch.rand(1, 3, 128, 128))
    assert not model.measures_on_first_use


def test_threads_wait_for_the_first_measurement(lesions, monkeypatch):
    model = load_shipped().eval()
    model.alignment, model.measures_on_first_use = None, True
    batch = model.as_batch(lesions)
    monkeypatch.setattr("softcam_hub.models.flip_registration.noise_images", lambda model: batch)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda image: model.explain(image).layout().offset, lesions[:3]))
    assert found[0] is not None
    assert found == [found[0]] * 3


def test_the_noise_is_seeded_and_normalised():
    model = softcam_hub.build("cape_test_resnet", in_chans=1)
    noise = noise_images(model)
    assert noise.shape == (12, 1, 160, 160)
    assert torch.equal(noise, noise_images(model))
    assert math.isclose(float(noise.std()), 1, abs_tol=0.01)


@pytest.mark.parametrize("name", ["test_nfnet", "test_convnext", "test_vit", "test_resnet"])
def test_random_weights_are_never_measured(name, caplog):
    """The maps of a random network may agree with those of mirror images, as those of test_nfnet with seed 3 do."""
    torch.manual_seed(3)
    model = timm.create_model(f"softcam_{name}", num_classes=10).eval()
    measurement = softcam_hub.measure_alignment(model)
    assert measurement.accepted == (False, False)
    model.measures_on_first_use = True
    model.explain(torch.randn(1, *model.input_size))
    assert "measuring once" not in caplog.text
    assert model.map_offset() is None
