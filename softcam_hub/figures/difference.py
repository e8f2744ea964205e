"""One class against another: where the difference of their probabilities lies (CAPE paper, Fig. 1 and 3)."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..models.explanation import Explanation
from .captions import Names, caption_of, check_probabilities, maps_of, meaning_of, name_of, outline_annotation, scale_of
from .drawing import Colour, Scale, enlarge, frame_cells, spread, tint, write_numbers
from .layout import GAP, captioned_row, colour_bar, legend, note, stack_vertically
from .numbers import THRESHOLD, format_cells, format_share

FRAMES: dict[tuple[int, str], tuple[Colour, int]] = {
    (1, "top 5"): ((110, 40, 0), 3),
    (1, "next 5"): ((225, 120, 20), 2),
    (-1, "top 5"): ((0, 35, 100), 3),
    (-1, "next 5"): ((50, 120, 200), 2),
}
"""Sign and title of a tier -> colour and width of the frame around its cells."""


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
        return f"{self.title} ({count} cell{'s' if count != 1 else ''}): {format_share(self.total, '+', 2)}"


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


def top_two(
    image: Image.Image,
    explanation: Explanation,
    names: Names,
    index: int = 0,
    mask: Tensor | None = None,
    threshold: float = THRESHOLD,
    side: int = 448,
) -> Image.Image:
    """Why this class and not the other: two `cape` maps and their difference, in percent (CAPE paper, Fig. 1 and 3).

    Cells above `threshold` carry the percentage that they add to their class; in the difference, the cells that speak
    most for either class are framed and added up.

    Args:
        image: what the model saw.
        explanation: `cape` maps of at least two classes; the first two are compared.
        names: of all classes, by class index.
        index: which image of the batch this is.
        mask: (H, W), an annotation to outline on the image.
        threshold: fraction of a map's maximum above which its cells count, as for `Explanation.regions`.
        side: height of a panel in pixels.
    """
    check_probabilities(explanation, "top_two() compares")
    maps = maps_of(image, explanation, index)
    if len(maps) < 2:
        raise ValueError("top_two() compares two classes, and one is explained: call explain(..., top_k=2)")
    canvas, difference = enlarge(image, side), maps[0] - maps[1]
    first, second = (name_of(names, int(explanation.classes[index, rank])) for rank in (0, 1))
    shown = (f"{first}\nminus {second}", _difference(canvas, difference, threshold))
    upper = captioned_row([("image", outline_annotation(canvas, mask)), shown], side)
    scale, regions, classes = scale_of(maps[:2], "cape"), explanation.regions(threshold), []
    for rank in (0, 1):
        count, carried = int(regions.mask[index, rank].sum()), format_share(float(regions.share[index, rank].detach()))
        caption = (
            caption_of(explanation, names, index, rank) + f"\n{count} of {maps[0].numel()} cells carry {carried} of it"
        )
        over = tint(canvas, spread(maps[rank], canvas, smooth=False), scale)
        classes.append((caption, write_numbers(over, format_cells(maps[rank], threshold))))
    remark = f"Both classes share one scale. {meaning_of('cape')} Numbers are percent; a dot: under 0.01, or no room."
    return stack_vertically(
        [
            upper,
            colour_bar(_signed_scale(difference), upper.width, left=2 * GAP + canvas.width),
            *_tally(difference, first, second, threshold, upper.width),
            captioned_row(classes, side),
            colour_bar(scale, upper.width),
            note(remark, upper.width),
        ]
    )


def _signed_scale(difference: Tensor) -> Scale:
    return Scale.of(difference, diverging=True, percent=True)


def _tally(difference: Tensor, first: str, second: str, threshold: float, width: int) -> list[Image.Image]:
    """What the cells of a difference add up to: one line for each class, and one for the sum."""
    lines = []
    for sign, name in ((1, first), (-1, second)):
        found = tiers(difference, sign, threshold=threshold)
        total = format_share(sum(tier.total for tier in found), "+", 2)
        entries = [(tier.describe(), *FRAMES.get((sign, tier.title), (None, 0))) for tier in found]
        lines.append(legend(f"{total} for {name}", entries, width))
    total = format_share(float(difference.double().sum()), "+", 2)
    return [*lines, legend(f"{total} = difference of the probabilities", [], width)]


def _difference(canvas: Image.Image, values: Tensor, threshold: float) -> Image.Image:
    """A signed map in blocks, with the frames of its tiers and its numbers."""
    shown = tint(canvas, spread(values, canvas, smooth=False), _signed_scale(values))
    for sign in (1, -1):
        for tier in tiers(values, sign, threshold=threshold):
            if (sign, tier.title) in FRAMES:
                shown = frame_cells(shown, tier.cells, *FRAMES[sign, tier.title])
    return write_numbers(shown, format_cells(values, threshold), frame=max(width for _, width in FRAMES.values()))
