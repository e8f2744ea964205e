"""The papers' figures of maps over their images: one map, methods side by side, and all classes of an image.

- A figure whose maps share one scale says so and prints the limits of the scale. `comparison` says instead
  that every map has a scale of its own, since the methods have no common unit.
- Signed maps (`softcam`, `cam`) diverge from a pale zero, with the same length on both sides.
- Only `cape` maps hold probabilities, so that only they get percentages in their cells.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from ..explanation_scores.localization import activation_precision, activation_sensitivity
from ..explanation_scores.maps import heat
from ..models.alignment import sides_of
from ..models.explanation import Explanation
from ..models.overlays import Scale, meaning_of, scale_of, spread, tint
from .captions import Names, caption_of, maps_of, outline_annotation
from .drawing import enlarge, write_numbers
from .layout import captioned_row, colour_bar, note, stack_vertically
from .numbers import format_cells

NO_HEAT = "nothing stands out"
"""Caption of a map without positive values."""


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
    """Draw one map over its image, with its class, its probability, a colour bar and the range of its values.

    Args:
        image: Image that the model saw.
        explanation: Explanation of a batch.
        names: Name of every class, by class index.
        index: Position of the image in the batch.
        rank: Position of the class among the explained classes of the image.
        numbers: Print the percentages of a `cape` map into its cells.
        mask: Annotation (H, W) to outline.
        side: Height of the map in pixels.
    """
    maps = maps_of(image, explanation, index)
    if numbers:
        explanation.check_probabilities("numbers=True prints", "draw the maps with per_class()")
    if not 0 <= rank < len(maps):
        raise IndexError(
            f"rank {rank} is not among the {len(maps)} explained classes: explain more with a larger top_k"
        )
    scale, canvas = scale_of(maps[rank], explanation.kind), enlarge(image, side)
    grid = explanation.layout()
    shown = tint(canvas, spread(maps[rank], canvas, grid, smooth=not numbers), scale)
    if numbers:
        shown = write_numbers(shown, format_cells(maps[rank]), grid)
    panel = caption_of(explanation, names, index, rank), outline_annotation(shown, mask)
    sheet = captioned_row([panel], side)
    remark = f"Values {scale.describe_range(maps[rank])}. {meaning_of(explanation.kind)}"
    return stack_vertically([sheet, colour_bar(scale, sheet.width), note(remark, sheet.width)])


def comparison(
    images: Sequence[Image.Image],
    maps: Mapping[str, Tensor | Explanation],
    masks: Sequence[Tensor | None] | Tensor | None = None,
    titles: Sequence[str] | None = None,
    side: int = 256,
) -> Image.Image:
    """Draw methods side by side, with a row for each image (SoftCAM paper, Fig. 2 and 4; CAPE paper, Fig. 3).

    Every map shows its positive part, scaled from its minimum to its maximum. Above the map of an annotated
    image stand its activation precision (share of the heat inside the annotation) and sensitivity (mean heat
    inside it). Methods are named above the first row, or above every row if the images differ in width.

        comparison(pictures, create_explainer(["grad-cam", "cape"], model).explain(images, labels), masks)

    Args:
        images: B images. An image of which two classes are shown is passed twice.
        maps: Name of a method -> maps (B, H, W) or (B, 1, H, W) at any resolution, whose cells are drawn as squares,
            or an explanation of one class for each image, whose cells are drawn where the network looks.
        masks: B annotations (H, W) in the proportions of the images; None for an image without one.
        titles: Text above each image.
        side: Height of a panel in pixels.
    """
    if not images or not maps:
        raise ValueError("comparison() got no images or no maps: pass at least one image and one method")
    maps = {name: _check_maps(name, values, len(images)) for name, values in maps.items()}
    masks = _one_for_each(images, "masks", masks, None)
    titles = _one_for_each(images, "titles", titles, "")

    # Methods need their names only once if their maps stand below one another.
    aligned = len({enlarge(image, side).width for image in images}) == 1
    sheets = []
    for index, (image, mask, title) in enumerate(zip(images, masks, titles, strict=True)):
        panels = [(title or ("" if index else "image"), outline_annotation(enlarge(image, side), mask))]
        for name, values in maps.items():
            heading = "" if index and aligned else name
            panels.append(_compared_panel(image, values, index, mask, heading, side))
        sheets.append(captioned_row(panels, side))

    remark = "Positive part of each map, scaled from its own minimum to its own maximum."
    if any(mask is not None and mask.any() for mask in masks):
        remark += " The outline is the annotation."
    width = max(sheet.width for sheet in sheets)
    bar = colour_bar(Scale(1.0), width, ["minimum", "", "maximum"])
    return stack_vertically([*sheets, bar, note(remark, width)])


def _one_for_each(images: Sequence[Image.Image], name: str, values: Sequence | Tensor | None, default: Any) -> Any:
    """Return the values, or the default for every image; refuse more or fewer values than images."""
    if values is None:
        return [default] * len(images)
    if len(values) != len(images):
        raise ValueError(f"comparison() got {len(images)} images and {len(values)} {name}: pass one for each")
    return values


def _check_maps(name: str, given: Tensor | Explanation, count: int) -> Tensor | Explanation:
    """Return the maps of a method as (B, H, W) on the CPU, or its explanation, and refuse other shapes."""
    maps = given.maps if isinstance(given, Explanation) else given
    if maps.ndim == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    if maps.ndim != 3 or len(maps) != count:
        raise ValueError(
            f"{name}: expected maps ({count}, H, W), one for each image, got {tuple(maps.shape)}: choose one "
            "class for each image"
        )
    return given if isinstance(given, Explanation) else maps.detach().cpu()


def _heat_of(maps: Tensor | Explanation, index: int, size: tuple[int, int]) -> Tensor:
    """Return the heat map (1, H, W) of one image."""
    if isinstance(maps, Explanation):
        return maps[index].heatmaps(size)[:, 0].detach().cpu()
    return heat(maps[index : index + 1], size)


def _compared_panel(
    image: Image.Image, maps: Tensor | Explanation, index: int, mask: Tensor | None, name: str, side: int
) -> tuple[str, Image.Image]:
    """Draw the map of a method over its image; return it with a caption of the name and the scores."""
    canvas = enlarge(image, side)
    hot = _heat_of(maps, index, canvas.size[::-1])
    lines = [name] if name else []
    if not hot.any():
        lines.append(NO_HEAT)
    elif mask is not None and mask.any():
        at_mask, annotation = _heat_of(maps, index, sides_of(mask)), mask.bool().cpu()[None]
        precision = float(activation_precision(at_mask, annotation))
        sensitivity = float(activation_sensitivity(at_mask, annotation))
        lines.append(f"precision {precision:.2f}, sensitivity {sensitivity:.2f}")
    return "\n".join(lines), outline_annotation(tint(canvas, hot[0], Scale(1.0)), mask)


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
    """Draw the maps of all explained classes of an image (SoftCAM paper, Fig. 5).

    Args:
        image: Image that the model saw.
        explanation: Explanation of a batch; classes are shown in its order.
        names: Name of every class, by class index.
        index: Position of the image in the batch.
        mask: Annotation (H, W) to outline.
        columns: Panels in a row. The first panel is the image.
        most: Largest number of maps to show; the note below counts the others.
        shared: Give all maps one scale; otherwise each has its own, with the range of its values above it.
        side: Height of a panel in pixels.
    """
    maps = maps_of(image, explanation, index)
    shown, canvas = maps[:most], enlarge(image, side)
    common = scale_of(shown, explanation.kind)
    panels = [("image", outline_annotation(canvas, mask))]
    for rank, values in enumerate(shown):
        caption, own = caption_of(explanation, names, index, rank), scale_of(values, explanation.kind)
        if not shared:
            caption += f"\nvalues {own.describe_range(values)}"
        if own.high == 0:
            caption += f"\n{NO_HEAT}"
        picture = tint(canvas, spread(values, canvas, explanation.layout()), common if shared else own)
        panels.append((caption, outline_annotation(picture, mask)))
    sheets = [captioned_row(panels[start : start + columns], side) for start in range(0, len(panels), columns)]

    scales = f"Each {explanation.kind} map has its own scale."
    if shared:
        scales = f"All {explanation.kind} maps share one scale, with values {common.describe_range(shown)}."
    remark = f"{scales} {meaning_of(explanation.kind)}"
    if len(shown) < len(maps):
        remark += f" Shown: {len(shown)} of {len(maps)} explained classes."
    width = max(sheet.width for sheet in sheets)
    labels = None if shared else ["-limit" if common.diverging else "0", "", "limit"]
    return stack_vertically([*sheets, colour_bar(common, width, labels), note(remark, width)])
