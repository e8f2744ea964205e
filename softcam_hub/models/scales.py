"""Features of several depths in one tensor: what a model with `scales` above 1 shows its head.

The last features F (B, K, h, w) of a backbone have few and large cells. Features from earlier in the network have r
times as many rows and columns, with r = 2, 4, ... The r·r values that lie in one of the large cells become channels of
that cell (`pixel_unshuffle`). So one tensor with h·w locations holds all scales, and no number twice:

    packed = [F: K channels | features of r = 2: 4·K₂ channels | features of r = 4: 16·K₄ channels | ...]

Backbones normalise their last features, and not those in between. So all numbers of an image in the features of one
ratio are divided by the root of their mean square.

- `forward_features` of a model with several scales returns the packed features, and its head reads them.
- Everything that passes features on, such as the cache of post-fitting, treats them as any other features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_SCALES = 5
"""Largest number of scales: evidence of the stride of single pixels says nothing."""


@dataclass(frozen=True)
class FinerFeatures:
    """Features with more cells than the last ones.

    Args:
        index: Number of the features among those that `forward_intermediates` of the backbone gives.
        channels: Number of their channels.
        ratio: Number of their cells for one cell of the last features, along each axis.
    """

    index: int
    channels: int
    ratio: int


class NoFinerFeatures(ValueError):
    """The backbone has no features of the scales that were asked for."""


def check_scales(scales: Any) -> int:
    """Return a number of scales, or raise ValueError for anything else."""
    if isinstance(scales, bool) or not isinstance(scales, int) or not 1 <= scales <= MOST_SCALES:
        raise ValueError(f"scales must be a whole number from 1 to {MOST_SCALES}, got {scales!r}")
    return scales


def find_finer(hidden: Sequence[Tensor], cells: Sequence[int], scales: int) -> tuple[FinerFeatures, ...]:
    """Return the features that have 2, 4, ... times as many rows and columns as the last ones, the coarsest first.

    Where several have, the deepest count. Architectures round up or down, so that less than one large cell may be
    missing or too much.

    Args:
        hidden: All intermediate features of an image, in the order of their depth.
        cells: Height and width of the last features.
        scales: Number of scales, with that of the last features.
    """
    found: list[FinerFeatures] = []
    for ratio in (2**power for power in range(1, scales)):
        fitting = [
            FinerFeatures(index, one.shape[1], ratio)
            for index, one in enumerate(hidden)
            if all(abs(have - ratio * count) < ratio for have, count in zip(one.shape[2:], cells, strict=True))
        ]
        if not fitting:
            sizes = ", ".join(dict.fromkeys(f"{one.shape[2]}x{one.shape[3]}" for one in hidden)) or "none"
            raise NoFinerFeatures(
                f"scales={scales} is not possible: the last features have {cells[0]}x{cells[1]} cells, and the "
                f"intermediate ones ({sizes}) never have {ratio} times as many along each side; expected scales of at "
                f"most {len(found) + 1}"
            )
        found.append(fitting[-1])
    return tuple(found)


def pack(features: Tensor, hidden: Mapping[int, Tensor], finer: Sequence[FinerFeatures]) -> Tensor:
    """Put features of several depths into one tensor (B, channels, h, w).

    Args:
        features: Last features of the backbone, (B, K, h, w).
        hidden: Intermediate features (B, k, about r·h, about r·w) by their index.
        finer: Which of them to pack.
    """
    return _pack(features, [hidden[each.index] for each in finer], [each.ratio for each in finer])


@torch.fx.wrap  # a tracer knows no sizes, and finds this name in this file alone
def _pack(features: Tensor, finer: list[Tensor], ratios: list[int]) -> Tensor:
    parts = [features]
    for one, ratio in zip(finer, ratios):  # noqa: B905, TorchScript has no strict
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            check_cells(one, features, ratio)
        fitted = fit(normalise(one), ratio * features.shape[2], ratio * features.shape[3])
        parts.append(F.pixel_unshuffle(fitted, ratio).to(features))
    return torch.cat(parts, dim=1)


def normalise(features: Tensor) -> Tensor:
    """Divide features (B, k, H, W) by the root of the mean square over an image, which keeps what places differ by."""
    precise = features if features.dtype == torch.float64 else features.float()  # squares overflow in half precision
    return precise * (precise.square().mean(dim=[1, 2, 3], keepdim=True) + 1e-6).rsqrt()


def check_cells(finer: Tensor, features: Tensor, ratio: int) -> None:
    """Refuse finer features of another ratio, such as those of a backbone whose last layers were pruned."""
    if torch.compiler.is_compiling():  # sizes may stay open
        return
    if any(abs(finer.shape[axis] - ratio * features.shape[axis]) >= 2 * ratio for axis in (2, 3)):
        sizes = ["x".join(map(str, one.shape[2:])) for one in (features, finer)]
        raise ValueError(
            f"finer features have {sizes[1]} cells beside {sizes[0]} of the last ones, expected {ratio} times as many "
            "along each side: make the model again with the scales that its layers have"
        )


def fit(features: Tensor, height: int, width: int) -> Tensor:
    """Bring features (B, k, H, W) to a size: leave the last rows and columns out, or repeat the last one.

    Interpolating would move the cells.

    Args:
        features: Features of about that size.
        height: Number of rows.
        width: Number of columns.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        fits = features.shape[2] == height and features.shape[3] == width
    else:  # while a graph is made, sizes may stay open
        fits = not torch.compiler.is_compiling() and features.shape[2:] == (height, width)
    if fits:
        return features
    rows = torch.arange(height, device=features.device).clamp(max=features.shape[2] - 1)
    columns = torch.arange(width, device=features.device).clamp(max=features.shape[3] - 1)
    return features[:, :, rows][:, :, :, columns]


def unpack(packed: Tensor, channels: int, finer: Sequence[FinerFeatures]) -> list[Tensor]:
    """Return the last features (B, K, h, w), and finer ones as (B, k, r·r·h, w), in which the cells of a large cell lie
    one below the other.

    Args:
        packed: Packed features.
        channels: Number K of channels of the last features.
        finer: Which finer features are packed.
    """
    sizes = [channels, *(each.channels * each.ratio**2 for each in finer)]
    check_channels(packed, sum(sizes))
    parts = divide(packed, sizes)
    return [
        parts[0],
        *(part.unflatten(1, (each.channels, -1)).flatten(2, 3) for part, each in zip(parts[1:], finer, strict=True)),
    ]


@torch.fx.wrap
def check_channels(packed: Tensor, expected: int) -> None:
    """Refuse features that are not packed, such as those of a backbone alone."""
    if packed.shape[1] != expected:
        raise ValueError(
            f"this head reads packed features with {expected} channels, as forward_features gives them, got "
            f"{packed.shape[1]}"
        )


def divide(values: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Divide a tensor along its second dimension, as `split` does, in a way that a tracer follows."""
    ends = [*accumulate(sizes)]
    return [values[:, end - size : end] for size, end in zip(sizes, ends, strict=True)]


def lay_out(values: Tensor, ratio: int) -> Tensor:
    """Bring values (B, C, r·r·h, w) of the cells of large cells, as `unpack` lays them, to (B, C, r·h, r·w)."""
    return F.pixel_shuffle(values.unflatten(2, (ratio * ratio, -1)).flatten(1, 2), ratio)


def add_terms(terms: Sequence[Tensor]) -> Tensor:
    """Add the evidence of all depths on the finest grid, (B, C, H, W).

    Args:
        terms: Evidence of each depth on its own grid, with twice as many rows and columns from each to the next.
    """
    evidence = terms[0]
    for term in terms[1:]:  # a cell gives its evidence to all four cells in it, which keeps the mean
        evidence = F.interpolate(evidence, scale_factor=2.0, mode="nearest") + term
    return evidence
