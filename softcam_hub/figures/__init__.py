"""Pictures of explanations, with numpy and Pillow: parts of them, and the papers' figures."""

from .drawing import DIVERGING, SEQUENTIAL, Scale, colour, outlined, overlay, picture, signed
from .grids import comparison, per_class, single
from .sheets import column, row
from .versus import top_two

__all__ = [
    "DIVERGING",
    "SEQUENTIAL",
    "Scale",
    "colour",
    "column",
    "comparison",
    "outlined",
    "overlay",
    "per_class",
    "picture",
    "row",
    "signed",
    "single",
    "top_two",
]
