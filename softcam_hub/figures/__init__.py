"""Pictures of explanations, as Pillow images: their parts, and the papers' figures."""

from .difference import top_two
from .drawing import DIVERGING, SEQUENTIAL, Scale, apply_colours, denormalise, outline, overlay, signed_map
from .grids import comparison, per_class, single
from .layout import captioned_row, stack_vertically

__all__ = [
    "DIVERGING",
    "SEQUENTIAL",
    "Scale",
    "apply_colours",
    "captioned_row",
    "comparison",
    "denormalise",
    "outline",
    "overlay",
    "per_class",
    "signed_map",
    "single",
    "stack_vertically",
    "top_two",
]
