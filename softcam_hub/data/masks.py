"""Ground-truth masks of samples: images of masks, or boxes [[x0, y0, x1, y1], ...] in pixels, also as JSON.

- Masks and boxes refer to the upright image.
- A mask is true where any colour channel is not zero, so that class-index masks work, in a palette too, if colour 0 of
  that is black. What is fully transparent is not part of a mask. Save masks losslessly.
"""

import json
from typing import Any

import numpy as np
from PIL import Image

from ..models.images import UndecodableImage, name_image
from .columns import Columns
from .locations import ADVICE, Locations


def read_boxes(boxes: Any, name: str) -> list[list[float]]:
    """Read and check boxes as far as that is possible without the image.

    Args:
        boxes: List of boxes, or JSON of it.
        name: Name of the image in messages.
    """
    try:
        parsed = json.loads(boxes) if isinstance(boxes, str) else boxes
        corners = np.asarray(parsed, dtype=np.float64).reshape(-1, 4)
    except (ValueError, TypeError) as error:
        raise ValueError(f"boxes of {name} are {boxes!r}: expected [[x0, y0, x1, y1], ...] in pixels") from error
    if corners.size and corners.min() >= 0 and corners.max() <= 1:
        raise ValueError(
            f"boxes of {name} are {boxes!r}, which look like shares of the image: expected pixels; multiply by width "
            "and height"
        )
    for x0, y0, x1, y1 in corners:
        if not (0 <= x0 < x1 and 0 <= y0 < y1):
            raise ValueError(
                f"{name}: [{x0:g}, {y0:g}, {x1:g}, {y1:g}] is not a box: expected [x0, y0, x1, y1] in pixels, with "
                "0 <= x0 < x1 and 0 <= y0 < y1"
            )
    return corners.tolist()


def draw_boxes(boxes: Any, size: tuple[int, int], name: str) -> np.ndarray:
    """Return booleans (H, W) that are true for every pixel that one of the boxes touches.

    Args:
        boxes: List of boxes, or JSON of it.
        size: Width and height of the image.
        name: Name of the image in messages.
    """
    width, height = size
    mask = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in read_boxes(boxes, name):
        if x1 > width or y1 > height:
            raise ValueError(
                f"{name}: the box [{x0:g}, {y0:g}, {x1:g}, {y1:g}] does not fit its image: expected x1 up to {width} "
                f"and y1 up to {height}"
            )
        mask[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))] = True
    return mask


def read_mask(
    row: dict[str, Any], columns: Columns, size: tuple[int, int], locations: Locations, name: str
) -> Image.Image | None:
    """Read the mask of a row in mode "L", or draw it from the boxes; None for a row without ground truth.

    Args:
        row: Undecoded row of a table.
        columns: Columns of the table.
        size: Width and height of the upright image.
        locations: Places that paths in the row lead to.
        name: Name of the image in messages.
    """
    if columns.mask and row[columns.mask] is not None:
        name = f"the mask of {name}"
        with name_image(name, ADVICE):
            pixels = np.asarray(_drop_alpha(locations.decode(row[columns.mask], name))) != 0
        mask = pixels.any(axis=2) if pixels.ndim == 3 else pixels
    elif columns.boxes and row[columns.boxes] is not None:
        mask = draw_boxes(row[columns.boxes], size, name)
    else:
        return None
    if mask.shape != size[::-1]:
        raise ValueError(
            f"{name} is {mask.shape[1]}×{mask.shape[0]} pixels but its image {size[0]}×{size[1]}: expected the size "
            "of the upright image"
        )
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _drop_alpha(mask: Image.Image) -> Image.Image:
    """Remove the alpha channel, which would make every opaque pixel part of the mask, and clear what it hides.

    An image whose alpha channel is the mask, drawn in one colour, is refused: without alpha it would mark everything.
    So is a palette whose first colour is not black, as nothing says which of its numbers is the background.
    """
    if mask.mode in ("P", "PA") and any((mask.getpalette("RGB") or [0, 0, 0])[:3]):
        raise UndecodableImage(
            "colour 0 of its palette is not black, so that nothing says which number is the background: save the mask "
            "as a grey image, 0 where nothing is"
        )
    if mask.mode in ("RGBA", "LA"):
        *colours, alpha = (channel.getextrema() for channel in mask.split())
        if alpha[0] != alpha[1] and all(low == high for low, high in colours):
            raise UndecodableImage(
                "only its alpha channel differs from pixel to pixel: save the mask as a grey image, 0 where nothing is"
            )
        hidden = mask.getchannel("A").point(lambda opacity: 255 * (opacity == 0))
        mask = mask.copy()
        mask.paste((0,) * len(mask.getbands()), mask=hidden)
    return mask.convert({"RGBA": "RGB", "LA": "L", "PA": "P"}.get(mask.mode, mask.mode))
