"""Compare the region of a map above a threshold with the annotation: IoU, and the pixel average precision (PxAP).

- A map is cut off at zero and scaled to [0, 1], and a threshold is a share of that range. A pixel belongs to the region
  if its value is *above* the threshold. A map without contrast has no region, and its IoU is 0.
- A threshold must not be chosen on the images that are scored with it. `iou_otsu` chooses it for each map, without the
  annotation. For one threshold per data set, choose the highest point of the mean curve of `iou_at` on validation
  images. PxAP needs no threshold.
- The histograms of images can be added up, which gives the histogram of a data set. `pixel_average_precision` takes
  such sums, as it is no mean over images: that is how it can be bootstrapped.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .localization import check_annotated
from .maps import min_max, require, unscored, without_broken

THRESHOLDS = tuple(step / 20 for step in range(20))
"""Thresholds at which regions are compared with the annotation: 0, 0.05, ..., 0.95."""

FINE_THRESHOLDS = tuple(step / 100 for step in range(100))
"""Thresholds of the average precision, 0, 0.01, ..., 0.99: two histograms of 101 numbers for each map."""

OTSU_BINS = 256
"""Number of bins among which Otsu's threshold is chosen, as for images of 8 bits."""


def pixel_histograms(maps: Tensor, masks: Tensor, thresholds: Sequence[float] = FINE_THRESHOLDS) -> Tensor:
    """Count the pixels that are above n of the thresholds, for n = 0 to all: (B, 2, thresholds + 1).

    The first row of an image counts the pixels on the annotation, the second one all others.

    Args:
        maps: Maps at image size, (B, H, W).
        masks: Masks, (B, H, W), true on the annotation.
        thresholds: Increasing numbers in [0, 1).
    """
    original, masks = check_annotated(maps, masks)
    scaled = min_max(without_broken(original).relu())
    borders = check_thresholds(thresholds).to(scaled)
    bins = len(borders) + 1
    level = torch.bucketize(scaled, borders)  # the number of thresholds that are below the value
    image = torch.arange(len(scaled), device=scaled.device)[:, None, None]
    place = (2 * image + (~masks).long()) * bins + level
    counts = torch.bincount(place.flatten(), minlength=2 * bins * len(scaled)).view(-1, 2, bins)
    return unscored(counts.to(scaled.dtype), original)


def check_thresholds(thresholds: Sequence[float]) -> Tensor:
    """Check thresholds, and return them as a tensor."""
    values = torch.tensor(list(thresholds), dtype=torch.float64)
    rising = values.ndim == 1 and len(values) > 0 and bool((values[1:] > values[:-1]).all())
    whole = rising and float(values[0]) >= 0 and float(values[-1]) < 1
    require(whole, f"thresholds must be increasing numbers from 0 to below 1, got {list(thresholds)}")
    return values


def iou_at(maps: Tensor, masks: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    """Compute the intersection over union of annotation and region above each threshold, (B, thresholds) in [0, 1].

    Arguments as for `pixel_histograms`.
    """
    histograms = pixel_histograms(maps, masks, thresholds)
    above = _sums_from_the_top(histograms)[..., 1:]  # pixels in each region, on the annotation and beside it
    annotated = histograms[:, 0].sum(dim=1, keepdim=True)
    return above[:, 0] / (annotated + above[:, 1])


def iou_otsu(maps: Tensor, masks: Tensor) -> Tensor:
    """Compute the intersection over union of annotation and region above Otsu's threshold, (B,) in [0, 1].

    Otsu's threshold divides the values of a map into two classes whose means differ most: it maximises the variance
    between the classes (Otsu, 1979). It is the upper border of one of 256 bins. It needs no annotation.

    Args:
        maps: Maps at image size, (B, H, W).
        masks: Masks, (B, H, W), true on the annotation.
    """
    original, masks = check_annotated(maps, masks)
    scaled = min_max(without_broken(original).relu())
    bins = (scaled * OTSU_BINS).long().clamp_max(OTSU_BINS - 1)
    regions = bins > otsu_bins(bins)[:, None, None]
    inside, either = (regions & masks).sum(dim=(1, 2)), (regions | masks).sum(dim=(1, 2))
    return unscored(inside.to(scaled.dtype) / either, original)


def otsu_bins(bins: Tensor) -> Tensor:
    """Return the highest bin of the lower of Otsu's classes for the bins (B, H, W) of pixels, (B,)."""
    image = torch.arange(len(bins), device=bins.device)[:, None, None]
    counts = torch.bincount((image * OTSU_BINS + bins).flatten(), minlength=len(bins) * OTSU_BINS)
    counts = counts.view(-1, OTSU_BINS).cpu().double()  # not every device has double precision
    below, sums = counts.cumsum(dim=1), (counts * torch.arange(OTSU_BINS)).cumsum(dim=1)
    above = below[:, -1:] - below
    means = sums / below, (sums[:, -1:] - sums) / above  # 0 / 0 where a class is empty
    between = below * above * (means[0] - means[1]).square()
    return between.nan_to_num(-1.0).argmax(dim=1).to(bins.device)


def pixel_average_precision(histograms: Tensor) -> Tensor:
    """Compute the area under precision over recall of the pixels, PxAP, (...) in [0, 1].

        histograms = pixel_histograms(maps, masks)                  # of many images
        pixel_average_precision(histograms.sum(dim=0))              # of the data set

    Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020: the sum over the
    thresholds of precision times the increase of recall. Their code has 1,000 thresholds. With 100, pixels in the same
    hundredth of the range count as equal. A map without contrast has the share of the annotation in the image. NaN
    where no pixel is annotated.

    Args:
        histograms: Sums of `pixel_histograms` over the images of a data set, (..., 2, n).
    """
    histograms = torch.as_tensor(histograms)
    shape = tuple(histograms.shape)
    require(len(shape) >= 2 and shape[-2] == 2, f"expected sums of histograms (..., 2, n), got shape {shape}")
    counts = histograms.double() if histograms.device.type == "cpu" else histograms
    above = _sums_from_the_top(counts)
    hits, pixels = above[..., 0, :], above.sum(dim=-2)
    precision = hits / pixels.clamp_min(1)
    return (precision * counts[..., 0, :]).sum(dim=-1) / hits[..., 0]


def _sums_from_the_top(histograms: Tensor) -> Tensor:
    """Return the number of pixels in each bin and all higher ones."""
    return histograms.flip(-1).cumsum(dim=-1).flip(-1)
