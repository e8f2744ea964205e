"""Draw into pictures: outlines of masks, and frames and numbers in the cells of a map."""

from collections.abc import Iterator

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..models.overlays import Colour
from .numbers import DOT
from .text import Font, font

LARGEST_TEXT, SMALLEST_TEXT = 16, 9
"""Sizes of numbers in cells, in pixels. A dot stands for a number that does not fit in the smallest."""


def enlarge(image: Image.Image, side: int) -> Image.Image:
    """Resize an image to a height of `side` pixels, in its own proportions."""
    width = max(1, round(image.width * side / image.height))
    return image.convert("RGB").resize((width, side), Image.Resampling.BICUBIC)


def outline(image: Image.Image, mask: Tensor, colour: Colour = (0, 220, 255), width: int = 1) -> Image.Image:
    """Draw the border of a mask just outside of the mask.

    Args:
        image: Image of any size.
        mask: Mask (H, W) in the proportions of the image, spread over it. A box is a filled rectangle.
        colour: Colour of the border.
        width: Width of the border in pixels.
    """
    inside = F.interpolate(mask.bool().cpu().float()[None, None], size=image.size[::-1])[0]
    grown = F.max_pool2d(inside, 2 * width + 1, stride=1, padding=width)[0] > 0
    pixels = np.array(image.convert("RGB"))
    pixels[(grown & (inside[0] == 0)).numpy()] = colour
    return Image.fromarray(pixels)


def write_numbers(image: Image.Image, texts: list[list[str]], frame: int = 0) -> Image.Image:
    """Write a text into the middle of each cell of a grid: black on light cells, white on dark ones.

    Args:
        image: Image of any size.
        texts: Text of each cell. A dot stands for `DOT`, and for a text that is too long for its cell.
        frame: Pixels at the border of each cell to leave free.
    """
    image = image.convert("RGB")
    pen, brightness = ImageDraw.Draw(image), np.asarray(image.convert("L"))
    # Neighbouring numbers need a little distance to be read apart.
    room = 0.94 * image.width / len(texts[0]) - 2 * frame, 0.85 * image.height / len(texts) - 2 * frame
    letters = _fitting({text for line in texts for text in line}, *room)
    for row, column, (left, top, right, bottom) in cells(image, len(texts), len(texts[0])):
        text = texts[row][column]
        x, y = (left + right) / 2, (top + bottom) / 2
        ink = "black" if brightness[top:bottom, left:right].mean() > 120 else "white"
        if text and text != DOT and _fits(text, letters, *room):
            pen.text((x, y), text, fill=ink, font=letters, anchor="mm")
        elif text:
            pen.ellipse((x - 1, y - 1, x + 1, y + 1), fill=ink)
    return image


def frame_cells(image: Image.Image, chosen: Tensor, colour: Colour, width: int) -> Image.Image:
    """Draw a frame just inside of each chosen cell, and a thin white one within it.

    Args:
        image: Image of any size.
        chosen: Mask (H, W) of the cells to frame.
        colour: Colour of the frame.
        width: Width of the frame's line in pixels.
    """
    image = image.convert("RGB")
    pen = ImageDraw.Draw(image)
    for row, column, (left, top, right, bottom) in cells(image, *chosen.shape):
        if chosen[row, column]:
            box = left, top, max(left, right - 1), max(top, bottom - 1)
            pen.rectangle(box, outline="white", width=width + 1)
            pen.rectangle(box, outline=colour, width=width)
    return image


def cells(image: Image.Image, rows: int, columns: int) -> Iterator[tuple[int, int, tuple[int, int, int, int]]]:
    """Yield row, column and box (left, top, right, bottom) in pixels of every cell of a grid over an image.

    Every box has at least one pixel, also where the grid has more cells than the image has pixels.
    """
    xs = np.linspace(0, image.width, columns + 1).round().astype(int)
    ys = np.linspace(0, image.height, rows + 1).round().astype(int)
    for row in range(rows):
        for column in range(columns):
            left, top = int(min(xs[column], image.width - 1)), int(min(ys[row], image.height - 1))
            yield row, column, (left, top, max(left + 1, int(xs[column + 1])), max(top + 1, int(ys[row + 1])))


def _fitting(texts: set[str], width: float, height: float) -> Font:
    """Return the largest font in which every text fits, or the smallest that can be read."""
    for size in range(LARGEST_TEXT, SMALLEST_TEXT - 1, -1):
        letters = font(size)
        if all(_fits(text, letters, width, height) for text in texts):
            break
    return letters


def _fits(text: str, letters: Font, width: float, height: float) -> bool:
    return letters.size <= height and letters.getlength(text) <= width
