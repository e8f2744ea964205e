"""Where the cells of maps lie that are a sum of several depths: measured, kept, drawn, and measured again."""

import json
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomise
from helpers.random_weights import randomise_with_statistics

import softcam_hub
from softcam_hub.models.alignment import Alignment, Grid
from softcam_hub.models.explanation import Explanation
from softcam_hub.models.flip_registration import noise_images
from softcam_hub.models.modeling import SoftCAMForImageClassification

SIDE = 320


def test_cells_that_are_divided_look_where_their_parts_lie():
    whole = Alignment((10.0, None), (32.0, 32.0), (224, 224))
    parts = whole.divided(4)
    assert parts == Alignment((-2.0, None), (8.0, 8.0), (224, 224), ratio=4, depths=(whole,))
    assert whole.divided(1) == whole == parts.merged()
    centres = [-2.0 + 8.0 * number for number in range(28)]
    assert [sum(centres[4 * row : 4 * row + 4]) / 4 for row in range(7)] == [10.0 + 32.0 * row for row in range(7)]
    assert Alignment.from_dict(parts.as_dict()) == parts
    odd = Alignment((10.0, 10.0), (32.0, 32.0), (300, 300))
    for one, cells in ((odd, (10, 10)), (odd.divided(4), (40, 40))):
        assert None not in one.starts((300, 300), cells), "ten rows of 32 pixels of which the image has 9.4"
    with pytest.raises(ValueError, match="cannot look at pixel 80"):
        Alignment((80.0, 4.0), (8.0, 8.0), (224, 224))
    for depths in ((whole, whole), (parts,), (Alignment((4.0, 4.0), (8.0, 8.0), (224, 224)),)):
        with pytest.raises(ValueError, match=r"must have ratios and steps \[\(1, \(32.0, 32.0\)\), \(2, "):
            Alignment((4.0, 4.0), (16.0, 16.0), (224, 224), ratio=2, depths=depths)
    with pytest.raises(ValueError, match=r"must have ratios and steps \[\]"):
        Alignment((4.0, 4.0), (32.0, 32.0), (224, 224), depths=(whole,))
    for padded in (whole, parts):
        padded = replace(
            padded, same_padding=True, depths=tuple(replace(one, same_padding=True) for one in padded.depths)
        )
        assert Alignment.from_dict(json.loads(json.dumps(padded.as_dict()))) == padded


@torch.no_grad()
def test_finer_maps_are_drawn_where_the_coarse_ones_are():
    one = randomise(softcam_hub.build("softcam_test_resnet", num_classes=5)).eval()
    several = softcam_hub.build("softcam_test_resnet", num_classes=5, scales=3).eval()
    several.load_state_dict(one.state_dict())
    noise = noise_images(one)
    pictures = F.interpolate(noise, size=(320, 320), mode="bicubic")
    places = [softcam_hub.measure_alignment(model, pictures).alignment for model in (one, several)]
    assert places[0].is_known
    assert places[0].divided(4) == places[1]
    offsets = [model.map_offset((320, 320)) for model in (one, several)]
    known = [(coarse, fine) for coarse, fine in zip(*offsets, strict=True) if coarse is not None]
    assert known
    assert all(fine == pytest.approx(4 * coarse, abs=1e-4) for coarse, fine in known)


@torch.no_grad()
def test_the_place_follows_a_classifier_to_other_scales():
    one = randomise(softcam_hub.build("softcam_test_resnet", num_classes=5)).eval()
    one.alignment = Alignment((10.0, 14.0), (32.0, 32.0), (160, 160))
    several = softcam_hub.convert(softcam_hub.to_vanilla(one), scales=3)
    assert several.alignment == one.alignment.divided(4)
    assert softcam_hub.to_vanilla(several).alignment == one.alignment
    again = softcam_hub.convert(softcam_hub.to_vanilla(several))
    assert again.alignment == one.alignment


def test_maps_of_both_sizes_are_drawn_at_their_places():
    parts = Alignment((10.0, 14.0), (32.0, 32.0), (224, 224)).divided(4)
    whole, divided = Grid((224, 224), (7, 7), parts), Grid((224, 224), (28, 28), parts)
    assert (whole.axis(0), whole.axis(1)) == ((10.0, 32.0), (14.0, 32.0))
    assert (divided.axis(0), divided.axis(1)) == ((-2.0, 8.0), (2.0, 8.0))
    assert divided.offset == pytest.approx([4 * one for one in whole.offset])
    assert Grid((224, 224), (14, 14), parts).offset is None  # neither


# --- measuring -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures():
    noise = noise_images(softcam_hub.build("softcam_test_resnet", num_classes=5))
    return F.interpolate(noise, size=(SIDE, SIDE), mode="bicubic")


def make(pictures, without=()):
    """A model with random weights which reads three depths, or some of them."""
    torch.manual_seed(0)
    model = softcam_hub.build("softcam_test_resnet", num_classes=5, scales=3, avg_down=False)
    model = randomise_with_statistics(model, pictures[:4]).eval()
    for weight in model.backbone.parameters():
        if weight.ndim == 4:  # with symmetric filters, only the places of strides differ in a mirror image
            weight.data = (weight + weight.flip(2) + weight.flip(3) + weight.flip(2, 3)).data / 4
    torch.nn.init.normal_(model.head.fine_weight, std=0.5)
    middle = model.anatomy.finer[0].channels
    weights = (model.head.weight, model.head.fine_weight[:, :middle], model.head.fine_weight[:, middle:])
    for depth in without:
        weights[depth].data.zero_()
    return model


def find_by_gradients(model, pictures, depth):
    """Return the place of the first cell of a depth, from the centroids of |∂ cell / ∂ pixel| of cells in the middle."""
    step, found = 32 / 2**depth, []
    for picture in pictures[:3]:
        pixels = picture[None].clone().requires_grad_()
        _, terms = model.head(model.forward_features(pixels), kind="terms")
        cells = terms[depth].shape[-1]
        for row, column in ((cells // 2, cells // 2 - 1), (cells // 2 - 1, cells // 2)):
            (gradient,) = torch.autograd.grad(terms[depth][0, 0, row, column], pixels, retain_graph=True)
            weight, places = gradient[0].abs().sum(dim=0).double(), torch.arange(SIDE, dtype=torch.float64) + 0.5
            down, right = (float(weight.sum(dim=axis) @ places / weight.sum()) for axis in (1, 0))
            found.append((down - step * row, right - step * column))
    return torch.tensor(found).mean(dim=0).tolist()


@pytest.mark.parametrize("depth", [1, 2])
def test_every_depth_is_measured_where_its_gradients_lie(depth, pictures):
    model = make(pictures)
    alignment = softcam_hub.measure_alignment(model, pictures).alignment
    assert len(alignment.depths) == 3
    assert [one.step for one in alignment.depths] == [(32.0, 32.0), (16.0, 16.0), (8.0, 8.0)]
    known = [
        (measured, expected)
        for measured, expected in zip(
            alignment.depths[depth].start, find_by_gradients(model, pictures, depth), strict=True
        )
        if measured is not None
    ]
    assert known
    assert all(measured == pytest.approx(expected, abs=0.15 * 32 / 2**depth) for measured, expected in known)


@pytest.mark.parametrize(("without", "finest"), [((), 2), ((2,), 1), ((0, 2), 1), ((1, 2), 0), ((0,), 2)])
def test_maps_are_drawn_at_the_finest_depth_that_was_learnt(without, finest, pictures):
    model = make(pictures, without)
    measurement = softcam_hub.measure_alignment(model, pictures)
    alignment, place = measurement.alignment, measurement.alignment.depths[finest]
    assert None not in place.start
    step = 32 / 2**finest
    middle = [start + step * (SIDE / step - 1) / 2 for start in place.start]
    assert (alignment.step, alignment.ratio) == ((8.0, 8.0), 4)
    assert [start + 8 * (SIDE / 8 - 1) / 2 for start in alignment.start] == pytest.approx(middle, abs=0.01)
    assert [(where - SIDE / 2) / 8 for where in middle] == pytest.approx(measurement.offset, abs=0.01)
    assert measurement.offset == pytest.approx(model.map_offset(SIDE), abs=0.01)
    others = [one.start for depth, one in enumerate(alignment.depths) if depth in without]
    assert all(start == (None, None) for start in others), "nothing to measure"
    assert alignment.merged() == alignment.depths[0]


def test_the_place_is_kept_with_its_depths(pictures, tmp_path):
    model = make(pictures)
    alignment = softcam_hub.measure_alignment(model, pictures).alignment
    assert Alignment.from_dict(json.loads(json.dumps(alignment.as_dict()))) == alignment
    SoftCAMForImageClassification.from_timm(model).save_pretrained(tmp_path)
    assert SoftCAMForImageClassification.from_pretrained(tmp_path).alignment == alignment
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).alignment == alignment
    model.reset_classifier(2)
    assert model.alignment == alignment.depths[0].divided(4), "a fresh head reads no finer features"


# --- drawing ---------------------------------------------------------------------------------------------------------

APART = Alignment(
    (3.0, 3.0),
    (8.0, 8.0),
    (224, 224),
    ratio=4,
    depths=tuple(Alignment((0.5, 0.5), (32 / ratio, 32 / ratio), (224, 224), ratio=ratio) for ratio in (1, 2, 4)),
)
"""Cells of all depths look at their upper left pixel, and those of the map elsewhere."""


def test_post_hoc_maps_lie_where_the_last_features_do():
    assert Grid((224, 224), (28, 28), APART).axis(0) == (3.0, 8.0)
    assert Grid((224, 224), (7, 7), APART).axis(0) == (0.5, 32.0)


def test_mirrored_depths_look_at_the_mirrored_places():
    mirror = APART.mirrored((224, 224), (28, 28))
    assert mirror.start == (3.0, 224 - 3 - 27 * 8.0)
    assert [one.start for one in mirror.depths] == [
        (0.5, 224 - 0.5 - (224 / step - 1) * step) for step in (32.0, 16.0, 8.0)
    ]
    assert mirror.mirrored((224, 224), (28, 28)) == APART


def test_every_depth_is_drawn_at_its_own_place():
    terms = {32: torch.zeros(1, 1, 7, 7), 16: torch.zeros(1, 1, 14, 14), 8: torch.zeros(1, 1, 28, 28)}
    for term in terms.values():
        term[0, 0, 3, 2] = 1.0
    pixels = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    grid = Grid((224, 224), (28, 28), APART)
    one = Explanation(
        torch.zeros(1, 1, 28, 28), torch.zeros(1, 1).long(), torch.ones(1, 1), "softcam", None, pixels, grid, terms
    )
    for aligned, of_cell in ((True, 0.0), (False, 0.5)):
        (_, *drawn), captions = one._draw_depths(("a", "100 %"), aligned)
        for picture, stride in zip(drawn, terms, strict=True):
            row, column = divmod(int(picture.argmax()), 224)
            middles = [(3 + of_cell) * stride, (2 + of_cell) * stride]
            assert [row, column] == pytest.approx(middles, abs=1)
        assert [caption[0] for caption in captions[1:]] == ["stride 32", "stride 16", "stride 8"]


# --- what makes a measurement stale ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("scales", "stale"), [(3, True), (1, False)])
def test_a_head_that_learns_from_finer_features_for_the_first_time_moves_its_maps(scales, stale):
    torch.manual_seed(0)
    model = randomise(softcam_hub.build("softcam_test_resnet", num_classes=5, scales=scales)).eval()
    model.alignment = Alignment((16.0, 16.0), (32.0, 32.0), (96, 96))
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    with torch.no_grad():
        features = model.forward_features(torch.randn(2, 3, 96, 96))
    model.head(features).square().sum().backward()
    assert model.alignment is not None, "nothing has changed yet"
    optimizer.step()
    assert (model.alignment is None) == stale
    assert model.measures_on_first_use == stale


def test_a_new_head_has_the_place_of_the_last_features(pictures, tmp_path):
    model = make(pictures)
    alignment = softcam_hub.measure_alignment(model, pictures).alignment
    coarse = alignment.depths[0].divided(4)
    SoftCAMForImageClassification.from_timm(model).save_pretrained(tmp_path)
    options = {"num_labels": 3, "ignore_mismatched_sizes": True}
    assert SoftCAMForImageClassification.from_pretrained(tmp_path, **options).alignment == coarse
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).alignment == coarse
    model(pictures[:1]).sum().backward()  # nothing is trained
    assert model.alignment == alignment
    model.reset_classifier(0)
    assert model.alignment == coarse
    model.reset_classifier(3)
    assert model.alignment == coarse
    assert not model.measures_on_first_use


@torch.no_grad()
@pytest.mark.parametrize("side", [289, 300, 319])
def test_images_of_broken_cells_are_measured_alike(side, pictures):
    model = make(pictures)
    expected = softcam_hub.measure_alignment(model, pictures).alignment
    found = softcam_hub.measure_alignment(model, pictures[:, :, :side, :side]).alignment
    assert found.start == pytest.approx(expected.start, abs=0.8)
    explanation = model.explain(pictures[:1, :, :side, :side])
    for depth, term in enumerate(explanation.by_scale().values()):
        grid = explanation.layout().of_depth(depth, (term.shape[2], term.shape[3]))
        assert grid.axis(0)[1] == 32 / 2**depth, "no squares"
