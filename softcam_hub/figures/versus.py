"""One class against another: where the difference of their probabilities lies (CAPE paper, Fig. 1 and 3)."""

from PIL import Image
from torch import Tensor

from ..models.explanation import Explanation
from .captions import Names, annotated, caption_of, maps_of, meaning_of, name_of, need_probabilities, scale_of
from .drawing import Colour, Scale, boxed, enlarged, numbered, spread, tinted
from .numbers import THRESHOLD, cell_texts, share, tiers
from .sheets import GAP, colour_bar, column, legend, note, row

FRAMES: dict[tuple[int, str], tuple[Colour, int]] = {
    (1, "top 5"): ((110, 40, 0), 3),
    (1, "next 5"): ((225, 120, 20), 2),
    (-1, "top 5"): ((0, 35, 100), 3),
    (-1, "next 5"): ((50, 120, 200), 2),
}
"""Sign and title of a tier -> colour and width of the frame around its cells."""


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
    need_probabilities(explanation, "top_two() compares")
    maps = maps_of(image, explanation, index)
    if len(maps) < 2:
        raise ValueError("top_two() compares two classes, and one is explained: call explain(..., top_k=2)")
    canvas, difference = enlarged(image, side), maps[0] - maps[1]
    first, second = (name_of(names, int(explanation.classes[index, rank])) for rank in (0, 1))
    shown = (f"{first}\nminus {second}", _difference(canvas, difference, threshold))
    upper = row([("image", annotated(canvas, mask)), shown], side)
    scale, regions, classes = scale_of(maps[:2], "cape"), explanation.regions(threshold), []
    for rank in (0, 1):
        count, carried = int(regions.mask[index, rank].sum()), share(float(regions.share[index, rank].detach()))
        caption = (
            caption_of(explanation, names, index, rank) + f"\n{count} of {maps[0].numel()} cells carry {carried} of it"
        )
        over = tinted(canvas, spread(maps[rank], canvas, smooth=False), scale)
        classes.append((caption, numbered(over, cell_texts(maps[rank], threshold))))
    remark = f"Both classes share one scale. {meaning_of('cape')} Numbers are percent; a dot: under 0.01, or no room."
    return column(
        [
            upper,
            colour_bar(_signed_scale(difference), upper.width, left=2 * GAP + canvas.width),
            *_tally(difference, first, second, threshold, upper.width),
            row(classes, side),
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
        total = share(sum(tier.total for tier in found), "+", 2)
        entries = [(tier.describe(), *FRAMES.get((sign, tier.title), (None, 0))) for tier in found]
        lines.append(legend(f"{total} for {name}", entries, width))
    total = share(float(difference.double().sum()), "+", 2)
    return [*lines, legend(f"{total} = difference of the probabilities", [], width)]


def _difference(canvas: Image.Image, values: Tensor, threshold: float) -> Image.Image:
    """A signed map in blocks, with the frames of its tiers and its numbers."""
    shown = tinted(canvas, spread(values, canvas, smooth=False), _signed_scale(values))
    for sign in (1, -1):
        for tier in tiers(values, sign, threshold=threshold):
            if (sign, tier.title) in FRAMES:
                shown = boxed(shown, tier.cells, *FRAMES[sign, tier.title])
    return numbered(shown, cell_texts(values, threshold), frame=max(width for _, width in FRAMES.values()))
