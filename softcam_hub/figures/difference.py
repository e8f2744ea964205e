"""The difference between the probabilities of two classes: the cells that make it up, and its figure.

CAPE paper, Fig. 1 and 3: `cape` maps hold probabilities, so that the map of one class minus the map of
another adds up to the difference of their probabilities.
"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..models.alignment import Grid
from ..models.explanation import Explanation
from ..models.overlays import Colour, Scale, meaning_of, scale_of, spread, tint
from ..models.text import format_share
from .captions import (
    Names,
    caption_of,
    maps_of,
    name_of,
    outline_annotation,
)
from .drawing import enlarge, frame_cells, write_numbers
from .layout import GAP, LegendEntry, captioned_row, colour_bar, legend, note, stack_vertically
from .numbers import THRESHOLD, format_cells

FRAMES: dict[tuple[int, str], tuple[Colour, int]] = {
    (1, "top 5"): ((110, 40, 0), 3),
    (1, "next 5"): ((225, 120, 20), 2),
    (-1, "top 5"): ((0, 35, 100), 3),
    (-1, "next 5"): ((50, 120, 200), 2),
}
"""Sign and title of a tier -> colour and width of the frame around its cells."""


REMARK = (
    "Both classes share one scale, with values {}. {} Numbers are percentages; a dot is a number under 0.01, or one "
    "that has no room."
)
"""Note below the figure, with gaps for the range of the values and the meaning of the maps."""


@dataclass(frozen=True)
class Tier:
    """Cells of similar weight in the difference of two classes.

    Args:
        title: Name of the tier, such as "top 5", "next 5" or "others".
        cells: Mask (H, W) of the cells that belong to the tier.
        total: Sum of the difference over these cells.
    """

    title: str
    cells: Tensor
    total: float

    def describe(self) -> str:
        """Say how many cells the tier has, and to what they add up."""
        count = int(self.cells.sum())
        return f"{self.title} ({count} cell{'s' if count != 1 else ''}): {format_share(self.total, '+', 2)}"


def tiers(difference: Tensor, sign: int, threshold: float = THRESHOLD) -> list[Tier]:
    """Sort the cells of one sign into tiers: the five strongest, the next five, and all others.

    The totals of both signs add up to the difference of the two probabilities. Tiers without cells are left
    out.

    Args:
        difference: Map (H, W) of one class minus the map of another.
        sign: 1 for the cells above zero, -1 for the cells below zero.
        threshold: Fraction of the strongest cell; weaker cells count as others, whatever their rank.
    """
    flat = (sign * difference).flatten()
    order = flat.argsort(descending=True, stable=True)[: int((flat > 0).sum())]
    strong = int((flat[order] > threshold * flat.max()).sum())
    first, second = min(5, strong), min(10, strong)
    members = {"top 5": order[:first], "next 5": order[first:second], "others": order[second:]}
    filled = []
    for title, positions in members.items():
        if len(positions):
            cells = torch.zeros_like(flat, dtype=torch.bool)
            cells[positions] = True
            total = float(difference.flatten()[positions].double().sum())
            filled.append(Tier(title, cells.view(difference.shape), total))
    return filled


def top_two(
    image: Image.Image,
    explanation: Explanation,
    names: Names,
    index: int = 0,
    mask: Tensor | None = None,
    threshold: float = THRESHOLD,
    side: int = 448,
) -> Image.Image:
    """Show why the model chose one class and not another: two `cape` maps and their difference, in percent.

    Cells above `threshold` carry the percentage that they add to their class. In the difference, the cells
    that speak most for either class are framed and added up.

    Args:
        image: Image that the model saw.
        explanation: `cape` maps of at least two classes; the first two are compared.
        names: Name of every class, by class index.
        index: Position of the image in the explained batch.
        mask: Annotation (H, W) to outline on the image.
        threshold: Fraction of a map's maximum above which a cell counts, as in `Explanation.regions`.
        side: Height of a panel in pixels.
    """
    explanation.check_probabilities("top_two() compares", "draw the maps with per_class()")
    maps = maps_of(image, explanation, index)
    if len(maps) < 2:
        raise ValueError(
            "top_two() compares two classes, and the explanation holds one: call explain with top_k=2 or more"
        )
    canvas, difference, grid = enlarge(image, side), maps[0] - maps[1], explanation.layout()
    first, second = (name_of(names, int(explanation.classes[index, rank])) for rank in (0, 1))

    # The upper row: the image, and which class its cells speak for.
    shown = _draw_difference(canvas, difference, grid, threshold)
    panels = [("image", outline_annotation(canvas, mask)), (f"{first}\nminus {second}", shown)]
    upper = captioned_row(panels, side)
    upper_bar = colour_bar(_difference_scale(difference), upper.width, left=2 * GAP + canvas.width)

    # The lower row: the map of each class.
    scale, panels = scale_of(maps[:2], explanation.kind), []
    for rank in (0, 1):
        caption = caption_of(explanation, names, index, rank)
        region = _describe_region(explanation, index, rank, threshold)
        shown = tint(canvas, spread(maps[rank], canvas, grid, smooth=False), scale)
        panels.append((f"{caption}\n{region}", write_numbers(shown, format_cells(maps[rank], threshold), grid)))
    lower = captioned_row(panels, side)
    lower_bar = colour_bar(scale, upper.width)

    tally = _tally(difference, first, second, threshold, upper.width)
    remark = note(REMARK.format(scale.describe_range(maps[:2]), meaning_of(explanation.kind)), upper.width)
    return stack_vertically([upper, upper_bar, *tally, lower, lower_bar, remark])


def _describe_region(explanation: Explanation, index: int, rank: int, threshold: float) -> str:
    """Say how much of a class's probability the cells above the threshold carry."""
    regions = explanation.regions(threshold)
    cells = regions.mask[index, rank]
    share = format_share(float(regions.share[index, rank].detach()))
    return f"{int(cells.sum())} of {cells.numel()} cells carry {share} of it"


def _difference_scale(difference: Tensor) -> Scale:
    return Scale.of(difference, diverging=True, percent=True)


def _tally(difference: Tensor, first: str, second: str, threshold: float, width: int) -> list[Image.Image]:
    """Write what the cells of a difference add up to: a line for each class, and a line for the sum."""
    lines = []
    for sign, name in ((1, first), (-1, second)):
        groups = tiers(difference, sign, threshold=threshold)
        total = format_share(sum(tier.total for tier in groups), "+", 2)
        entries = [LegendEntry(tier.describe(), *FRAMES.get((sign, tier.title), ())) for tier in groups]
        lines.append(legend(f"{total} for {name}", entries, width))
    total = format_share(float(difference.double().sum()), "+", 2)
    return [*lines, legend(f"{total} = difference of the probabilities", [], width)]


def _draw_difference(canvas: Image.Image, values: Tensor, grid: Grid, threshold: float) -> Image.Image:
    """Draw a difference in blocks over its image, with the frames of its tiers and its numbers."""
    shown = tint(canvas, spread(values, canvas, grid, smooth=False), _difference_scale(values))
    for sign in (1, -1):
        for tier in tiers(values, sign, threshold=threshold):
            if (sign, tier.title) in FRAMES:
                shown = frame_cells(shown, tier.cells, grid, *FRAMES[sign, tier.title])
    widest = max(width for _, width in FRAMES.values())
    return write_numbers(shown, format_cells(values, threshold), grid, frame=widest)
