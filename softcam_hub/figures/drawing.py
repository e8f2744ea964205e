"""Draw one map: colour scales, overlays, outlines, and numbers in the cells of a map.

Both colour scales keep their order in grey print and for colour-blind readers. The sequential scale goes from
black over violet and orange to pale yellow. The diverging scale, for signed maps, goes from blue over white
to orange and has the same length on both sides of zero.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from .numbers import DOT
from .text import Font, font

Colour = tuple[int, int, int]

SEQUENTIAL = ((0, 0, 0), (70, 15, 110), (170, 45, 100), (235, 110, 40), (250, 190, 60), (255, 255, 200))
DIVERGING = ((5, 60, 130), (90, 150, 210), (250, 250, 250), (240, 150, 60), (150, 60, 0))
LARGEST_TEXT, SMALLEST_TEXT = 16, 9
"""Sizes of numbers in cells, in pixels. A dot stands for a number that does not fit in the smallest."""


@dataclass(frozen=True)
class Scale:
    """Colours for values from 0 to `high`, or from -`high` to `high` if the scale is diverging.

    Args:
        high: Upper limit. A scale with limit 0 shows every value as zero.
        diverging: Show values below zero in blue and values above zero in orange.
        percent: Write labels as percentages, for values that are probabilities.
    """

    high: float
    diverging: bool = False
    percent: bool = False

    @classmethod
    def of(cls, values: Tensor, diverging: bool = False, percent: bool = False) -> "Scale":
        """Return the shortest scale that holds all values, or their positive part if it is not diverging."""
        return cls(float((values.abs() if diverging else values.relu()).max()), diverging, percent)

    @property
    def colours(self) -> tuple[Colour, ...]:
        return DIVERGING if self.diverging else SEQUENTIAL

    def strengths(self, values: Tensor) -> np.ndarray:
        """Express values as fractions of `high`, clamped to [-1, 1] or to [0, 1]."""
        fractions = values.double() / self.high if self.high > 0 else torch.zeros_like(values)
        return fractions.clamp(-1 if self.diverging else 0, 1).cpu().numpy()

    def paint(self, strengths: np.ndarray) -> np.ndarray:
        """Convert fractions (H, W) of `high` to colours (H, W, 3)."""
        return apply_colours(strengths / 2 + 0.5 if self.diverging else strengths, self.colours)

    def labels(self) -> list[str]:
        """Write the lower limit, the middle and the upper limit, for a colour bar."""
        low = -self.high if self.diverging and self.high else 0.0
        values = (low, (low + self.high) / 2, self.high)
        factor, unit = (100, "%") if self.percent else (1, "")
        return [f"{factor * value:{'+' if self.diverging and value else ''}.3g}{unit}" for value in values]


def apply_colours(values: np.ndarray, scale: tuple[Colour, ...] = SEQUENTIAL) -> np.ndarray:
    """Convert values (H, W) in [0, 1] to colours (H, W, 3) from 0 to 255."""
    stops = np.linspace(0, 1, len(scale))
    channels = [np.interp(values, stops, levels) for levels in zip(*scale, strict=True)]
    return np.stack(channels, axis=-1)


def denormalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Turn a normalised image back into a picture of what the model saw, resized and cropped.

    Args:
        image: Normalised image (C, H, W).
        mean: Mean of each channel that was subtracted.
        std: Standard deviation of each channel that was divided by.
    """
    scale, shift = torch.tensor(std)[:, None, None], torch.tensor(mean)[:, None, None]
    pixels = (image.float().cpu() * scale + shift).clamp(0, 1).expand(3, -1, -1)
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())


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


def spread(values: Tensor, image: Image.Image, smooth: bool = True) -> Tensor:
    """Resize a map (H, W) to the pixels of an image.

    Args:
        values: Map (H, W) of any resolution.
        image: Image of the wanted size.
        smooth: Interpolate bilinearly; otherwise every cell becomes one block.
    """
    values = values.detach().cpu().float()[None, None]
    return F.interpolate(values, size=image.size[::-1], mode="bilinear" if smooth else "nearest")[0, 0]


def overlay(image: Image.Image, heatmap: Tensor, opacity: float = 0.75) -> Image.Image:
    """Draw a heat map over its image in grey; the hotter a pixel, the more opaque.

    Args:
        image: Image of H×W pixels.
        heatmap: Heat map (H, W) with values in [0, 1].
        opacity: Opacity of the hottest pixels.
    """
    return tint(image, heatmap, Scale(1.0), opacity)


def tint(image: Image.Image, values: Tensor, scale: Scale, opacity: float = 0.75) -> Image.Image:
    """Colour an image in grey by a map; the farther a value is from zero, the more opaque.

    Under a diverging scale the grey is pale, so that zero looks the same everywhere and both colours stand
    out.

    Args:
        image: Image of H×W pixels.
        values: Map (H, W).
        scale: Colours of the values.
        opacity: Opacity at the limits of the scale.
    """
    strengths = scale.strengths(values)
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=float)
    grey = 150 + grey * 105 / 255 if scale.diverging else grey
    weight = opacity * np.sqrt(np.abs(strengths))[..., None]
    return Image.fromarray(((1 - weight) * grey + weight * scale.paint(strengths)).astype(np.uint8))


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
