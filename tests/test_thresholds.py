"""Regions above thresholds against masks: by hand, against slow definitions, scikit-image and scikit-learn."""

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu
from sklearn.metrics import average_precision_score

from softcam_hub.explanation_scores.maps import min_max
from softcam_hub.explanation_scores.thresholds import (
    FINE_THRESHOLDS,
    THRESHOLDS,
    iou_at,
    iou_otsu,
    otsu_bins,
    pixel_average_precision,
    pixel_histograms,
)

MAPS = torch.tensor([[[4.0, 0.0, 1.0], [2.0, -5.0, 3.0]]])  # scaled: 1, 0, 0.25, 0.5, 0, 0.75
MASKS = torch.tensor([[[True, True, False], [False, False, True]]])
ZERO, CONSTANT, NEGATIVE = torch.zeros(1, 2, 3), torch.full((1, 2, 3), 0.7), torch.full((1, 2, 3), -1.0)


def random_maps(count=20, size=(9, 13)):
    """Maps of a few smooth spots with negative values, and masks of some of their pixels."""
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(count, *size, generator=generator)
    maps = torch.nn.functional.avg_pool2d(maps[:, None], 3, stride=1, padding=1)[:, 0]
    masks = maps + 0.3 * torch.randn(count, *size, generator=generator) > 0.3
    masks[:, 2, 2] = True
    return maps, masks


def test_histograms_by_hand():
    found = pixel_histograms(MAPS, MASKS, (0.0, 0.25, 0.5))
    assert found[0].tolist() == [[1, 0, 0, 2], [1, 1, 1, 0]]  # 0.25 and 0.5 are not above themselves


def test_iou_at_thresholds_by_hand():
    found = iou_at(MAPS, MASKS, (0.0, 0.25, 0.5, 0.8))
    assert found[0].tolist() == pytest.approx([2 / 5, 2 / 4, 2 / 3, 1 / 3])
    assert iou_at(MAPS, MASKS).shape == (1, len(THRESHOLDS)) == (1, 20)


def slow_iou(image, mask, threshold):
    pixels = [(y, x) for y in range(image.shape[0]) for x in range(image.shape[1])]
    positive = {pixel: max(float(image[pixel]), 0.0) for pixel in pixels}
    low, high = min(positive.values()), max(positive.values())
    region = {pixel for pixel in pixels if (positive[pixel] - low) / (high - low) > threshold}
    annotated = {pixel for pixel in pixels if mask[pixel]}
    return len(region & annotated) / len(region | annotated)


def test_iou_at_thresholds_is_the_definition():
    maps, masks = random_maps()
    found = iou_at(maps, masks)
    for image, mask, curve in zip(maps, masks, found, strict=True):
        assert curve.tolist() == pytest.approx([slow_iou(image, mask, threshold) for threshold in THRESHOLDS])


def slow_otsu(bins):
    """Otsu's criterion, class by class: the highest bin of the lower class."""
    best, chosen = -1.0, 0
    for border in range(255):
        lower, upper = bins[bins <= border], bins[bins > border]
        if len(lower) and len(upper):
            between = len(lower) * len(upper) * (lower.mean() - upper.mean()) ** 2
            if between > best * (1 + 1e-9):
                best, chosen = between, border
    return chosen


def test_otsu_is_the_definition_and_that_of_scikit_image():
    maps, masks = random_maps(8, (24, 30))
    scaled = min_max(maps.relu())
    bins = (scaled * 256).long().clamp_max(255)
    for image, own, chosen in zip(scaled.numpy(), bins.numpy(), otsu_bins(bins).tolist(), strict=True):
        assert chosen == slow_otsu(own.flatten())
        centre = threshold_otsu(image, nbins=256)  # the centre of the bin, where ours is its upper border
        assert (chosen + 1) / 256 == pytest.approx(centre + 1 / 512, abs=1e-6)
    borders = (otsu_bins(bins) + 1) / 256
    regions = scaled >= borders[:, None, None]
    expected = (regions & masks).sum(dim=(1, 2)) / (regions | masks).sum(dim=(1, 2))
    assert torch.equal(iou_otsu(maps, masks), expected)
    assert len(expected.unique()) > 4


def test_iou_with_otsu_by_hand():
    maps = torch.tensor([[[9.0, 8.0, 1.0], [0.0, -3.0, 1.0]]])  # two classes: 9 and 8 against the rest
    assert iou_otsu(maps, MASKS).tolist() == pytest.approx([2 / 3])
    assert iou_otsu(maps, ~MASKS).tolist() == [0]
    assert iou_otsu(1e-20 * maps, MASKS).tolist() == pytest.approx([2 / 3])


@pytest.mark.parametrize("maps", [ZERO, CONSTANT, NEGATIVE], ids=["zero", "constant", "negative"])
def test_a_map_without_contrast_has_no_region(maps):
    assert iou_otsu(maps, MASKS).tolist() == [0]
    assert iou_at(maps, MASKS).abs().sum() == 0
    histograms = pixel_histograms(maps, MASKS)
    assert histograms[0, :, 0].tolist() == [3, 3]
    assert pixel_average_precision(histograms[0]) == 3 / 6  # as any map that says the same everywhere


def test_average_precision_by_hand():
    # from the top: 4 (hit), 3 (hit), 2, 1, 0 (hit) and -5 together
    expected = 1 / 3 * (1 / 1 + 2 / 2 + 3 / 6)
    assert float(pixel_average_precision(pixel_histograms(MAPS, MASKS)[0])) == pytest.approx(expected)
    # a second image whose only annotated pixel is the lowest; equal values of both images are one step
    other = torch.tensor([[[0.0, 0.5, 1.0], [0.25, 0.75, 1.0]]])
    mask = torch.tensor([[[True, False, False], [False, False, False]]])
    histograms = pixel_histograms(torch.cat([MAPS, other]), torch.cat([MASKS, mask]))
    expected = 1 / 4 * (1 / 3 + 2 / 5 + 2 * 4 / 12)
    assert float(pixel_average_precision(histograms.sum(dim=0))) == pytest.approx(expected)


def test_average_precision_is_that_of_scikit_learn():
    maps, masks = random_maps()
    scaled = min_max(maps.relu())
    found = float(pixel_average_precision(pixel_histograms(maps, masks).sum(dim=0)))
    exact = average_precision_score(masks.flatten(), scaled.flatten())
    level = (scaled[..., None] > torch.tensor(FINE_THRESHOLDS)).sum(dim=-1)
    assert found == pytest.approx(average_precision_score(masks.flatten(), level.flatten()), abs=1e-9)
    assert found == pytest.approx(exact, abs=0.01), "100 thresholds are enough"


def test_average_precision_of_many_sums_at_once():
    """As a bootstrap asks for it: sums of images, and arrays of NumPy."""
    histograms = pixel_histograms(*random_maps(6))
    sums = np.stack([histograms[:3].sum(dim=0).numpy(), histograms[3:].sum(dim=0).numpy()])
    assert pixel_average_precision(sums).tolist() == [
        float(pixel_average_precision(histograms[:3].sum(dim=0))),
        float(pixel_average_precision(histograms[3:].sum(dim=0))),
    ]
    assert pixel_average_precision(torch.zeros(2, 101)).isnan()


ERRORS = {
    "order": (
        lambda: iou_at(MAPS, MASKS, (0.5, 0.2)),
        r"^thresholds must be increasing numbers from 0 to below 1, got",
    ),
    "one": (lambda: iou_at(MAPS, MASKS, (0.5, 1.0)), r"below 1, got \[0.5, 1.0\]$"),
    "none": (lambda: iou_at(MAPS, MASKS, ()), r"below 1, got \[\]$"),
    "mask": (lambda: iou_otsu(MAPS, MASKS[:, :1]), r"resize one of them$"),
    "empty mask": (lambda: pixel_histograms(MAPS, MASKS & ~MASKS), r"^the masks of images \[0\] are empty"),
    "flat histograms": (
        lambda: pixel_average_precision(torch.ones(4, 202)),
        r"^expected sums of histograms \(..., 2, n\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name):
    function, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        function()
