"""Pictures of explanations, as Pillow images: their parts, and the papers' figures."""

from ..models.overlays import Scale, denormalise, overlay
from .difference import top_two
from .drawing import outline
from .grids import comparison, per_class, single
from .layout import captioned_row, stack_vertically

__all__ = [
    "Scale",
    "captioned_row",
    "comparison",
    "denormalise",
    "outline",
    "overlay",
    "per_class",
    "single",
    "stack_vertically",
    "top_two",
]
