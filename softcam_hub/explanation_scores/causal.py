"""Compare maps with what happens when a part of the image is gone: ground truth by experiment.

A *part* is a lesion, an optic disc, a patch of background. Its *effect* is the drop of the output of a class when the
network sees the image without it, and its *evidence* is what the map holds on its pixels. A true map holds much
evidence where the effect is large, and none on parts whose removal changes nothing.

- Parts are numbers of regions (B, H, W): every pixel belongs to one part at most, and a negative number is no part.
- Effects and evidence are (B, n), with NaN for a part that the image does not have. They are on the CPU, in double
  precision, which not every device has.
- Signed maps in units of the logit have signed evidence: what the part adds to the mean of the map. Other maps have
  shares of their positive part, from 0 to 1.
- The natural output is the log-odds of the class, log p - log(1 - p). The probability is a function of it, but
  saturates; a logit alone decides nothing where classes compete, and in CAPE it is log p, which saturates too.
- Each part is removed alone, and effects of parts that act together do not add up: where one of six lesions is enough,
  the removal of any one changes little.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .faithfulness import ranks
from .maps import at_least_float32, blur, check_maps, require, unscored, without_broken

FEWEST = 3
"""Smallest number of parts that a correlation is computed from."""

TOLERANCE = 0.1
"""Smallest change of the log-odds that counts, which is a change of the odds by a tenth."""


def log_odds(logits: Tensor) -> Tensor:
    """Compute log p - log(1 - p) of every class, (B, C), from logits of a softmax, without loss where p is near 1.

    Where every class has a probability of its own (a sigmoid), logits are log-odds already.
    """
    logits = at_least_float32(logits)
    whole = logits.logsumexp(dim=1, keepdim=True)
    odds = logits - whole - torch.log1p(-(logits - whole).exp())  # inexact for a class of nearly all probability
    top = logits.argmax(dim=1, keepdim=True)
    others = logits.scatter(1, top, -torch.inf).logsumexp(dim=1, keepdim=True)
    return odds.scatter(1, top, logits.gather(1, top) - others)


def removal_effects(before: Tensor, after: Tensor, owners: Tensor, classes: Tensor) -> Tensor:
    """Compute the drop of the class's output by each removal, (N,): positive where the part spoke for the class.

        before, after = log_odds(model(images)), log_odds(model(twins))
        effects = removal_effects(before, after, torch.tensor([0, 0, 1]), classes)

    Args:
        before: Outputs for whole images, (B, C): log-odds, logits or probabilities.
        after: Outputs for the same images without one part, (N, C).
        owners: Position of the whole image of each of the N, (N,).
        classes: Class of each whole image, (B,).
    """
    chosen = classes[owners][:, None]
    drops = at_least_float32(before)[owners].gather(1, chosen) - at_least_float32(after).gather(1, chosen)
    return drops[:, 0]


def signed_evidence(maps: Tensor, regions: Tensor, count: int) -> Tensor:
    """Sum maps over the pixels of each part, divided by the number of all pixels, (B, count).

    For a map that averages to the logit this is the contribution of the part in units of the logit.

    Args:
        maps: Signed maps at image size, (B, H, W).
        regions: Number of the part of every pixel, (B, H, W), negative for none.
        count: Number of parts; no region is larger than `count - 1`.
    """
    return _sum_over_parts(maps, regions, count) / maps[0].numel()


def share_of_map(maps: Tensor, regions: Tensor, count: int) -> Tensor:
    """Compute the share of the absolute values of a map on each part, (B, count) in [0, 1]; 0 for a map of zeros.

    Arguments as for `signed_evidence`; for the share of the positive part, pass `maps.relu()`.
    """
    sizes = _sum_over_parts(maps.abs(), regions, count)
    whole = without_broken(maps).detach().cpu().double().abs().sum(dim=(1, 2))[:, None]
    return torch.where((whole == 0) & ~sizes.isnan(), 0.0, sizes / whole)


def _sum_over_parts(maps: Tensor, regions: Tensor, count: int) -> Tensor:
    """Sum maps over the pixels of each part, (B, count), NaN for parts without a pixel."""
    check_maps(maps)
    require(maps.shape == regions.shape, f"expected regions {tuple(maps.shape)}, got {tuple(regions.shape)}")
    highest = int(regions.max())
    require(highest < count, f"there are {count} parts, numbered from 0, but regions hold {highest}")
    values = without_broken(maps).detach().cpu().double().flatten(1)
    numbers = regions.cpu().long().flatten(1).clamp_min(-1) + 1  # the first column collects the pixels of no part
    empty = values.new_zeros(len(values), count + 1)
    sums = empty.scatter_add(1, numbers, values)[:, 1:]
    pixels = empty.scatter_add(1, numbers, torch.ones_like(values))[:, 1:]
    return unscored(sums.masked_fill(pixels == 0, torch.nan), maps)


def rank_agreement(evidence: Tensor, effects: Tensor) -> Tensor:
    """Compute the rank correlation (Spearman) of evidence and effects over the parts of each image, (B,).

    It is 0 where the evidence is the same on all parts, and NaN for fewer than three parts or where all effects are the
    same, so that there is nothing to rank. For all parts of a data set, pass them as one row.

    Args:
        evidence: Evidence on each part, (B, n), NaN where there is no such part.
        effects: Effect of each part, (B, n).
    """
    pair = [_rank_present(values) for values in _only_shared(evidence, effects)]
    return _correlate(*pair)


def linear_agreement(evidence: Tensor, effects: Tensor) -> Tensor:
    """Compute the linear correlation (Pearson) of evidence and effects, (B,); arguments as for `rank_agreement`."""
    return _correlate(*_only_shared(evidence, effects))


def _only_shared(first: Tensor, second: Tensor) -> list[Tensor]:
    """Return both in double precision, which not every device has, with NaN where either is."""
    same = first.shape == second.shape and first.ndim == 2
    require(same, f"expected evidence and effects (B, n), got {tuple(first.shape)} and {tuple(second.shape)}")
    pair = [values.detach().cpu().double() for values in (first, second)]
    missing = pair[0].isnan() | pair[1].isnan()
    return [values.masked_fill(missing, torch.nan) for values in pair]


def _rank_present(rows: Tensor) -> Tensor:
    """Rank what is present in every row (B, n); infinity ranks behind all of it and leaves its ranks alone."""
    missing = rows.isnan()
    return ranks(rows.masked_fill(missing, torch.inf)).double().masked_fill(missing, torch.nan)


def _correlate(evidence: Tensor, effects: Tensor) -> Tensor:
    """Correlate the rows of evidence and effects, (B, n), over what is present."""
    present, (first, second) = (~evidence.isnan()).sum(dim=1), (_unit(evidence), _unit(effects))
    nothing_to_rank = (present < FEWEST) | (second == 0).all(dim=1)
    return (first * second).sum(dim=1).clamp(-1, 1).masked_fill(nothing_to_rank, torch.nan)


def _unit(rows: Tensor) -> Tensor:
    """Centre what is present in every row, scale it to length 1, and put 0 for the rest and for constant rows."""
    missing = rows.isnan()
    low, high = rows.masked_fill(missing, torch.inf).amin(dim=1), rows.masked_fill(missing, -torch.inf).amax(dim=1)
    varied = ~missing & (low < high)[:, None]
    centred = torch.where(varied, rows - rows.nanmean(dim=1, keepdim=True), 0.0)
    scaled = centred / centred.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return F.normalize(scaled, dim=1)


def idle_parts(effects: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Return booleans (B, n), true for parts whose removal changes nothing worth mentioning.

    Effects of such parts are noise, which `effects.masked_fill(idle, 0)` keeps out of a rank correlation.

    Args:
        effects: Effect of each part on the log-odds, (B, n), NaN where there is no such part.
        tolerance: Smallest effect, of either sign, of a part that is not idle.
    """
    require(tolerance > 0, f"tolerance must be above 0, got {tolerance}")
    return effects.abs() < tolerance


def speaks_for_class(effects: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Return booleans (B,), true for images in which the removal of some part makes the class less likely.

    In any other image, such as a healthy one, there is no reason that a map could find.

    Args:
        effects: Effect of each part on the log-odds, (B, n), NaN where there is no such part.
        tolerance: Smallest effect of a part that is not idle.
    """
    return ((effects > 0) & ~idle_parts(effects, tolerance)).any(dim=1)


def causal_correlations(evidence: Tensor, effects: Tensor, odds: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the rank and the linear correlation of evidence and effects over the parts of each image, (B,) each.

    Effects of idle parts count as 0. An image in which no part speaks for the class has no correlation, but NaN.

    Args:
        evidence: Evidence on each part, (B, n), NaN where there is no such part.
        effects: Effect of each part on an output, (B, n).
        odds: Effect of each part on the log-odds, (B, n), which may be `effects`.
    """
    counted, no_reason = effects.masked_fill(idle_parts(odds), 0), ~speaks_for_class(odds)
    rank, linear = rank_agreement(evidence, counted), linear_agreement(evidence, counted)
    return rank.masked_fill(no_reason, torch.nan), linear.masked_fill(no_reason, torch.nan)


def total_share(shares: Tensor, chosen: Tensor) -> Tensor:
    """Add up the shares of chosen parts, (B,); NaN for an image that has none of them.

    Args:
        shares: Share of a map on each part, (B, n), NaN where there is no such part.
        chosen: Booleans (B, n).
    """
    chosen = chosen & ~shares.isnan()
    return torch.where(chosen, shares, 0.0).sum(dim=1).masked_fill(~chosen.any(dim=1), torch.nan)


def choose_background(free: Tensor, side: int, count: int, seeds: Sequence[Any]) -> Tensor:
    """Choose random squares of background that do not overlap, booleans (B, count, H, W).

    An image without enough room has fewer squares: the last ones are false everywhere.

    Args:
        free: Pixels of background, booleans (B, H, W). A square and the pixels around it must be free.
        side: Side of a square in pixels.
        count: Number of squares.
        seeds: Seed of each image, as `numpy.random.default_rng` takes it.
    """
    require(side >= 1, f"side must be at least 1 pixel, got {side}")
    batch, height, width = free.shape
    squares = torch.zeros(batch, count, height, width, dtype=torch.bool, device=free.device)
    if min(height, width) < side + 2:
        return squares
    blocked = F.max_pool2d((~free).float()[:, None], side + 2, stride=1)[:, 0].cpu() > 0  # by upper left corner
    draws = np.stack([np.random.default_rng(seed).random(blocked.shape[1:]) for seed in seeds])
    priority = torch.from_numpy(draws).masked_fill(blocked, -1.0)
    rows, columns = torch.arange(blocked.shape[1])[:, None], torch.arange(blocked.shape[2])
    for number in range(count):
        best, place = priority.flatten(1).max(dim=1)
        tops, lefts = place // blocked.shape[2], place % blocked.shape[2]
        for image in (best >= 0).nonzero()[:, 0].tolist():
            top, left = int(tops[image]), int(lefts[image])
            squares[image, number, top + 1 : top + 1 + side, left + 1 : left + 1 + side] = True
            near = ((rows - top).abs() < side) & ((columns - left).abs() < side)
            priority[image, near] = -1.0
    return squares


def fill_from_surroundings(images: Tensor, removed: Tensor, radius: int) -> Tensor:
    """Replace pixels by a blur of the pixels around them that stay, (B, C, H, W).

    Args:
        images: Images, (B, C, H, W).
        removed: Pixels to replace, booleans (B, H, W).
        radius: Reach of the blur in pixels: at least as large as the distance to the nearest pixel that stays.
    """
    kept = (~removed)[:, None].to(images.dtype)
    weights = blur(kept, radius, radius / 2)
    filled = blur(images * kept, radius, radius / 2) / weights.clamp_min(torch.finfo(images.dtype).tiny)
    return torch.where(removed[:, None], filled, images)
