"""Where the cells of maps lie: positions, drawing, pixels, measuring, saving."""

import copy
import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torch.nn.functional as F

import softcam_hub
from softcam_hub.data.lesions import draw
from softcam_hub.models.alignment import Alignment, Grid
from softcam_hub.models.explanation import Explanation
from softcam_hub.models.flip_correlation import correlate_flips, find_offset
from softcam_hub.models.flip_registration import find_steps, noise_images

KNOWN = Alignment((0.6, 1.28), (8.0, 8.0), (128, 128))


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


def test_upsampling_interpolates_between_places():
    grid = Grid((128, 96), (16, 12), Alignment((0.6, 1.28), (8.0, 8.0), (128, 96)))
    maps = torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    large = grid.upsample(maps, (64, 192))
    for row, column in ((0, 0), (13, 50), (31, 97), (63, 191)):
        y = min(max(((row + 0.5) * 2 - 0.6) / 8, 0), 15)
        x = min(max(((column + 0.5) / 2 - 1.28) / 8, 0), 11)
        top, left = min(int(y), 14), min(int(x), 10)
        down, right = y - top, x - left
        expected = (
            maps[..., top, left] * (1 - down) * (1 - right)
            + maps[..., top, left + 1] * (1 - down) * right
            + maps[..., top + 1, left] * down * (1 - right)
            + maps[..., top + 1, left + 1] * down * right
        )
        torch.testing.assert_close(large[..., row, column], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("nearest", [False, True])
def test_cells_that_fill_the_image_are_drawn_as_by_torch(nearest):
    maps = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    mode = {"mode": "nearest"} if nearest else {"mode": "bilinear", "align_corners": False}
    expected = F.interpolate(maps, size=(112, 80), **mode)
    assert torch.equal(Grid((112, 80), (7, 5)).upsample(maps, (112, 80), nearest), expected)
    filling = Alignment((8.0, 8.0), (16.0, 16.0), (112, 80))
    torch.testing.assert_close(Grid((112, 80), (7, 5), filling).upsample(maps, (112, 80), nearest), expected)


def test_one_known_axis_moves_one_axis():
    maps = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    one = Grid((128, 128), (16, 16), Alignment((None, 1.28), (8.0, 8.0), (128, 128))).upsample(maps, (128, 128))
    rows = F.interpolate(maps, size=(128, 16), mode="bilinear", align_corners=False)
    both = Grid((128, 128), (16, 16), KNOWN).upsample(maps, (128, 128))
    assert not torch.allclose(one, both)
    torch.testing.assert_close(
        one, rows @ Grid((128, 128), (16, 16), KNOWN).weights(1, 128).float().T, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("size", [224, 448, 300, (224, 320), (97, 51), (5, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("aligned", [True, False])
def test_pixels_make_up_the_prediction(size, dtype, aligned):
    generator = torch.Generator().manual_seed(0)
    signed = torch.randn(2, 3, 16, 16, generator=generator)
    shares = signed.flatten(1).softmax(dim=1).view_as(signed)
    classes = torch.arange(3).expand(2, 3)
    grid = Grid((128, 128), (16, 16), KNOWN)
    cape = Explanation(shares.to(dtype), classes, shares.sum(dim=(2, 3)), "cape", grid=grid)
    error = cape.at_pixels(size, aligned).double().sum(dim=(2, 3)) - cape.maps.double().sum(dim=(2, 3))
    assert error.abs().max() < 1e-6
    assert cape.at_pixels(size, aligned).min() >= 0
    softcam = Explanation(signed.to(dtype), classes, shares.sum(dim=(2, 3)), "softcam", grid=grid)
    error = softcam.at_pixels(size, aligned).double().mean(dim=(2, 3)) - softcam.maps.double().mean(dim=(2, 3))
    assert error.abs().max() < 1e-6


def test_pixels_of_one_cell_lie_around_its_place():
    maps = torch.zeros(1, 1, 16, 16)
    maps[0, 0, 5, 9] = 1
    one = Explanation(maps, torch.zeros(1, 1), torch.ones(1, 1), "cape", grid=Grid((128, 128), (16, 16), KNOWN))
    fine, places = one.at_pixels(128)[0, 0], torch.arange(128) + 0.5
    assert float(fine.sum(dim=1) @ places) == pytest.approx(0.6 + 5 * 8, abs=0.05)
    assert float(fine.sum(dim=0) @ places) == pytest.approx(1.28 + 9 * 8, abs=0.05)


def test_positions_hold_for_sizes_that_are_no_multiples_of_the_step():
    """A cell of a network with symmetric padding looks at the same pixel whatever the size of the image."""
    alignment = Alignment((0.5, 0.5), (32.0, 32.0), (224, 224))
    assert alignment.offset((224, 224), (7, 7)) == pytest.approx((-15.5 / 32, -15.5 / 32))
    down, right = alignment.offset((300, 224), (10, 7))  # drawn 30 px apart, looking 32 px apart
    assert down == pytest.approx((0.5 + 32 * 4.5 - 150) / 32)
    assert right == pytest.approx(-15.5 / 32)
    start, step = Grid((300, 300), (10, 10), alignment).axis(0)
    assert [start + step * cell for cell in (0, 9)] == [0.5, 288.5]
    assert alignment.offset((224, 224), (14, 14)) is None  # a grid of another step


def test_same_padding_is_known_at_sizes_of_the_same_remainder():
    alignment = Alignment((16.0, 16.0), (32.0, 32.0), (224, 224), same_padding=True)
    assert alignment.offset((320, 256), (10, 8)) is not None
    assert alignment.offset((300, 256), (10, 8))[0] is None
    assert alignment.offset((300, 300), (10, 10)) is None


@pytest.mark.parametrize(("name", "cells"), [("softcam_resnet18", 10), ("softcam_test_convnext", 9)])
def test_the_offset_of_other_sizes_counts_cells_as_the_network_does(name, cells):
    """For 300 pixels and a stride of 32, ResNets round up and ConvNeXts down."""
    alignment = Alignment((0.5, 0.5), (32.0, 32.0), (224, 224))
    model = softcam_hub.build(name, num_classes=2)
    model.alignment = alignment
    assert model.map_offset(300) == alignment.offset((300, 300), (cells, cells))
    assert model.explain(torch.zeros(1, 3, 300, 300)).grid.cells == (cells, cells)


def test_the_mirror_image_looks_to_the_other_side():
    mirror = KNOWN.mirrored((128, 128), (16, 16))
    down, right = KNOWN.offset((128, 128), (16, 16))
    assert mirror.offset((128, 128), (16, 16)) == pytest.approx((down, -right))


def test_a_mirrored_explanation_is_drawn_as_the_mirrored_picture():
    maps = torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    one = Explanation(maps, torch.tensor([[0, 1]]), torch.ones(1, 2), "cape", grid=Grid((128, 128), (16, 16), KNOWN))
    torch.testing.assert_close(one.mirrored().heatmaps(128), one.heatmaps(128).flip(-1), atol=1e-5, rtol=0)


def test_cells_divide_the_image_among_them():
    edges = Grid((128, 128), (16, 16), KNOWN).edges(0).tolist()
    assert edges[0] == 0
    assert edges[1:-1] == pytest.approx([0.6 + 8 * cell - 4 for cell in range(1, 16)])
    assert edges[-1] == 128


@pytest.fixture(scope="module")
def lesions():
    return [draw(index, "validation", 128).image for index in range(32)]


@pytest.fixture(scope="module")
def measured(lesions):
    model = timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True).train()
    return model, softcam_hub.measure_alignment(model, lesions)


def test_a_trained_model_is_measured(measured):
    model, measurement = measured
    assert measurement.accepted == (True, True)
    assert model.map_offset() == pytest.approx(measurement.offset, abs=1e-3)
    assert model.map_offset(256) == pytest.approx(measurement.offset, abs=1e-3)
    assert model.map_offset((128, 192)) == pytest.approx(measurement.offset, abs=1e-3)
    assert all(-0.6 < offset < -0.2 for offset in measurement.offset)
    assert measurement.describe().startswith("cells look -0.4")


def test_the_offset_at_a_size_is_that_of_its_maps(measured):
    model, _ = measured
    explanation = model.explain(torch.rand(1, 3, 100, 139))
    assert explanation.maps.shape[2:] == (13, 18)
    grid = explanation.grid
    assert model.map_offset((100, 139)) == pytest.approx(grid.alignment.offset(grid.image_size, grid.cells))
    vit = softcam_hub.build("softcam_test_vit")
    vit.alignment = Alignment((8, 8), (16, 16), (160, 160))
    assert vit.map_offset() == pytest.approx((0, 0))
    assert vit.map_offset(100) is None  # this architecture takes one size


def test_measuring_leaves_model_and_random_state_alone(lesions):
    model = timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True).train()
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


CHANGES = [
    {"image_size": [128]},
    {"image_size": ["a", 1]},
    {"image_size": [True, 64]},
    {"step": [0, 8]},
    {"start": [10**400, 1]},
    {"start": [True, False]},
    {"start": [-500, 7]},
    {"start": [math.nan, 1]},
    {"same_padding": "false"},
]
BROKEN = [{**KNOWN.as_dict(), **change} for change in CHANGES]


@pytest.mark.parametrize(
    "content", [{}, {"start": [1], "step": [8, 8], "image_size": [64, 64]}, {"start": 3}, [1], *BROKEN]
)
def test_a_broken_alignment_is_refused(content):
    with pytest.raises(ValueError, match="alignment"):
        softcam_hub.build("cape_test_resnet", num_classes=3, alignment=content)


@pytest.mark.parametrize("size", [0, -1, True, (8,), "8", 2.5, ([8], [8]), (64, 0)])
def test_sizes_that_are_none_are_refused(size):
    one = Explanation(torch.rand(1, 1, 4, 4), torch.zeros(1, 1), torch.ones(1, 1), "cape")
    for draw_at in (one.heatmaps, one.at_pixels):
        with pytest.raises((ValueError, TypeError), match="a size"):
            draw_at(size)
    assert one.heatmaps(torch.tensor(6).numpy()[()]).shape[2:] == (6, 6)


def test_random_weights_have_no_place():
    config = softcam_hub.CAPEConfig.from_pretrained(softcam_hub.CAPE_LESIONS)
    assert softcam_hub.CAPEForImageClassification(config).alignment is None
    assert timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=False).alignment is None
    assert softcam_hub.CAPEForImageClassification.from_pretrained(softcam_hub.CAPE_LESIONS).alignment is not None


def test_few_or_equal_images_say_nothing(lesions):
    model = timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True)
    assert softcam_hub.measure_alignment(model, lesions[:7]).accepted == (False, False)
    assert softcam_hub.measure_alignment(model, lesions[:1] * 9).accepted == (False, False)
    with pytest.raises(ValueError, match="no image"):
        softcam_hub.measure_alignment(model, torch.zeros(0, 3, 128, 128))


def test_the_offset_is_that_of_the_maps_at_another_stride():
    model = timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True, output_stride=32)
    assert model.explain(torch.rand(1, 3, 128, 128)).layout().offset is None
    assert model.map_offset() is None


def test_a_measurement_that_breaks_off_is_repeated(monkeypatch, tmp_path):
    model = timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True)
    model.alignment, model.measures_on_first_use = None, True
    monkeypatch.setattr("softcam_hub.models.flip_registration.noise_images", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.explain(torch.rand(1, 3, 128, 128))
    monkeypatch.undo()
    assert model.measures_on_first_use
    model.explain(torch.rand(1, 3, 128, 128))
    assert not model.measures_on_first_use


def test_threads_wait_for_the_first_measurement(lesions, monkeypatch):
    model = timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True).eval()
    model.alignment, model.measures_on_first_use = None, True
    batch = model.as_batch(lesions)
    monkeypatch.setattr("softcam_hub.models.flip_registration.noise_images", lambda model: batch)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda image: model.explain(image).layout().offset, lesions[:3]))
    assert found[0] is not None
    assert found == [found[0]] * 3


def test_heatmaps_move_and_maps_do_not(measured):
    model, _ = measured
    image = draw(3, "test", 128).image
    aligned = model.explain(image)
    before = copy.deepcopy(model)
    before.alignment = None
    plain = before.explain(image)
    assert torch.equal(aligned.maps, plain.maps)
    assert torch.equal(aligned.heatmaps(128, aligned=False), plain.heatmaps(128))
    assert not torch.allclose(aligned.heatmaps(128), plain.heatmaps(128))
    assert torch.equal(aligned[0].heatmaps(64), aligned.heatmaps(64))


def test_the_noise_is_seeded_and_normalised():
    model = softcam_hub.build("cape_test_resnet", in_chans=1)
    noise = noise_images(model)
    assert noise.shape == (12, 1, 160, 160)
    assert torch.equal(noise, noise_images(model))
    assert math.isclose(float(noise.std()), 1, abs_tol=0.01)
