"""What the measures share: heat maps are those of `Explanation`, patches are means, blur is scipy's."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from softcam_hub import Explanation
from softcam_hub.explanation_scores.maps import blur, heat, on_pixels, patch_means, patch_ranks, patch_side


@pytest.mark.parametrize("shape", [(2, 7, 7), (2, 3, 4, 6)])
def test_heat_is_what_heatmaps_draws(shape):
    maps = torch.randn(shape)
    maps[0] = -1
    stacked = maps if len(shape) == 4 else maps[:, None]
    blank = torch.zeros(stacked.shape[:2])
    expected = Explanation(stacked, blank, blank, "softcam").heatmaps((20, 31))
    assert torch.equal(heat(maps, (20, 31)), expected.reshape(*shape[:-2], 20, 31))


def test_heat_of_a_broken_map_is_broken():
    maps = torch.rand(3, 4, 4)
    maps[1, 0, 0] = torch.inf
    assert heat(maps, 8)[1].isnan().all()
    assert heat(maps, 8)[[0, 2]].amax(dim=(1, 2)).tolist() == [1, 1]


def test_heat_wants_maps():
    with pytest.raises(ValueError, match=r"^heat\(\) expects maps \(B, H, W\) or \(B, k, H, W\), got .* \(4, 4\)$"):
        heat(torch.rand(4, 4), 8)


def test_patches_at_the_border_are_means_of_what_they_have():
    maps = torch.arange(15.0).view(1, 3, 5)
    assert patch_means(maps, 2)[0].tolist() == [[3, 5, 6.5], [10.5, 12.5, 14]]
    assert patch_ranks(maps, 2)[0].tolist() == [[5, 4, 3], [2, 1, 0]]


def test_equal_patches_keep_reading_order():
    assert patch_ranks(torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]), 1)[0].tolist() == [[2, 0], [1, 3]]
    assert torch.equal(patch_ranks(torch.zeros(1, 64, 64), 1).flatten(), torch.arange(64 * 64))


def test_patches_on_their_pixels():
    patches = torch.tensor([[[1, 2], [3, 4]]])
    assert on_pixels(patches, 2, (3, 4))[0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]]


@pytest.mark.parametrize(("size", "side"), [((512, 512), 32), ((224, 300), 14), ((100, 100), 6), ((7, 7), 1)])
def test_a_patch_is_a_sixteenth_of_the_shorter_side(size, side):
    assert patch_side(torch.empty(1, *size), None) == side


def test_blur_is_scipys():
    images = torch.rand(2, 3, 20, 17)
    expected = [gaussian_filter(channel.numpy(), 2.0, radius=5, mode="nearest") for channel in images.flatten(0, 1)]
    found = blur(images, radius=5, sigma=2.0).flatten(0, 1)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-5)
