"""Percentages as text, for the cells of a map and for sentences."""

from torch import Tensor

THRESHOLD = 0.05
"""Cells at or below this fraction of a map's maximum carry no number, as in the CAPE paper's Fig. 3."""

DOT = "·"
"""A number that would round to zero."""


def format_percent(value: float) -> str:
    """A fraction in [0, 1] as a percentage of two or three digits, without the sign for percent: 0.0123 is `1.2`.

    What would round to zero is a dot.
    """
    hundredths = 100 * value
    digits = 0 if hundredths >= 9.95 else 1 if hundredths >= 0.995 else 2
    return f"{hundredths:.{digits}f}" if hundredths >= 0.005 else DOT


def format_share(value: float, sign: str = "", digits: int = 1) -> str:
    """A fraction as a percentage for running text; what would round to zero keeps one digit.

    Args:
        value: 1 is 100%.
        sign: `+` to write it also before what is positive.
        digits: after the point.
    """
    size = round(abs(100 * value), digits)
    return f"{value:{sign}.{digits}%}" if size or not value else f"{100 * value:{sign}.1g}%"


def format_cells(values: Tensor, threshold: float = THRESHOLD) -> list[list[str]]:
    """A percentage for every cell (H, W) whose size exceeds `threshold` times the largest; else an empty text.

    Signs are left to the colour of the cell.
    """
    sizes = values.abs()
    least = threshold * float(sizes.max())
    return [[format_percent(size) if size > least else "" for size in line] for line in sizes.tolist()]
