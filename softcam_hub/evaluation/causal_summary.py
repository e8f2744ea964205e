"""Correlate evidence and effects over the parts of a whole data set, with intervals over its images.

- Parts of one image belong together, so that the bootstrap draws images with all of their parts.
- A correlation follows from sums over parts, so that resamples need no pass over the parts. For the rank correlation,
  every part keeps its rank in the whole data set.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..explanation_scores.causal import idle_parts, linear_agreement, rank_agreement
from ..explanation_scores.faithfulness import ranks
from .causal import CORRELATED, ODDS, PART_EVIDENCE
from .lines import Line
from .statistics import Array, bootstrap_of_sums


def _rank(values: Tensor) -> Tensor:
    return ranks(values[None])[0].double()


CORRELATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "rank": (rank_agreement, _rank),
    "linear": (linear_agreement, Tensor.double),
}
"""Kind of correlation -> function of evidence and effects, and the scale on which it is a linear correlation."""


def correlate_all_parts(lines: Sequence[Line]) -> dict[str, Any]:
    """Correlate evidence and effects over the parts of all images, and bootstrap images for 95 % intervals.

    Args:
        lines: Values of one explainer, with the lists of `measure_causal`.
    """
    owners = np.repeat(np.arange(len(lines)), [len(line[ODDS]) for line in lines])
    columns = {name: _join(lines, name) for name in (PART_EVIDENCE, *CORRELATED)}
    present = ~torch.stack(list(columns.values())).isnan().any(dim=0)
    if not present.any():
        return {}
    evidence, idle = columns[PART_EVIDENCE][present], idle_parts(columns[ODDS][present])
    found: dict[str, Any] = {}
    for output, ending in CORRELATED.items():
        effects = columns[output][present].masked_fill(idle, 0)
        for kind, (correlate, scale) in CORRELATIONS.items():
            name, value = f"causal_{kind}_all{ending}", float(correlate(evidence[None], effects[None]))
            if not np.isnan(value):
                found[name] = value
                found |= _interval(name, scale(evidence), scale(effects), owners[present.numpy()], len(lines))
    return found


def _join(lines: Sequence[Line], name: str) -> Tensor:
    """Return the values of all parts of all images in one row, NaN where a part is not there."""
    values = [torch.nan if value is None else value for line in lines for value in line[name]]
    return torch.tensor(values, dtype=torch.float64)


def _interval(name: str, first: Tensor, second: Tensor, owners: Array, images: int) -> dict[str, list[float]]:
    """Return the interval of a linear correlation under the name that it has in a row; nothing for a single image.

    Args:
        name: Name of the correlation.
        first: Values of all parts.
        second: Other values of the same parts.
        owners: Image of every part.
        images: Number of images.
    """
    a, b = (_standardise(values.numpy()) for values in (first, second))
    sums = np.zeros((images, 6))
    np.add.at(sums, owners, np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], axis=1))
    low, high = bootstrap_of_sums([sums], _correlation_of_sums).interval().tolist()
    return {} if np.isnan(low) else {f"{name}_interval": [low, high]}


def _standardise(values: Array) -> Array:
    """Centre and scale values, so that sums of squares lose no digits; a constant becomes zeros."""
    centred = values - values.mean() if np.ptp(values) > 0 else np.zeros_like(values)
    return centred / max(np.abs(centred).max(initial=0.0), np.finfo(values.dtype).tiny)


def _correlation_of_sums(sums: Array) -> Array:
    """Compute correlations (n,) from sums (n, 6) of 1, a, b, a², b² and ab."""
    count, a, b, aa, bb, ab = sums.T
    spread = np.sqrt(np.maximum(count * aa - a * a, 0) * np.maximum(count * bb - b * b, 0))
    return (count * ab - a * b) / spread
