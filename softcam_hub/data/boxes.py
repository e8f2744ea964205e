"""Ground truth as boxes [[x0, y0, x1, y1], ...] in pixels of the upright image, or as JSON of them."""

import json
from typing import Any

import numpy as np


def read_boxes(boxes: Any, name: str) -> list[list[float]]:
    """Checked as far as they can be without the image, which `name` stands for in messages."""
    try:
        corners = np.asarray(json.loads(boxes) if isinstance(boxes, str) else boxes, dtype=np.float64).reshape(-1, 4)
    except (ValueError, TypeError) as error:
        raise ValueError(f"boxes of {name} are {boxes!r}: expected [[x0, y0, x1, y1], ...] in pixels") from error
    for x0, y0, x1, y1 in corners:
        if not (0 <= x0 < x1 and 0 <= y0 < y1):
            raise ValueError(
                f"box [{x0:g}, {y0:g}, {x1:g}, {y1:g}] of {name} is none: expected [x0, y0, x1, y1] in pixels, with "
                "0 <= x0 < x1 and 0 <= y0 < y1"
            )
    return corners.tolist()


def draw_boxes(boxes: Any, size: tuple[int, int], name: str) -> np.ndarray:
    """(H, W) booleans: every pixel of an image of `size` (width, height) that one of the boxes touches."""
    width, height = size
    inside = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in read_boxes(boxes, name):
        if x1 > width or y1 > height:
            raise ValueError(
                f"box [{x0:g}, {y0:g}, {x1:g}, {y1:g}] of {name} does not fit its image: expected x1 up to {width} and "
                f"y1 up to {height}"
            )
        inside[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))] = True
    return inside
