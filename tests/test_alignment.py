"""Where the cells of maps lie in the image: places, offsets, drawing, and values at pixels."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.shipped_model import load_shipped

import softcam_hub
from softcam_hub.data.lesions import draw
from softcam_hub.models.alignment import Alignment, Grid
from softcam_hub.models.explanation import Explanation

KNOWN = Alignment((0.6, 1.28), (8.0, 8.0), (128, 128))


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


def test_the_offset_at_a_size_is_that_of_its_maps():
    model = load_shipped()
    explanation = model.explain(torch.rand(1, 3, 100, 139))
    assert explanation.maps.shape[2:] == (13, 18)
    grid = explanation.grid
    assert model.map_offset((100, 139)) == pytest.approx(grid.alignment.offset(grid.image_size, grid.cells))
    vit = softcam_hub.build("softcam_test_vit")
    vit.alignment = Alignment((8, 8), (16, 16), (160, 160))
    assert vit.map_offset() == pytest.approx((0, 0))
    assert vit.map_offset(100) is None  # this architecture takes one size


def test_the_offset_is_that_of_the_maps_at_another_stride():
    model = load_shipped(output_stride=32)
    assert model.explain(torch.rand(1, 3, 128, 128)).layout().offset is None
    assert model.map_offset() is None


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


def test_heatmaps_move_and_maps_do_not():
    model = load_shipped()
    image = draw(3, "test", 128).image
    aligned = model.explain(image)
    before = copy.deepcopy(model)
    before.alignment = None
    plain = before.explain(image)
    assert torch.equal(aligned.maps, plain.maps)
    assert torch.equal(aligned.heatmaps(128, aligned=False), plain.heatmaps(128))
    assert not torch.allclose(aligned.heatmaps(128), plain.heatmaps(128))
    assert torch.equal(aligned[0].heatmaps(64), aligned.heatmaps(64))


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
