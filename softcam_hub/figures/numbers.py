"""What figures say in numbers: percentages of cells, and the tiers of a difference between two classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

THRESHOLD = 0.05
"""Cells at or below this fraction of a map's maximum carry no number, as in the CAPE paper's Fig. 3."""

DOT = "·"
"""A number that would round to zero."""


def percent(value: float) -> str:
    """A fraction in [0, 1] as a percentage of two or three digits, without the sign for percent: 0.0123 is `1.2`.

    What would round to zero is a dot.
    """
    hundredths = 100 * value
    digits = 0 if hundredths >= 9.95 else 1 if hundredths >= 0.995 else 2
    return f"{hundredths:.{digits}f}" if hundredths >= 0.005 else DOT


def share(value: float, sign: str = "", digits: int = 1) -> str:
    """A fraction as a percentage for running text; what would round to zero keeps one digit.

    Args:
        value: 1 is 100%.
        sign: `+` to write it also before what is positive.
        digits: after the point.
    """
    size = round(abs(100 * value), digits)
    return f"{value:{sign}.{digits}%}" if size or not value else f"{100 * value:{sign}.1g}%"


def cell_texts(values: Tensor, threshold: float = THRESHOLD) -> list[list[str]]:
    """A percentage for every cell (H, W) whose size exceeds `threshold` times the largest; else an empty text.

    Signs are left to the colour of the cell.
    """
    sizes = values.abs()
    least = threshold * float(sizes.max())
    return [[percent(size) if size > least else "" for size in line] for line in sizes.tolist()]


@dataclass(frozen=True)
class Tier:
    """Cells of similar weight in a difference of two classes.

    Args:
        title: `top 5`, `next 5`, `others`.
        cells: (H, W), true at its cells.
        total: the sum of the difference over its cells.
    """

    title: str
    cells: Tensor
    total: float

    def describe(self) -> str:
        """Its cells and what they add up to."""
        count = int(self.cells.sum())
        return f"{self.title} ({count} cell{'s' if count != 1 else ''}): {share(self.total, '+', 2)}"


def tiers(difference: Tensor, sign: int, size: int = 5, threshold: float = THRESHOLD) -> list[Tier]:
    """The cells that speak for one class: the `size` strongest, the `size` next, and all others; none without a cell.

    The totals of both signs add up to the difference of the two probabilities (CAPE paper, Fig. 1).

    Args:
        difference: (H, W), the maps of two classes, one minus the other.
        sign: 1 for the cells above zero, -1 for those below.
        size: of the first two tiers, at most.
        threshold: fraction of the strongest cell of the sign; weaker cells are among the others, whatever their rank.
    """
    flat = (sign * difference).flatten()
    order = flat.argsort(descending=True, stable=True)[: int((flat > 0).sum())]
    strong = int((flat[order] > threshold * flat.max()).sum())
    first, second = min(size, strong), min(2 * size, strong)
    found = []
    for title, part in (
        (f"top {size}", order[:first]),
        (f"next {size}", order[first:second]),
        ("others", order[second:]),
    ):
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[part] = True
        found.append(Tier(title, chosen.view(difference.shape), float(difference.flatten()[part].double().sum())))
    return [tier for tier in found if tier.cells.any()]
