"""Percentages as text, for the cells of a map."""

from torch import Tensor

THRESHOLD = 0.05
"""Fraction of a map's maximum up to which cells carry no number, as in the CAPE paper's Fig. 3."""

DOT = "·"
"""Stands for a number that would round to zero."""


def format_percent(value: float) -> str:
    """Write a fraction in [0, 1] as a percentage of two or three digits, without a percent sign: 0.0123 is
    `1.2`.

    A number that would round to zero becomes a dot.
    """
    percentage = 100 * value
    digits = 0 if percentage >= 9.95 else 1 if percentage >= 0.995 else 2
    return f"{percentage:.{digits}f}" if percentage >= 0.005 else DOT


def format_cells(values: Tensor, threshold: float = THRESHOLD) -> list[list[str]]:
    """Write a percentage for every cell that exceeds `threshold` times the largest one, and nothing for the
    others.

    Signs are left out: the colour of a cell shows them.

    Args:
        values: Map (H, W) of fractions.
        threshold: Fraction of the largest absolute value.
    """
    sizes = values.abs()
    limit = threshold * float(sizes.max())
    return [[format_percent(size) if size > limit else "" for size in line] for line in sizes.tolist()]
