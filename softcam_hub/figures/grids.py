"""The papers' figures, each from images and maps to one picture.

- A figure whose maps share one scale says so and prints its limits; `comparison` cannot, as its methods have no common
  unit, and says that instead.
- Signed maps (`softcam`, `cam`) diverge from a pale zero, the same length on both sides.
- Only `cape` maps hold probabilities, so only they get percentages in their cells and a difference that adds up.
"""

from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from ..explanation_scores.localization import activation_precision, activation_sensitivity
from ..explanation_scores.maps import heat
from ..models.explanation import Explanation
from .captions import Names, caption_of, check_probabilities, maps_of, meaning_of, outline_annotation, scale_of
from .drawing import Scale, enlarge, spread, tint, write_numbers
from .layout import captioned_row, colour_bar, note, stack_vertically
from .numbers import format_cells


def single(
    image: Image.Image,
    explanation: Explanation,
    names: Names,
    index: int = 0,
    rank: int = 0,
    numbers: bool = False,
    mask: Tensor | None = None,
    side: int = 448,
) -> Image.Image:
    """One map over its image, with its class, its probability and a colour bar.

    Args:
        image: what the model saw.
        explanation: of a batch.
        names: of all classes, by class index.
        index: which image of the batch this is.
        rank: which of its explained classes.
        numbers: print `cape` percentages into the cells.
        mask: (H, W), an annotation to outline.
        side: height of the map in pixels.
    """
    maps = maps_of(image, explanation, index)
    if numbers:
        check_probabilities(explanation, "numbers=True prints")
    if not 0 <= rank < len(maps):
        raise IndexError(f"rank {rank} is not among the {len(maps)} explained classes: explain more with top_k")
    scale, canvas = scale_of(maps[rank], explanation.kind), enlarge(image, side)
    shown = tint(canvas, spread(maps[rank], canvas, smooth=not numbers), scale)
    shown = write_numbers(shown, format_cells(maps[rank])) if numbers else shown
    sheet = captioned_row([(caption_of(explanation, names, index, rank), outline_annotation(shown, mask))], side)
    return stack_vertically([sheet, colour_bar(scale, sheet.width)])


def comparison(
    images: Sequence[Image.Image],
    maps: Mapping[str, Tensor],
    masks: Sequence[Tensor | None] | Tensor | None = None,
    titles: Sequence[str] | None = None,
    side: int = 256,
) -> Image.Image:
    """Methods side by side, one row for each image (SoftCAM paper, Fig. 2 and 4; CAPE paper, Fig. 3).

    Each map shows its positive part, min-max scaled. Where there is an annotation, its activation precision (share of
    the heat that is on it) and sensitivity (mean heat of it) are printed above the map. Methods are named on the first
    row, or on every row where images differ in width.

        comparison(pictures, create_explainer(["grad-cam", "cape"], model)(images, labels), masks)

    Args:
        images: B pictures; for two classes of one image give it twice.
        maps: method -> maps (B, H, W) or (B, 1, H, W), each at its own resolution.
        masks: B annotations (H, W) of the image's size, or None for an image without one.
        titles: a text for each image.
        side: height of a panel in pixels.
    """
    if not images or not maps:
        raise ValueError("comparison() needs at least one image and one method: both are rows and columns of a grid")
    maps = {name: _checked_batch(name, values, len(images)) for name, values in maps.items()}
    for what, values in (("masks", masks), ("titles", titles)):
        if values is not None and len(values) != len(images):
            raise ValueError(f"comparison() got {len(images)} images and {len(values)} {what}: give one for each image")
    masks, titles = masks if masks is not None else [None] * len(images), titles or [""] * len(images)
    aligned = len({enlarge(image, side).width for image in images}) == 1
    grid = []
    for index, (image, mask, title) in enumerate(zip(images, masks, titles, strict=True)):
        panels = [(title, outline_annotation(enlarge(image, side), mask))]
        for name, values in maps.items():
            panels.append(_compared(image, values[index], mask, "" if index and aligned else name, side))
        grid.append(captioned_row(panels, side))
    outline = " The outline is the annotation." if any(mask is not None and mask.any() for mask in masks) else ""
    text = f"Positive part of each map, scaled from its own minimum to its own maximum.{outline}"
    width = max(sheet.width for sheet in grid)
    return stack_vertically([*grid, colour_bar(Scale(1.0), width, ["minimum", "", "maximum"]), note(text, width)])


def per_class(
    image: Image.Image,
    explanation: Explanation,
    names: Names,
    index: int = 0,
    mask: Tensor | None = None,
    columns: int = 4,
    most: int = 11,
    shared: bool = True,
    side: int = 256,
) -> Image.Image:
    """The maps of an image's explained classes (SoftCAM paper, Fig. 5).

    Args:
        image: what the model saw.
        explanation: of a batch; its order of classes is kept.
        names: of all classes, by class index.
        index: which image of the batch this is.
        mask: (H, W), an annotation to outline.
        columns: panels in a row, the image being the first panel.
        most: maps that are shown; the others are counted in the note.
        shared: one scale for all maps; else each has its own, with its limit above it.
        side: height of a panel in pixels.
    """
    maps = maps_of(image, explanation, index)
    shown, canvas = maps[:most], enlarge(image, side)
    common = scale_of(shown, explanation.kind)
    panels = [("image", outline_annotation(canvas, mask))]
    for rank, values in enumerate(shown):
        scale = common if shared else scale_of(values, explanation.kind)
        over = tint(canvas, spread(values, canvas), scale)
        limit = "" if shared else f"\nscale up to {scale.labels()[-1]}"
        silent = "" if scale_of(values, explanation.kind).high > 0 else "\nnothing stands out"
        panels.append((caption_of(explanation, names, index, rank) + limit + silent, outline_annotation(over, mask)))
    rows = [captioned_row(panels[first : first + columns], side) for first in range(0, len(panels), columns)]
    of_all = f"All {explanation.kind} maps share one scale."
    of_each = f"Each {explanation.kind} map has its own scale."
    sentences = [of_all if shared else of_each, meaning_of(explanation.kind)]
    if len(shown) < len(maps):
        sentences.append(f"Shown: {len(shown)} of {len(maps)} explained classes.")
    width = max(sheet.width for sheet in rows)
    bar = colour_bar(common, width, None if shared else ["-limit" if common.diverging else "0", "", "limit"])
    return stack_vertically([*rows, bar, note(" ".join(sentences), width)])


def _compared(image: Image.Image, values: Tensor, mask: Tensor | None, name: str, side: int) -> tuple[str, Image.Image]:
    """A method's map (H, W) over its image, and its name and scores."""
    canvas = enlarge(image, side)
    hot = heat(values[None], canvas.size[::-1])
    shown = outline_annotation(tint(canvas, hot[0], Scale(1.0)), mask)
    numbers = ""
    if not hot.any():
        numbers = "nothing stands out"
    elif mask is not None and mask.any():
        at_mask, annotation = heat(values[None], tuple(mask.shape)), mask.bool().cpu()[None]
        precision, sensitivity = activation_precision(at_mask, annotation), activation_sensitivity(at_mask, annotation)
        numbers = f"precision {float(precision):.2f}, sensitivity {float(sensitivity):.2f}"
    return "\n".join(text for text in (name, numbers) if text), shown


def _checked_batch(name: str, maps: Tensor, count: int) -> Tensor:
    maps = maps[:, 0] if maps.ndim == 4 and maps.shape[1] == 1 else maps
    if maps.ndim != 3 or len(maps) != count:
        wanted = f"({count}, H, W), one map for each image"
        raise ValueError(f"{name}: expected maps {wanted}, got {tuple(maps.shape)}: choose one class for each image")
    return maps.detach().cpu()
