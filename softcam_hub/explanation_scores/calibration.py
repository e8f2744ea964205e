"""Ask what the size of a map's values means: P(annotation | mass of a cell), and evidence where nothing is annotated.

- The mass of a cell is its share of the positive part of the map, times the probability of the class. The cells add up
  to this probability. Maps of CAPE are their own masses. For all other maps, this is a way to compare them.
- Bins of mass have fixed borders, so that histograms of images can be added up. Borders grow by a factor of about 3,
  because most cells of a map hold very little.
- No bin is expected to hold annotated cells in proportion to its mass: a class that covers ten cells spreads its
  probability over them. What is expected of a map is that the share rises with the mass, and that the cells of the
  highest bins lie on the annotation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .maps import check_maps, check_same_size, require, smallest, unscored, without_broken

MASS_BORDERS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
"""Borders between the bins of mass. The first bin begins at 0 and the last one ends at 1."""


def cell_masses(maps: Tensor, probabilities: Tensor) -> Tensor:
    """Distribute the probability of a class over the cells in proportion to the positive part of its map, (B, h, w).

    A map without any positive value has no place for the probability, and its cells have no mass.

    Args:
        maps: Maps at their own resolution, (B, h, w).
        probabilities: Probability of the class of each map, (B,).
    """
    maps = check_maps(maps)
    same = tuple(probabilities.shape) == (len(maps),)
    require(same, f"expected {len(maps)} probabilities, one for each map, got shape {tuple(probabilities.shape)}")
    whole = without_broken(maps)
    positive = whole.relu() / whole.amax(dim=(1, 2), keepdim=True).clamp_min(smallest(whole))  # sums stay finite
    shares = positive / positive.sum(dim=(1, 2), keepdim=True).clamp_min(smallest(whole))
    return unscored(shares * probabilities.to(maps)[:, None, None], maps)


def mass_histograms(masses: Tensor, touched: Tensor, borders: Sequence[float] = MASS_BORDERS) -> Tensor:
    """Count the cells of each map by their mass, (B, 3, borders + 1).

    The rows of an image are: cells that touch the annotation, all cells, and the sum of their masses. The mass at a
    border belongs to the bin below it.

    Args:
        masses: Masses of cells, (B, h, w).
        touched: Booleans, (B, h, w), true for cells that touch the annotation. Images without an annotation count too.
        borders: Increasing borders between the bins.
    """
    masses = check_maps(masses, "masses")
    check_same_size(masses, touched, "masses and touched cells")
    whole = without_broken(masses).flatten(1)
    limits = torch.tensor(list(borders)).to(whole)
    require(bool((limits[1:] > limits[:-1]).all()), f"borders must be increasing numbers, got {list(borders)}")
    bins = torch.bucketize(whole, limits)
    rows = torch.stack([touched.to(whole).flatten(1), torch.ones_like(whole), whole], dim=1)  # (B, 3, cells)
    empty = rows.new_zeros(len(rows), 3, len(limits) + 1)
    return unscored(empty.scatter_add(2, bins[:, None].expand_as(rows), rows), masses)


def reliability(sums: Tensor) -> Tensor:
    """Compute the share of cells that touch the annotation, by bin of mass: (..., bins), NaN for an empty bin.

    Args:
        sums: Sums of `mass_histograms` over the images of a data set, (..., 3, bins).
    """
    sums = torch.as_tensor(sums)
    return sums[..., 0, :] / sums[..., 1, :]


def mean_evidence(maps: Tensor) -> Tensor:
    """Compute the mean of the positive part of each map, (B,), in the unit of the map.

    Args:
        maps: Maps at their own resolution, (B, h, w).
    """
    maps = check_maps(maps)
    return unscored(without_broken(maps).relu().mean(dim=(1, 2)), maps)


def largest_evidence(maps: Tensor) -> Tensor:
    """Compute the largest value of the positive part of each map, (B,), in the unit of the map.

    Args:
        maps: Maps at their own resolution, (B, h, w).
    """
    maps = check_maps(maps)
    return unscored(without_broken(maps).relu().amax(dim=(1, 2)), maps)


def false_alarms(largest: Tensor, annotated: Tensor) -> Tensor:
    """Compute how often an image without an annotation has as much evidence as half of those with one, () in [0, 1].

    The score is the share of images without an annotation whose largest evidence is above the median of the images
    with one; an image at the median counts half. A map that cannot tell the two apart has 0.5. The score has no unit,
    so that maps of all kinds can be compared.
    NaN where one of the two kinds of images is missing.

    Args:
        largest: Largest evidence of each image, (B,), NaN for images without a map.
        annotated: Booleans, (B,), true for images with an annotation.
    """
    shapes = f"{tuple(largest.shape)} and {tuple(annotated.shape)}"
    require(largest.ndim == 1 and largest.shape == annotated.shape, f"expected two values for each image, got {shapes}")
    healthy, diseased = (largest[some & ~largest.isnan()] for some in (~annotated, annotated))
    if not len(healthy) or not len(diseased):
        return largest.new_tensor(torch.nan)
    median = diseased.quantile(0.5)
    return ((healthy > median).to(largest.dtype) + (healthy == median).to(largest.dtype) / 2).mean()
