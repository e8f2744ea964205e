"""Correlate maps of images with maps of the mirrored images, and find the shift δ at which they agree best.

Cell i of a map looks at the place i + 1/2 + δ, in cells, as `flip_registration` explains. So the place i + 1/2 of an
image belongs to the index i - δ of its map, and to the index i + δ of the map of its mirror image, mirrored back. Both
maps are read at these indices, for every δ of a fine grid.
"""

from functools import cache

import torch
from torch import Tensor

LARGEST_OFFSET, STEP = 1.25, 0.01
"""Range and resolution of the search for δ, in cells. The geometry of strided convolutions gives up to 1/2, and that of
average pooling in dilated stages 1."""

MARGIN = 2
"""Number of cells at each border that are left out. What zero padding adds there does not move with the image."""

FEWEST_CELLS = 7
"""Number of cells along an axis below which too little is left between the margins."""

_SAMPLES_PER_CELL = 4


def correlate_flips(maps: Tensor, mirrored: Tensor) -> Tensor:
    """Correlate the maps of each image with those of its mirror image, mirrored back, for every δ of a fine grid.

    Both maps are interpolated (cubic) at common places of the image, and correlated over places, rows and classes.

    Args:
        maps: Maps (B, C, H, W); the width is compared.
        mirrored: Maps (B, C, H, W) of the mirrored images, mirrored back.

    Returns:
        Correlations (B, offsets); all 0 for maps of too few cells.
    """
    count = maps.shape[3]
    if count < FEWEST_CELLS:
        return maps.new_zeros(len(maps), len(_offsets()))
    maps, mirrored = (values - values.mean(dim=(2, 3), keepdim=True) for values in (maps, mirrored))
    first, second = maps.flatten(1, 2), mirrored.flatten(1, 2)  # (B, rows, W)
    pairs = {"both": (first, second), "first": (first, first), "second": (second, second)}
    sums = {"first": first.sum(dim=1), "second": second.sum(dim=1)}
    operators, totals, places = _operators(count)

    # sums of products of interpolated maps, and of their means, for every image and offset
    means = {name: sums[name] @ totals[name].to(maps).T for name in sums}  # (B, offsets)
    means = {"both": means["first"] * means["second"], **{name: means[name].square() for name in sums}}
    moments = {}
    for name, (left, right) in pairs.items():
        products = (left.mT @ right).flatten(1) @ operators[name].to(maps).flatten(1).T
        moments[name] = products - means[name] / (first.shape[1] * places)
    scale = (moments["first"].clamp_min(0) * moments["second"].clamp_min(0)).sqrt()
    return torch.where(scale > 0, moments["both"] / scale, 0.0)


def find_offset(correlations: Tensor) -> Tensor:
    """Return the δ of the largest of the correlations (..., offsets), or NaN where none is positive, (...)."""
    best, index = correlations.max(dim=-1)
    return torch.where(best > 0, _offsets().to(correlations)[index], torch.nan)


def _offsets() -> Tensor:
    return torch.arange(-LARGEST_OFFSET, LARGEST_OFFSET + STEP / 2, STEP, dtype=torch.float64)


@cache
def _operators(count: int) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Return what interpolating two maps of `count` cells and summing their products comes to, for every δ.

    Returns:
        The matrices (offsets, count, count) by which products of cells count, the vectors (offsets, count) by which
        cells count in the sum, and the number of places that are summed over.
    """
    offsets = _offsets().tolist()
    places = torch.arange(MARGIN, count - 1 - MARGIN + 1e-9, 1 / _SAMPLES_PER_CELL, dtype=torch.float64)
    weights = {
        "first": torch.stack([_cubic(places - offset, count) for offset in offsets]),
        "second": torch.stack([_cubic(places + offset, count) for offset in offsets]),
    }
    operators = {name: values.mT @ values for name, values in weights.items()}
    operators["both"] = weights["first"].mT @ weights["second"]
    return operators, {name: values.sum(dim=1) for name, values in weights.items()}, len(places)


def _cubic(places: Tensor, count: int) -> Tensor:
    """Return the weights (places, count) of Keys' cubic interpolation between samples 0 to count - 1."""
    below = places.floor()
    weights = torch.zeros(len(places), count, dtype=torch.float64)
    for tap in (-1, 0, 1, 2):
        distance = (places - below - tap).abs()
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        index = (below + tap).long().clamp(0, count - 1)
        weights.scatter_add_(1, index[:, None], torch.where(distance <= 1, near, far)[:, None])
    return weights
