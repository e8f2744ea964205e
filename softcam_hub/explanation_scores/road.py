"""ROAD (Rong et al. 2022): remove pixels without leaving a trace of the removal itself.

- A removed pixel becomes the weighted mean of its neighbours, direct ones 1/6 and diagonal ones 1/12 (less at
  the border, in proportion), where removed neighbours are unknowns too: one linear system per image and
  channel.
- The system is symmetric and positive definite, so conjugate gradients solve it, on any device and without a
  matrix. They start from the solution at half the size. Their error (under 0.001) is far below the noise.
- A little noise is added. All images get the same noise, drawn from `seed`, so that results do not depend on
  the batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import patch_ranks, require, smallest, unscored
from .predictions import Predict, check_maps_fit, predict_confidence, predict_versions

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Fractions of the pixels that are removed, one after another."""


def road(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    fractions: Sequence[float] = FRACTIONS,
    noise: float = 0.01,
    seed: int = 0,
    classes: Tensor | None = None,
    batch: int = 64,
) -> Tensor:
    """Compute half the mean of p_c without the least, minus p_c without the most relevant pixels, (B,).

    Values lie in [-1/2, 1/2], and higher is better; a map without contrast scores near 0. Arguments as for
    `road_curve`.
    """
    first = road_curve(predict, images, maps, fractions, True, noise, seed, classes, batch)
    last = road_curve(predict, images, maps, fractions, False, noise, seed, classes, batch)
    return (last - first).mean(dim=1) / 2


def road_curve(
    predict: Predict,
    images: Tensor,
    maps: Tensor,
    fractions: Sequence[float] = FRACTIONS,
    most_relevant_first: bool = True,
    noise: float = 0.01,
    seed: int = 0,
    classes: Tensor | None = None,
    batch: int = 64,
) -> Tensor:
    """Compute p_c after each fraction of the pixels is removed, (B, fractions) in [0, 1].

    Args:
        predict: Function from images to probabilities (B, C).
        images: Images, (B, C, H, W).
        maps: Maps at image size, (B, H, W); pixels of equal value go in reading order, or against it if
            the least relevant go first.
        fractions: Fractions of pixels to remove, each in [0, 1].
        most_relevant_first: Remove the most relevant pixels first, where lower is better; otherwise the least
            relevant ones, where higher is better.
        noise: Standard deviation of the noise that is added to removed pixels.
        seed: Seed of the noise.
        classes: Class of each image, (B,). The default is the predicted class.
        batch: Number of images per call of the model.
    """
    fits = len(fractions) > 0 and all(0 <= fraction <= 1 for fraction in fractions)
    require(fits, f"fractions must lie in [0, 1], got {list(fractions)}")
    ranks = patch_ranks(check_maps_fit(images, maps), patch=1)
    ranks = ranks if most_relevant_first else ranks[0].numel() - 1 - ranks
    counts = (torch.tensor(fractions, device=ranks.device) * ranks[0].numel()).round()
    classes, _ = predict_confidence(predict, images, classes, batch)
    field = noise * torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images)

    def change(image: Tensor, version: Tensor) -> Tensor:
        removed = ranks[image] < counts[version][:, None, None]
        return from_neighbours(images[image], removed) + removed[:, None] * field

    return unscored(predict_versions(predict, classes, len(fractions), change, batch), maps)


def from_neighbours(images: Tensor, removed: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Replace removed pixels by weighted means of their neighbours, or by 0 if the whole image is removed.

    Args:
        images: Images, (B, C, H, W).
        removed: Masks (B, H, W), true where a pixel is removed.
        tolerance: Largest residual of the system, relative to its right side.
    """
    values = images.float()
    unknown = removed[:, None].to(values.dtype)
    degree = neighbours(torch.ones_like(values[:1, :1]))
    known = values * (1 - unknown)
    start = unknown * from_half_size(known, 1 - unknown, tolerance)
    solved = conjugate_gradients(degree, unknown, unknown * neighbours(known), start, tolerance)
    return torch.where(removed[:, None], solved.to(images.dtype), images)


def from_half_size(known: Tensor, present: Tensor, tolerance: float) -> Tensor:
    """Return a first guess: the enlarged solution at half the size, which is computed in the same way.

    Args:
        known: Images (B, C, H, W), 0 where removed.
        present: Masks (B, 1, H, W), 0 where removed and 1 elsewhere.
        tolerance: Largest residual, as in `from_neighbours`.
    """
    size = known.shape[2:]
    if min(size) <= 4:
        return known.sum(dim=(2, 3), keepdim=True) / present.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    share = F.avg_pool2d(present, 2, ceil_mode=True)
    half = F.avg_pool2d(known, 2, ceil_mode=True) / share.clamp_min(smallest(share))
    return F.interpolate(from_neighbours(half, share[:, 0] == 0, tolerance), size=size, mode="bilinear")


def neighbours(values: Tensor) -> Tensor:
    """Compute the weighted sum of the eight neighbours of every pixel, (B, C, H, W)."""
    padded = F.pad(values, (1, 1, 1, 1))
    rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:] - 4 * values) / 12  # 1 2 1, 2 0 2, 1 2 1, over 12


def conjugate_gradients(degree: Tensor, unknown: Tensor, right: Tensor, solution: Tensor, tolerance: float) -> Tensor:
    """Solve unknown·(degree·x - neighbours(x)) = right for each image and channel, from a first guess."""

    def apply(x: Tensor) -> Tensor:
        return unknown * (degree * x - neighbours(x))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=(2, 3), keepdim=True)

    residual = right - apply(solution)
    direction, error = residual, dot(residual, residual)
    accepted = tolerance**2 * dot(right, right)
    for _ in range(10 * sum(right.shape[2:])):
        unsolved = error > accepted
        if not bool(unsolved.any()):
            break
        image = apply(direction)
        # a step of length 0 for images that are solved already
        length = unsolved * error / dot(direction, image).clamp_min(smallest(error))
        solution = solution + length * direction
        residual = residual - length * image
        previous, error = error, dot(residual, residual)
        direction = residual + error / previous.clamp_min(smallest(error)) * direction
    return solution
