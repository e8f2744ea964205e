"""Draw into pictures: outlines of masks, and frames and numbers in the cells of a map."""

from collections.abc import Iterator

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..models.alignment import Grid
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


def write_numbers(image: Image.Image, texts: list[list[str]], grid: Grid, frame: int = 0) -> Image.Image:
    """Write a text into the middle of each cell of a grid: black on light cells, white on dark ones.

    Args:
        image: Image of any size.
        texts: Text of each cell. A dot stands for `DOT`, and for a text that is too long for its cell.
        grid: Places of the cells in the image.
        frame: Pixels at the border of each cell to leave free.
    """
    image = image.convert("RGB")
    pen, brightness = ImageDraw.Draw(image), np.asarray(image.convert("L"))
    # Neighbouring numbers need a little distance to be read apart.
    room = 0.94 * image.width / len(texts[0]) - 2 * frame, 0.85 * image.height / len(texts) - 2 * frame
    letters = _fitting({text for line in texts for text in line}, *room)
    for row, column, (left, top, right, bottom) in cells(image, grid):
        text = texts[row][column]
        x, y = (left + right) / 2, (top + bottom) / 2
        ink = "black" if brightness[top:bottom, left:right].mean() > 120 else "white"
        if grid.is_aligned:  # the image cuts cells at its border
            room = 0.94 * (right - left) - 2 * frame, 0.85 * (bottom - top) - 2 * frame
        if text and text != DOT and _fits(text, letters, *room):
            pen.text((x, y), text, fill=ink, font=letters, anchor="mm")
        elif text:
            pen.ellipse((x - 1, y - 1, x + 1, y + 1), fill=ink)
    return image


def frame_cells(image: Image.Image, chosen: Tensor, grid: Grid, colour: Colour, width: int) -> Image.Image:
    """Draw a frame just inside of each chosen cell, and a thin white one within it.

    Args:
        image: Image of any size.
        chosen: Mask (H, W) of the cells to frame.
        grid: Places of the cells in the image.
        colour: Colour of the frame.
        width: Width of the frame's line in pixels.
    """
    image = image.convert("RGB")
    pen = ImageDraw.Draw(image)
    for row, column, (left, top, right, bottom) in cells(image, grid):
        if chosen[row, column]:
            box = left, top, max(left, right - 1), max(top, bottom - 1)
            pen.rectangle(box, outline="white", width=width + 1)
            pen.rectangle(box, outline=colour, width=width)
    return image


def cells(image: Image.Image, grid: Grid) -> Iterator[tuple[int, int, tuple[int, int, int, int]]]:
    """Yield row, column and box (left, top, right, bottom) in pixels of every cell of a grid over an image.

    A box holds the pixels that are nearer to its cell than to any other. It has at least one pixel, also where the
    grid has more cells than the image has pixels.
    """
    ys, xs = (_edges(grid, axis, image.size[1 - axis]) for axis in (0, 1))
    for row in range(grid.cells[0]):
        for column in range(grid.cells[1]):
            left, top = int(min(xs[column], image.width - 1)), int(min(ys[row], image.height - 1))
            yield row, column, (left, top, max(left + 1, int(xs[column + 1])), max(top + 1, int(ys[row + 1])))


def _edges(grid: Grid, axis: int, pixels: int) -> np.ndarray:
    """Return the borders between the cells along an axis in whole pixels, (n + 1,)."""
    if not grid.is_aligned:
        return np.linspace(0, pixels, grid.cells[axis] + 1).round().astype(int)
    return (grid.edges(axis).numpy() * (pixels / grid.image_size[axis])).round().astype(int)


def _fitting(texts: set[str], width: float, height: float) -> Font:
    """Return the largest font in which every text fits, or the smallest that can be read."""
    for size in range(LARGEST_TEXT, SMALLEST_TEXT - 1, -1):
        letters = font(size)
        if all(_fits(text, letters, width, height) for text in texts):
            break
    return letters


def _fits(text: str, letters: Font, width: float, height: float) -> bool:
    return letters.size <= height and letters.getlength(text) <= width
