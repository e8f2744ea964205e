"""Does the map say what the model did? One value per image; means are taken last.

`y`, `o` and `d` are the confidence in class c = argmax on the image x, on E⊙x and on (1 - E)⊙x (CAPE paper, sec. 4.3).

- Coherency is (1 + ρ) / 2: the paper's `2·corr + 1` leaves [0, 1]. Where ρ is undefined (a constant map) coherency is
  0, and with it ADCC.
- Complexity is the mean of |E|, not its sum, so that it lies in [0, 1].
- Borda counts rank ties densely: 1, 1, 2. So does Table 1 of the paper, in 35 of its 36 cells.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .maps import at_least_float32, check, check_heat, check_maps, check_same_size, smallest, unscored, without_broken


def completeness_error(composed: Tensor, prediction: Tensor) -> Tensor:
    """|what the map adds up to - what the model predicts|, (B,).

    Args:
        composed: (B,) the sum of a CAPE map, or the mean of a SoftCAM map.
        prediction: (B,) the class probability, or the logit.
    """
    return (composed - prediction).abs()


def gini_sparseness(maps: Tensor) -> Tensor:
    """Gini coefficient of |map|, (B,): 0 where every location counts the same, towards 1 where a single one does.

    Args:
        maps: (B, H, W).
    """
    values = maps.flatten(1).abs().to(torch.promote_types(maps.dtype, torch.float32)).sort(dim=1).values
    count = values.shape[1]
    rank = torch.arange(1, count + 1, device=values.device, dtype=values.dtype)
    total = values.sum(dim=1)
    uneven = ((2 * rank - count - 1) * values).sum(dim=1) / (count * total.clamp_min(torch.finfo(values.dtype).tiny))
    return unscored(torch.where(total == 0, 0.0, uneven), maps)


def average_drop(confidence: Tensor, kept: Tensor) -> Tensor:
    """AD: max(y - o, 0) / y, (B,) in [0, 1], lower is better; 0 where y is 0.

    Args:
        confidence: y (B,), probability of the class on the image.
        kept: o (B,), on the image where the map is high.
    """
    confidence, kept = at_least_float32(confidence), at_least_float32(kept)
    return (confidence - kept).clamp_min(0) / confidence.clamp_min(smallest(confidence))


def increase_in_confidence(confidence: Tensor, kept: Tensor) -> Tensor:
    """IC: 1 where y < o and 0 elsewhere, (B,), higher is better. Arguments as for `average_drop`."""
    higher = (confidence < kept).to(torch.promote_types(confidence.dtype, torch.float32))
    return higher.masked_fill(confidence.isnan() | kept.isnan(), torch.nan)


def average_drop_in_deletion(confidence: Tensor, removed: Tensor) -> Tensor:
    """ADD: max(y - d, 0) / y, (B,) in [0, 1], higher is better; 0 where y is 0.

    Args:
        confidence: y (B,), probability of the class on the image.
        removed: d (B,), on the image where the map is low.
    """
    return average_drop(confidence, removed)


def coherency(maps: Tensor, kept_maps: Tensor) -> Tensor:
    """(1 + ρ(E, E')) / 2 with Pearson's ρ, (B,) in [0, 1], higher is better; 0 where ρ is undefined.

    Args:
        maps: E (B, H, W).
        kept_maps: E' (B, H, W), the map of E⊙x for the *same* class.
    """
    given = [check_maps(values, name) for values, name in ((maps, "maps"), (kept_maps, "kept_maps"))]
    pair = [without_broken(values) for values in given]
    check_same_size(*pair, "maps and kept_maps")
    defined = [values.amin(dim=(1, 2)) < values.amax(dim=(1, 2)) for values in pair]
    correlation = pearson(pair[0].flatten(1), pair[1].flatten(1))
    return unscored(torch.where(defined[0] & defined[1], (1 + correlation) / 2, 0.0), *given)


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of each row of two (B, N), in [-1, 1]; 0 where a row is constant, and NaN where it is broken."""
    pair = [scaled(at_least_float32(values)) for values in (first, second)]
    return unscored((pair[0] * pair[1]).sum(dim=1).clamp(-1, 1), first, second)


def scaled(rows: Tensor) -> Tensor:
    """Rows (B, N) less their mean, of length 1; all zero where a row is constant."""
    constant = rows.amin(dim=1, keepdim=True) == rows.amax(dim=1, keepdim=True)
    centred = torch.where(constant, 0.0, rows - rows.mean(dim=1, keepdim=True))
    centred = centred / centred.abs().amax(dim=1, keepdim=True).clamp_min(smallest(rows))  # squares must not underflow
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(smallest(rows))


def complexity(maps: Tensor) -> Tensor:
    """mean |E|, (B,) in [0, 1], lower is better.

    Args:
        maps: E (B, H, W) in [0, 1].
    """
    maps = check_heat(maps)
    return unscored(maps.mean(dim=(1, 2)), maps)


def adcc(coherency: Tensor, complexity: Tensor, drop: Tensor) -> Tensor:
    """3 / (1/coh + 1/(1 - com) + 1/(1 - AD)), (B,) in [0, 1], higher is better; 0 where one of the three terms is.

    Args:
        coherency: (B,).
        complexity: (B,).
        drop: AD (B,).
    """
    a, b, c = at_least_float32(coherency), 1 - at_least_float32(complexity), 1 - at_least_float32(drop)
    pairs = a * b + b * c + c * a  # the harmonic mean without 1/0
    return 3 * a * b * c / pairs.clamp_min(smallest(pairs))


def top_two_iou(maps: Tensor, second_maps: Tensor, threshold: float = 0.2) -> Tensor:
    """|S1 ∩ S2| / |S1 ∪ S2| with S = E > threshold·max(E), (B,) in [0, 1], lower is better.

    It is 1 where both maps show nothing: such maps do not tell the classes apart.

    Args:
        maps: E (B, H, W) of the first class.
        second_maps: E (B, H, W) of another class.
        threshold: fraction of the maximum, in [0, 1); the CAPE paper takes 0.2.
    """
    check(0 <= threshold < 1, f"threshold must be a fraction of the maximum in [0, 1), got {threshold}")
    maps, second_maps = check_maps(maps), check_maps(second_maps, "second_maps")
    check_same_size(maps, second_maps, "maps and second_maps")
    first, second = (values > threshold * values.amax(dim=(1, 2), keepdim=True) for values in (maps, second_maps))
    both, either = (first & second).sum(dim=(1, 2)), (first | second).sum(dim=(1, 2))
    return unscored(torch.where(either == 0, 1.0, both / either.clamp_min(1)), maps, second_maps)


def borda_count(scores: Tensor, higher_is_better: Sequence[bool]) -> Tensor:
    """Points of M methods over S measures, (M,): 3, 2 and 1 for ranks 1, 2 and 3 of each measure, added up.

    Equal scores share a rank and the next one follows without a gap. NaN ("not measured") earns nothing.

        borda_count(torch.tensor([[21.2, 27.9], [10.3, 48.5]]), [False, True])  # AD, IC -> [4, 6]

    Args:
        scores: (M, S).
        higher_is_better: S of them.
    """
    wanted = f"expected scores (methods, measures) with one direction per measure, got {tuple(scores.shape)}"
    check(scores.ndim == 2 and scores.shape[1] == len(higher_is_better), f"{wanted} and {len(higher_is_better)}")
    signs = torch.tensor([1.0 if higher else -1.0 for higher in higher_is_better], device=scores.device)
    points = [column_points(column) for column in (at_least_float32(scores) * signs).unbind(dim=1)]
    return torch.stack(points, dim=1).sum(dim=1)


def column_points(values: Tensor) -> Tensor:
    missing = values.isnan()
    _, place = torch.unique(values.masked_fill(missing, -torch.inf), return_inverse=True)
    return (place - place.max() + 3).clamp_min(0).masked_fill(missing, 0)
