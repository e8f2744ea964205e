"""IDSDS, the in-domain single-deletion score (Hesse, Schaub-Meyer and Roth, NeurIPS 2024).

A cell of a 4x4 grid is deleted from the image, and the output of a class drops. The score is the rank correlation
(Spearman) of these 16 drops with the means of the map over the 16 cells. It is *in-domain* where the model has learnt
from images with one deleted cell, as `softcam-hub train --delete-cells` teaches it; otherwise a drop may come from the
strange look of a hole.

The paper and its code (github.com/visinf/idsds) leave no choice in most points. What is done here:

- Deleted pixels are 0 after the normalisation of the image, which is the mean colour, as in their code.
- The output is the logit, without a softmax, as in their code.
- The class is the true label in their code. Here it is `classes`, and the benchmark passes the true labels.
- Their grid has cells of one size: pixels that are left over at the border belong to none. Here every pixel belongs to
  a cell, and cells may differ by a pixel in length. They sum the map over a cell. Here it is the mean, so that a larger
  cell is not worth more. On sides that 4 divides, both ways give the same ranks.
- An image whose map, or whose drops, are the same in all cells has no rank correlation. Their mean leaves it out; here
  it counts as 0, so that every explainer is measured on the same images.
"""

import torch
from torch import Tensor

from .maps import at_least_float32, check_maps, grid_cells, unscored, without_broken
from .perturbation import spearman
from .predictions import Predict, check_maps_fit, region_drops

GRID_SIDE = 4
"""Number of cells along a side of the image, as published."""


def idsds(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    side: int = GRID_SIDE,
    fill: float | Tensor = 0.0,
    classes: Tensor | None = None,
    batch: int = 64,
) -> Tensor:
    """Compute the rank correlation of the means of a map over the cells of a grid with drops by their deletion, (B,).

    Values lie in [-1, 1], and higher is better.

        idsds(model, images, maps, classes=labels).mean()  # as published

    Args:
        predict: Function from images to logits (B, C).
        images: Normalised images, (B, C, H, W).
        maps: Maps at image size, (B, H, W), signed or not.
        side: Number of cells along each side of the image.
        fill: Value of deleted pixels, a number or anything that broadcasts to (B, C, H, W).
        classes: Class of each image, (B,), such as its label. The default is the predicted class.
        batch: Number of images per call of the model.
    """
    check_maps_fit(images, maps)
    return spearman(cell_means(maps, side), cell_drops(predict, images, side, fill, classes, batch))


def cell_means(maps: Tensor, side: int = GRID_SIDE) -> Tensor:
    """Average maps (B, H, W) over each cell of a grid of `side` times `side` cells, row by row: (B, side²)."""
    cells, whole = grid_cells(maps.shape[-2:], side).to(maps.device), without_broken(at_least_float32(check_maps(maps)))
    first = whole[:, :1, 0]  # without it, means of one number over cells of several sizes differ by rounding
    means = [(whole[:, cells == number] - first).mean(dim=1, keepdim=True) + first for number in range(side * side)]
    return unscored(torch.cat(means, dim=1), maps)


def cell_drops(
    predict: Predict,
    images: Tensor,
    side: int = GRID_SIDE,
    fill: float | Tensor = 0.0,
    classes: Tensor | None = None,
    batch: int = 64,
) -> Tensor:
    """Compute the drop of the class's output when each cell of a grid is deleted, (B, side²).

    Arguments as for `idsds`.
    """
    return region_drops(predict, images, grid_cells(images.shape[-2:], side), fill, classes, batch)
