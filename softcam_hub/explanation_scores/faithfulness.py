"""Faithfulness: does a map show what the model used? One value per image; callers take the mean.

`y`, `o` and `d` are the confidence in class c = argmax on the image x, on E⊙x and on (1 - E)⊙x (CAPE paper,
sec. 4.3).

- Coherency is (1 + ρ) / 2: the paper's `2·corr + 1` leaves [0, 1]. Where ρ is undefined (a constant map)
  coherency is 0, and with it ADCC.
- Complexity is the mean of |E|, not its sum, so that it lies in [0, 1].
- Borda counts rank ties densely: 1, 1, 2. So does Table 1 of the paper, in 35 of its 36 cells.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .maps import at_least_float32, check_heat, check_maps, check_same_size, require, smallest, unscored, without_broken


def completeness_error(composed: Tensor, prediction: Tensor) -> Tensor:
    """Compute |composed - prediction|, (B,): how far a map misses the prediction that it is made of.

    Args:
        composed: Sum of a CAPE map, or mean of a SoftCAM map, (B,).
        prediction: Class probability, or logit, (B,).
    """
    return (composed - prediction).abs()


def cancelled_share(maps: Tensor) -> Tensor:
    """Compute 1 - |Σ map| / Σ|map|, (B,) in [0, 1]: the share of signed evidence that cancels in the prediction.

    It is 0 for a map of one sign. Near 1, the prediction is a small difference of large terms, and no single cell
    explains it. A map of zeros has nothing to cancel, and 0.

    Args:
        maps: Signed maps, (B, H, W).
    """
    values = at_least_float32(maps)
    size = values.abs().sum(dim=(1, 2))
    share = 1 - values.sum(dim=(1, 2)).abs() / size.clamp_min(smallest(values))
    return unscored(torch.where(size == 0, 0.0, share).clamp(0, 1), maps)


def gini_sparseness(maps: Tensor) -> Tensor:
    """Compute the Gini coefficient of |map|, (B,): 0 for equal locations, towards 1 for a single one.

    Args:
        maps: Maps, (B, H, W).
    """
    values = at_least_float32(maps.flatten(1).abs()).sort(dim=1).values
    count = values.shape[1]
    rank = torch.arange(1, count + 1, device=values.device, dtype=values.dtype)
    total = values.sum(dim=1)
    uneven = ((2 * rank - count - 1) * values).sum(dim=1) / (count * total.clamp_min(smallest(values)))
    return unscored(torch.where(total == 0, 0.0, uneven), maps)


def average_drop(confidence: Tensor, kept: Tensor) -> Tensor:
    """Compute AD: max(y - o, 0) / y, (B,) in [0, 1], lower is better; 0 where y is 0.

    Args:
        confidence: Probability y of the class on the image, (B,).
        kept: Probability o on the image where the map is high, (B,).
    """
    confidence, kept = at_least_float32(confidence), at_least_float32(kept)
    return (confidence - kept).clamp_min(0) / confidence.clamp_min(smallest(confidence))


def increase_in_confidence(confidence: Tensor, kept: Tensor) -> Tensor:
    """Compute IC: 1 where y < o and 0 elsewhere, (B,), higher is better. Arguments as for `average_drop`."""
    higher = (confidence < kept).to(torch.promote_types(confidence.dtype, torch.float32))
    return higher.masked_fill(confidence.isnan() | kept.isnan(), torch.nan)


def average_drop_in_deletion(confidence: Tensor, removed: Tensor) -> Tensor:
    """Compute ADD: max(y - d, 0) / y, (B,) in [0, 1], higher is better; 0 where y is 0.

    Args:
        confidence: Probability y of the class on the image, (B,).
        removed: Probability d on the image where the map is low, (B,).
    """
    return average_drop(confidence, removed)


def coherency(maps: Tensor, kept_maps: Tensor) -> Tensor:
    """Compute (1 + ρ(E, E')) / 2 with Pearson's ρ, (B,) in [0, 1], higher is better; 0 where ρ is undefined.

    Args:
        maps: Maps E, (B, H, W).
        kept_maps: Maps E' of E⊙x for the *same* class, (B, H, W).
    """
    originals = [check_maps(maps), check_maps(kept_maps, "kept_maps")]
    pair = [without_broken(values) for values in originals]
    check_same_size(pair[0], pair[1], "maps and kept_maps")
    defined = [values.amin(dim=(1, 2)) < values.amax(dim=(1, 2)) for values in pair]
    correlation = pearson(pair[0].flatten(1), pair[1].flatten(1))
    return unscored(torch.where(defined[0] & defined[1], (1 + correlation) / 2, 0.0), *originals)


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Correlate the rows of two (B, N), in [-1, 1]; 0 where a row is constant, and NaN where it is broken."""
    pair = [normalise(at_least_float32(values)) for values in (first, second)]
    return unscored((pair[0] * pair[1]).sum(dim=1).clamp(-1, 1), first, second)


def ranks(rows: Tensor) -> Tensor:
    """Rank every row of (B, N), from 1 for the lowest; equal values share the mean of their ranks."""
    ordered = rows.sort(dim=1).values.contiguous()
    below = torch.searchsorted(ordered, rows.contiguous())
    not_above = torch.searchsorted(ordered, rows.contiguous(), right=True)
    return (below + not_above + 1) / 2


def normalise(rows: Tensor) -> Tensor:
    """Subtract the mean of every row (B, N) and scale it to length 1; a constant row becomes zero."""
    constant = rows.amin(dim=1, keepdim=True) == rows.amax(dim=1, keepdim=True)
    centred = torch.where(constant, 0.0, rows - rows.mean(dim=1, keepdim=True))
    centred = centred / centred.abs().amax(dim=1, keepdim=True).clamp_min(smallest(rows))  # squares must not underflow
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(smallest(rows))


def complexity(maps: Tensor) -> Tensor:
    """Compute mean |E|, (B,) in [0, 1], lower is better.

    Args:
        maps: Heat maps E in [0, 1], (B, H, W).
    """
    maps = check_heat(maps)
    return unscored(maps.mean(dim=(1, 2)), maps)


def adcc(coherency: Tensor, complexity: Tensor, drop: Tensor) -> Tensor:
    """Compute 3 / (1/coh + 1/(1 - com) + 1/(1 - AD)), (B,) in [0, 1], higher is better; 0 where a term is 0.

    Args:
        coherency: Coherency, (B,).
        complexity: Complexity, (B,).
        drop: Average drop AD, (B,).
    """
    a, b, c = at_least_float32(coherency), 1 - at_least_float32(complexity), 1 - at_least_float32(drop)
    pairs = a * b + b * c + c * a  # the harmonic mean without 1/0
    return 3 * a * b * c / pairs.clamp_min(smallest(pairs))


def top_two_iou(maps: Tensor, second_maps: Tensor, threshold: float = 0.2) -> Tensor:
    """Compute |S1 ∩ S2| / |S1 ∪ S2| with S = E > threshold·max(E), (B,) in [0, 1], lower is better.

    The value is 1 where both maps are empty, as such maps do not tell the classes apart.

    Args:
        maps: Maps of the first class, (B, H, W).
        second_maps: Maps of another class, (B, H, W).
        threshold: Fraction of the maximum, in [0, 1); the CAPE paper uses 0.2.
    """
    require(0 <= threshold < 1, f"threshold must be a fraction of the maximum in [0, 1), got {threshold}")
    maps, second_maps = check_maps(maps), check_maps(second_maps, "second_maps")
    check_same_size(maps, second_maps, "maps and second_maps")
    first, second = (values > threshold * values.amax(dim=(1, 2), keepdim=True) for values in (maps, second_maps))
    both, either = (first & second).sum(dim=(1, 2)), (first | second).sum(dim=(1, 2))
    return unscored(torch.where(either == 0, 1.0, both / either.clamp_min(1)), maps, second_maps)


def borda_count(scores: Tensor, higher_is_better: Sequence[bool]) -> Tensor:
    """Count the points of M methods over S measures, (M,): 3, 2 and 1 for ranks 1, 2 and 3 of each measure.

    Equal scores share a rank and the next one follows without a gap. NaN ("not measured") earns nothing.

        borda_count(torch.tensor([[21.2, 27.9], [10.3, 48.5]]), [False, True])  # AD, IC -> [4, 6]

    Args:
        scores: Scores, (M, S).
        higher_is_better: Direction of each of the S measures.
    """
    wanted = f"expected scores (methods, measures) with one direction per measure, got {tuple(scores.shape)}"
    require(scores.ndim == 2 and scores.shape[1] == len(higher_is_better), f"{wanted} and {len(higher_is_better)}")
    signs = torch.tensor([1.0 if higher else -1.0 for higher in higher_is_better], device=scores.device)
    points = [column_points(column) for column in (at_least_float32(scores) * signs).unbind(dim=1)]
    return torch.stack(points, dim=1).sum(dim=1)


def column_points(values: Tensor) -> Tensor:
    """Give 3, 2 and 1 points to the three highest different values (M,) of one measure."""
    missing = values.isnan()
    _, rank = torch.unique(values.masked_fill(missing, -torch.inf), return_inverse=True)
    return (rank - rank.max() + 3).clamp_min(0).masked_fill(missing, 0)
