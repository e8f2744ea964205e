"""Compare the boxes around the parts of a map with the boxes of the annotation: MaxBoxAccV2.

- The parts of a map are the connected components of its region above a threshold; neighbours at a corner belong
  together. An annotation has a box for each of its connected components, so that two lesions which touch have one box.
- An image counts as found at an IoU of 0.3, 0.5 or 0.7 if *one* of the parts and *one* of the boxes overlap as much.
- The threshold is the best one for the data set, as Choe et al. define the score. It is therefore chosen on the images
  that are scored, for each explainer and each IoU, and favours nobody. The thresholds are 0, 0.05, ..., 0.95.
- Boxes are left, top, right, bottom in pixels; right and bottom are the first outside.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .localization import check_masks
from .maps import check_maps, min_max, require, shape_of, unscored, without_broken
from .thresholds import THRESHOLDS, check_thresholds

BOX_IOUS = (0.3, 0.5, 0.7)
"""IoU from which on a box counts as found; MaxBoxAccV2 is the mean over these."""

ROUNDING = 1e-6
"""Amount by which an IoU may miss a level, as numbers of single precision do."""

REGIONS_AT_ONCE = 4_000_000
"""Number of pixels of thresholded maps that are searched for components together, which bounds the memory."""


PAIRS_AT_ONCE = 100_000
"""Number of pairs of boxes that are compared together; with more than a processor's cache it takes longer."""


def annotation_boxes(masks: Tensor) -> Tensor:
    """Return the boxes around the connected components of masks (B, H, W): (B, n, 4), filled up with boxes of zeros.

    Args:
        masks: Masks, (B, H, W), true on the annotation.
    """
    require(masks.ndim == 3 and masks.numel() > 0, f"expected masks (B, H, W), {shape_of(masks)}")
    boxes, owners = component_boxes(check_masks(masks))
    counts = torch.bincount(owners, minlength=len(masks))
    first = counts.cumsum(dim=0) - counts
    filled = boxes.new_zeros(len(masks), int(counts.max()), 4)
    filled[owners, torch.arange(len(boxes), device=boxes.device) - first[owners]] = boxes
    return filled


def box_ious(maps: Tensor, boxes: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    """Compute the largest IoU of a box around a part of the map with a box of the annotation, (B, thresholds).

    Args:
        maps: Maps at image size, (B, H, W).
        boxes: Boxes of the annotation, (B, n, 4), as `annotation_boxes` finds them in masks, or given ones. Boxes of
            zeros stand for none.
        thresholds: Increasing numbers in [0, 1), as shares of the range of a map.
    """
    original = check_maps(maps)
    shape = tuple(boxes.shape)
    whole = boxes.ndim == 3 and shape[0] == len(maps) and shape[2] == 4
    require(whole, f"expected boxes (B, n, 4) of the {len(maps)} maps as left, top, right, bottom, got shape {shape}")
    scaled = min_max(without_broken(original).relu())
    borders = check_thresholds(thresholds).to(scaled)
    images = max(1, REGIONS_AT_ONCE // max(scaled[0].numel() * len(borders), 1))
    parts = zip(scaled.split(images), boxes.to(scaled).split(images), strict=True)
    return unscored(torch.cat([_largest_ious(some, theirs, borders) for some, theirs in parts]), original)


def _largest_ious(scaled: Tensor, boxes: Tensor, borders: Tensor) -> Tensor:
    """Compute the largest IoUs of a few maps (B, H, W) in [0, 1], (B, thresholds)."""
    regions = (scaled[:, None] > borders[:, None, None]).flatten(0, 1)  # (B·thresholds, H, W)
    found, owners = component_boxes(regions)
    largest = scaled.new_zeros(len(regions))
    if found.numel() and boxes.numel():
        at_once = max(1, PAIRS_AT_ONCE // boxes.shape[1])
        for parts, regions_of_parts in zip(found.to(scaled).split(at_once), owners.split(at_once), strict=True):
            ious = _ious(parts, boxes[regions_of_parts // len(borders)]).amax(dim=1)
            largest.scatter_reduce_(0, regions_of_parts, ious, "amax")
    return largest.view(len(scaled), -1)


def _ious(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the IoU of each box (N, 4) with its own others (N, n, 4), (N, n); 0 with a box of zeros."""
    boxes = boxes[:, None]
    sides = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    shared = sides.clamp_min(0).prod(dim=-1)
    areas = [(one[..., 2:] - one[..., :2]).prod(dim=-1) for one in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared)


def box_hits(ious: Tensor) -> Tensor:
    """Mark the thresholds at which an image is found, and count the image: (B, 3, thresholds + 1).

    Sums of these over a data set are what `max_box_accuracies` takes.

    Args:
        ious: Largest IoUs, (B, thresholds), of `box_ious`; NaN for an image without a score.
    """
    levels = ious.new_tensor(BOX_IOUS)[:, None] - ROUNDING
    hits = (ious[:, None] >= levels).to(ious.dtype)
    hits = torch.cat([hits, torch.ones_like(hits[..., :1])], dim=-1)
    return hits.masked_fill(ious.isnan().any(dim=1)[:, None, None], torch.nan)


def max_box_accuracies(sums: Tensor) -> Tensor:
    """Compute the share of images that are found at the best threshold, (..., 3) in [0, 1]: for IoU 0.3, 0.5 and 0.7.

        ious = box_ious(maps, annotation_boxes(masks))                  # of many images
        max_box_accuracies(box_hits(ious).sum(dim=0)).mean()            # MaxBoxAccV2 of the data set

    Choe et al., "Evaluation for Weakly Supervised Object Localization: Protocol, Metrics, and Datasets", TPAMI 2022,
    which has MaxBoxAccV2 beside the MaxBoxAcc of the CVPR paper. Their code searches up to 1,000 thresholds of maps of
    8 bits.

    Args:
        sums: Sums of `box_hits` over the images of a data set, (..., 3, thresholds + 1).
    """
    sums = torch.as_tensor(sums)
    return sums[..., :-1].amax(dim=-1) / sums[..., -1]


def component_boxes(regions: Tensor) -> tuple[Tensor, Tensor]:
    """Find the boxes around the connected components of many regions at once.

    Components are joined run by run instead of pixel by pixel: a *run* is a row of neighbouring pixels in a region, and
    two runs of rows one below the other are linked if they touch, at a corner at least.

    Args:
        regions: Booleans, (N, H, W).

    Returns:
        Boxes (n, 4), and the index of the region of each, (n,), in increasing order.
    """
    height, width = regions.shape[1] + 1, regions.shape[2] + 1
    pixels = F.pad(regions, (0, 1, 0, 1)).flatten()  # a pixel between rows and a row between regions keep runs apart
    before = F.pad(pixels, (1, 0))[:-1]
    starts = (pixels & ~before).nonzero()[:, 0]
    ends = (~pixels & before).nonzero()[:, 0]
    labels = _smallest_linked(len(starts), *_links(starts, ends, width))

    components, owner_of_run = labels.unique(return_inverse=True)
    row, region = starts // width % height, starts // (width * height)
    sides = ((starts % width, "amin"), (row, "amin"), (ends % width, "amax"), (row + 1, "amax"))
    boxes = torch.stack([_reduce(values, owner_of_run, len(components), how) for values, how in sides], dim=1)
    return boxes, region[components]


def _links(starts: Tensor, ends: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the pairs of runs that touch: indices of the lower and of the upper runs.

    Args:
        starts: Place of the first pixel of each run, in increasing order; a row below adds `width`.
        ends: Place of the first pixel after each run.
        width: Number of pixels in a row, with the one that keeps rows apart.
    """
    first = torch.searchsorted(ends, starts - width)  # the first run that ends there or later
    last = torch.searchsorted(starts, ends - width, right=True)  # runs that start there or earlier
    counts = (last - first).clamp_min(0)
    lower = torch.arange(len(starts), device=starts.device).repeat_interleave(counts)
    nth = torch.arange(len(lower), device=starts.device) - (counts.cumsum(dim=0) - counts)[lower]
    return lower, first[lower] + nth


def _smallest_linked(count: int, lower: Tensor, upper: Tensor) -> Tensor:
    """Return the smallest index among all that are linked with each index, also through others, (count,).

    Args:
        count: Number of indices.
        lower: First index of every link.
        upper: Second index of every link.
    """
    labels = torch.arange(count, device=lower.device)
    while len(lower):
        ours, theirs = labels[lower], labels[upper]
        differ = ours != theirs
        if not differ.any():
            break
        lower, upper, ours, theirs = lower[differ], upper[differ], ours[differ], theirs[differ]
        labels = labels.scatter_reduce(0, torch.maximum(ours, theirs), torch.minimum(ours, theirs), "amin")
        while not torch.equal(shorter := labels[labels], labels):  # a label may have got a smaller label by now
            labels = shorter
    return labels


def _reduce(values: Tensor, groups: Tensor, count: int, how: str) -> Tensor:
    """Reduce the values (n,) of each group to one, (count,)."""
    return values.new_zeros(count).scatter_reduce(0, groups, values, how, include_self=False)
