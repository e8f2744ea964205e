"""ROAD: what is removed is made up from its neighbours, exactly; the score against hand and another library."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer

from softcam_hub.explanation_scores.road import from_neighbours, road, road_curve


def slow_fill(image, removed):
    """The linear system of the paper, row by row, solved with numpy."""
    height, width = removed.shape
    unknown = [(i, j) for i in range(height) for j in range(width) if removed[i, j]]
    place = {pixel: index for index, pixel in enumerate(unknown)}
    matrix, right = np.zeros((len(unknown), len(unknown))), np.zeros(len(unknown))
    for row, (i, j) in enumerate(unknown):
        for a in (-1, 0, 1):
            for b in (-1, 0, 1):
                near = (i + a, j + b)
                if (a, b) == (0, 0) or not (0 <= near[0] < height and 0 <= near[1] < width):
                    continue
                weight = 1 / 6 if a == 0 or b == 0 else 1 / 12
                matrix[row, row] += weight
                if near in place:
                    matrix[row, place[near]] -= weight
                else:
                    right[row] += weight * image[near]
    filled = image.copy()
    if unknown:
        filled[tuple(np.array(unknown).T)] = np.linalg.solve(matrix, right)
    return filled


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.95])
def test_removed_pixels_are_the_means_of_their_neighbours(share):
    images, removed = torch.randn(3, 2, 12, 9), torch.rand(3, 12, 9) < share
    found = from_neighbours(images, removed, tolerance=1e-6)
    for image, mask, ours in zip(images, removed, found, strict=True):
        for channel in range(2):
            expected = slow_fill(image[channel].double().numpy(), mask.numpy())
            np.testing.assert_allclose(ours[channel].numpy(), expected, atol=1e-4)


def test_what_is_not_removed_stays_and_a_plane_is_continued():
    ramp = torch.arange(10.0).expand(1, 1, 10, 10).clone()
    removed = torch.zeros(1, 10, 10, dtype=torch.bool)
    removed[0, 3:7, 2:8] = True
    spoilt = torch.where(removed[:, None], 99.0, ramp)
    torch.testing.assert_close(from_neighbours(spoilt, removed, tolerance=1e-7), ramp, rtol=0, atol=1e-4)


def test_an_image_that_is_removed_whole_is_blank_and_leaves_the_others():
    images, removed = torch.rand(2, 1, 6, 6), torch.zeros(2, 6, 6, dtype=torch.bool)
    removed[0] = True
    found = from_neighbours(images, removed)
    assert found[0].abs().sum() == 0
    assert torch.equal(found[1], images[1])


def test_a_large_hole_is_filled_to_within_the_noise():
    """The usual tolerance is loose: what it leaves must be far below the noise of 0.01."""
    images, removed = torch.rand(1, 3, 96, 96), torch.zeros(1, 96, 96, dtype=torch.bool)
    removed[0, 4:92, 4:92] = True
    rough, exact = (from_neighbours(images, removed, tolerance) for tolerance in (1e-5, 1e-7))
    assert (rough - exact).abs().max() < 1e-3


def test_imputation_agrees_with_another_library():
    image, mask = torch.rand(3, 14, 14), (torch.rand(14, 14) > 0.5).float()
    theirs = NoisyLinearImputer(noise=0.0)(image, mask)
    ours = from_neighbours(image[None], mask[None] == 0, tolerance=1e-6)[0]
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-3)


def brightness(images):
    bright = images.flatten(1).mean(dim=1).clamp(0, 1)
    return torch.stack([bright, 1 - bright], dim=1)


BLOB = torch.full((1, 1, 8, 8), 0.25)
BLOB[0, 0, :2, :4] = 1.0
LABEL = torch.tensor([0])


def test_road_curve_by_hand():
    maps = BLOB[:, 0]
    found = road_curve(brightness, BLOB, maps, [0.0, 0.125, 1.0], noise=0.0, classes=LABEL)
    assert found[0].tolist() == pytest.approx([(8 + 56 / 4) / 64, 0.25, 0.0], abs=1e-4)
    least = road_curve(brightness, BLOB, maps, [0.875], most_relevant_first=False, noise=0.0, classes=LABEL)
    assert least[0].tolist() == pytest.approx([1.0], abs=1e-3)


def test_road_is_half_the_distance_between_the_curves():
    maps = BLOB[:, 0]
    curves = [road_curve(brightness, BLOB, maps, most_relevant_first=first, classes=LABEL) for first in (True, False)]
    assert float(road(brightness, BLOB, maps, classes=LABEL)) == pytest.approx(
        float((curves[1] - curves[0]).mean() / 2)
    )
    assert 0 < float(road(brightness, BLOB, maps, classes=LABEL)) <= 0.5
    assert -0.5 <= float(road(brightness, BLOB, 1 - maps, classes=LABEL)) < 0


def test_road_does_not_depend_on_the_batch_and_repeats():
    images, maps = torch.rand(3, 1, 10, 10), torch.rand(3, 10, 10)
    expected = road_curve(brightness, images, maps)
    assert torch.equal(road_curve(brightness, images, maps), expected)
    torch.testing.assert_close(road_curve(brightness, images, maps, batch=2), expected, rtol=0, atol=1e-5)
    alone = [road_curve(brightness, image, map) for image, map in zip(images.split(1), maps.split(1), strict=True)]
    torch.testing.assert_close(torch.cat(alone), expected, rtol=0, atol=1e-4)
    assert not torch.equal(road_curve(brightness, images, maps, seed=1), expected)


def test_noise_falls_on_removed_pixels_only():
    seen = []

    def spy(images):
        seen.append(images)
        return brightness(images)

    maps = torch.rand(1, 8, 8)
    road_curve(spy, BLOB, maps, [0.25], noise=0.5, classes=LABEL)
    changed = (seen[-1] - BLOB)[0, 0] != 0
    assert changed.sum() == 16
    assert maps[0][changed].min() > maps[0][~changed].max()
    assert seen[-1][0, 0][changed].std() > 0.2


@pytest.mark.parametrize("fractions", [[], [1.5], [-0.1]])
def test_fractions(fractions):
    with pytest.raises(ValueError, match=r"^fractions must lie in \[0, 1\], got \["):
        road(brightness, BLOB, BLOB[:, 0], fractions)
