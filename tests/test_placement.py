"""Attention placement: shares by hand, by area, over several batches; they are 1 together for every class."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomise
from PIL import ImageColor

from softcam_hub import Explanation
from softcam_hub.evaluation.placement import Placement, areas_in_cells, region_shares, with_elsewhere
from softcam_hub.figures.charts import COLOURS
from softcam_hub.models.alignment import Alignment, Grid


def cape(maps, classes=None):
    maps = torch.as_tensor(maps, dtype=torch.float32)
    classes = torch.arange(maps.shape[1]).expand(len(maps), -1) if classes is None else torch.tensor(classes)
    return Explanation(maps, classes, maps.sum(dim=(2, 3)), "cape")


def two_regions(count=1):
    """On 4x4 pixels: the upper left quarter, and the right column of the lower half."""
    masks = torch.zeros(count, 2, 4, 4, dtype=torch.bool)
    masks[:, 0, :2, :2] = True
    masks[:, 1, 2:, 3] = True
    return masks


def test_shares_by_hand():
    shares = region_shares(cape([[[[0.4, 0.1], [0.2, 0.1]], [[0.0, 0.0], [0.0, 0.2]]]]), two_regions())
    expected = [[0.4 / 0.8, 0.05 / 0.8, 0.35 / 0.8], [0.0, 0.5, 0.5]]
    assert torch.allclose(shares[0], torch.tensor(expected, dtype=torch.float64), atol=1e-7)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (16, 16), (40, 24)])
def test_areas_are_those_of_a_grid_that_both_divide(size):
    masks = torch.rand(2, 3, 12, 10) > 0.5
    found = areas_in_cells(masks, Grid(size, size))
    tall, wide = np.lcm(12, size[0]), np.lcm(10, size[1])
    fine = masks.repeat_interleave(tall // 12, dim=2).repeat_interleave(wide // 10, dim=3).double()
    expected = fine.view(2, 3, size[0], tall // size[0], size[1], wide // size[1]).mean(dim=(3, 5))
    assert torch.allclose(found, expected, atol=1e-12)


def test_where_pixels_divide_cells_it_is_the_upsampled_map():
    maps, masks = torch.rand(2, 3, 4, 4), torch.zeros(2, 2, 16, 16, dtype=torch.bool)
    region = torch.randint(0, 3, (2, 16, 16))
    masks[:, 0], masks[:, 1] = region == 0, region == 1
    large = maps.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3) / 16
    shares = region_shares(cape(maps), masks)
    for image in range(2):
        for rank in range(3):
            for number in range(3):
                slow = large[image, rank][region[image] == number].sum() / maps[image, rank].sum()
                assert float(shares[image, rank, number]) == pytest.approx(float(slow), abs=1e-6)


@pytest.mark.parametrize("pixels", [(64, 64), (50, 37), (5, 3)])
def test_shares_of_a_real_model_are_one_together(pixels):
    model = randomise(timm.create_model("cape_test_resnet", num_classes=4, output_stride=8)).eval()
    region = torch.randint(0, 4, (3, *pixels))
    masks = torch.stack([region == number for number in range(3)], dim=1)
    shares = region_shares(model.explain(torch.rand(3, 3, 64, 64), top_k=4), masks)
    assert shares.shape == (3, 4, 4)
    assert torch.allclose(shares.sum(dim=2), torch.ones(3, 4, dtype=torch.float64), atol=1e-12)
    assert (shares >= 0).all()


@pytest.mark.parametrize("pixels", [(64, 64), (50, 37)])
@pytest.mark.parametrize("start", [(2.0, 11.5), (None, 3.25), (-12.0, 4.0)])
def test_cells_with_measured_places_reach_half_way_to_their_neighbours(start, pixels):
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    coarse = torch.tensor([[[0.0, 2, 1], [1, 1, 0], [2, 0, 1]], [[2, 0, 0], [2, 1, 0], [1, 1, 1]]])
    region = F.interpolate(coarse[:, None], size=pixels, mode="nearest")[:, 0]
    masks = torch.stack([region == 0, region == 1], dim=1)
    grid = Grid((64, 64), (4, 4), Alignment(start, (16.0, 16.0), (64, 64)))
    found = region_shares(replace(cape(maps), grid=grid), masks)

    def part_of_cells(axis):
        """The part of every cell that each pixel has, by points between the pixels."""
        first, parts = 8.0 if start[axis] is None else start[axis], torch.zeros(4, pixels[axis], dtype=torch.float64)
        fine = 400 * pixels[axis]
        for point in range(fine):
            place = (point + 0.5) / fine * 64
            nearest = min(range(4), key=lambda cell: abs(first + 16 * cell - place))
            parts[nearest, int(place / 64 * pixels[axis])] += 1
        if not parts[0].any():  # it looks so far beyond the border that its neighbour is nearer everywhere
            parts[0, 0] = 1
        return parts / parts.sum(dim=1, keepdim=True)

    rows, columns = part_of_cells(0), part_of_cells(1)
    for number, mask in enumerate([region == 0, region == 1, region == 2]):
        share = torch.einsum("bkij,iy,byx,jx->bk", maps.double(), rows, mask.double(), columns)
        expected = share / maps.double().sum(dim=(2, 3))
        assert torch.allclose(found[..., number], expected, atol=5e-4)
    assert torch.allclose(found.sum(dim=2), torch.ones(2, 3, dtype=torch.float64), atol=1e-12)
    assert not torch.allclose(found, region_shares(cape(maps), masks), atol=1e-2)


def test_placement_without_measured_places_has_the_numbers_of_before():
    maps, masks = torch.rand(2, 3, 7, 7), torch.rand(2, 1, 50, 37) > 0.5
    unknown = Grid((300, 300), (7, 7), Alignment((None, None), (32.0, 32.0), (300, 300)))
    for grid in (None, unknown, Grid((300, 300), (7, 7))):
        assert torch.equal(region_shares(replace(cape(maps), grid=grid), masks), region_shares(cape(maps), masks))
    exact = region_shares(cape(torch.ones(1, 1, 7, 7)), masks[:1])[0, 0, 0]
    assert float(exact) == pytest.approx(float(masks[0].double().mean()), abs=1e-12)


def test_a_map_that_sees_nothing_has_the_areas_as_its_shares():
    masks = torch.zeros(2, 1, 30, 30)
    masks[0, 0, 3:11, 2:25] = 1
    placement = Placement(["lesion"], ["a"])
    placement.add(cape(torch.ones(2, 1, 7, 7)), masks)
    assert placement.shares()["a"]["lesion"] == pytest.approx(8 * 23 / 1800)
    assert placement.areas() == pytest.approx(placement.shares()["a"])


def test_means_are_over_the_images_of_each_class_in_whatever_batches():
    maps = torch.rand(6, 1, 2, 2)
    classes = [[0], [2], [2], [0], [2], [0]]
    whole, parts = (Placement(["corner", "edge"], {0: "zero", 2: "two", 7: "never"}) for _ in range(2))
    whole.add(cape(maps, classes), two_regions(6))
    for first, last in ((0, 1), (1, 4), (4, 6)):
        parts.add(cape(maps[first:last], classes[first:last]), two_regions(last - first))
    assert parts.counts() == whole.counts() == {"zero": 3, "two": 3}
    corner = maps[:, 0, 0, 0] / maps.sum(dim=(1, 2, 3))
    for found in (whole.shares(), parts.shares()):
        assert list(found) == ["zero", "two"]
        assert found["zero"]["corner"] == pytest.approx(float(corner[[0, 3, 5]].mean()), abs=1e-6)
        assert found["two"]["corner"] == pytest.approx(float(corner[[1, 2, 4]].mean()), abs=1e-6)
        assert all(sum(shares.values()) == pytest.approx(1) for shares in found.values())


def test_an_all_zero_map_has_no_share_and_does_not_count():
    placement = Placement(["corner", "edge"], ["a", "b"])
    placement.add(cape([[[[0.4, 0.0], [0.0, 0.4]], [[0.0, 0.0], [0.0, 0.0]]]]), two_regions())
    assert placement.counts() == {"a": 1}
    assert placement.shares() == {"a": {"corner": 0.5, "edge": 0.25, "elsewhere": 0.25}}
    placement.add(cape([[[[0.2, 0.0], [0.0, 0.0]]]], [[1]]), two_regions())
    assert placement.shares()["b"] == {"corner": 1.0, "edge": 0.0, "elsewhere": 0.0}


def test_the_table_by_hand():
    placement = Placement(["corner", "edge"], ["a|b", "same", "same"])
    placement.add(cape([[[[0.4, 0.0], [0.0, 0.4]], [[0.0, 0.0], [0.1, 0.0]]]], [[0, 2]]), two_regions())
    assert placement.table() == (
        "| class | corner | edge | elsewhere | images |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| a\\|b | 50.0% | 25.0% | 25.0% | 1 |\n"
        "| same (2) | 0.0% | 0.0% | 100.0% | 1 |\n"
        "| *area of the region* | 25.0% | 12.5% | 62.5% | 1 |\n"
    )


def test_the_chart_has_the_parts_of_the_table():
    placement = Placement(["corner", "edge"], [f"class {number}" for number in range(50)])
    placement.add(cape(torch.rand(1, 50, 4, 4)), two_regions())
    pixels = np.asarray(placement.chart(most=4))
    assert pixels.shape[0] < 350
    for colour in COLOURS[:3]:
        assert (pixels == ImageColor.getrgb(colour)).all(axis=2).sum() > 5 * 26


def test_nothing_added_gives_an_empty_table():
    assert Placement(["lesion"], ["a"]).table().count("\n") == 3
    Placement(["lesion"], ["a"]).chart()


@pytest.mark.parametrize(
    ("kind", "masks", "message"),
    [
        ("softcam", two_regions(2), "only 'cape' maps hold probabilities: this explanation is 'softcam'"),
        ("mu-cape", two_regions(2), "kind='cape'"),
        ("cape", two_regions(3), "masks for the 2 explained images, got 3"),
        ("cape", two_regions(2)[:, :1], "masks of 2 regions .corner, edge., got 1"),
        ("cape", two_regions(2)[:, 0], r"masks \(B, R, H, W\)"),
        ("cape", two_regions(2) * 0.5, "only 0 and 1, got values up to 0.5"),
        ("cape", torch.ones(2, 2, 4, 4), "overlap in image 0"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(kind, masks, message):
    maps = torch.rand(2, 1, 2, 2)
    placement = Placement(["corner", "edge"], ["a"])
    with pytest.raises(ValueError, match=message):
        placement.add(Explanation(maps, torch.zeros(2, 1, dtype=torch.int64), maps.sum(dim=(2, 3)), kind), masks)
    assert placement.counts() == {}
    assert sum(placement.areas().values()) == 0


def test_unnamed_classes_and_regions_without_a_name_of_their_own_are_refused():
    with pytest.raises(ValueError, match="class 3 has no name among the 2"):
        Placement(["corner", "edge"], ["a", "b"]).add(cape(torch.rand(1, 1, 2, 2), [[3]]), two_regions())
    for regions in ([], ["a", "a"], ["elsewhere"], "lesion"):
        with pytest.raises(ValueError, match="list of different names"):
            Placement(regions, ["a"])
    with pytest.raises(ValueError, match="B, R, H, W"):
        with_elsewhere(torch.zeros(1, 0, 4, 4))
