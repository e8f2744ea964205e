"""One picture from one map: colours, overlays, outlines, and numbers in the cells of a map.

Both colour scales keep their order in grey and for colour-blind readers: a sequential one from black over violet and
orange to pale yellow, and a diverging one from blue over white to orange for signed maps, the same length on both sides
of zero.
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
"""Of the numbers in cells: below this size the digits of the font run together, and a dot stands for a number."""


@dataclass(frozen=True)
class Scale:
    """Which colour a value has: from 0 to `high`, or where it diverges from -`high` to `high`.

    Args:
        high: the upper limit; a scale of length 0 shows every value as zero.
        diverging: blue below zero, orange above.
        percent: the values are probabilities, and their labels percentages.
    """

    high: float
    diverging: bool = False
    percent: bool = False

    @classmethod
    def of(cls, values: Tensor, diverging: bool = False, percent: bool = False) -> "Scale":
        """The scale that just holds all values, or their positive part."""
        return cls(float((values.abs() if diverging else values.relu()).max()), diverging, percent)

    @property
    def colours(self) -> tuple[Colour, ...]:
        return DIVERGING if self.diverging else SEQUENTIAL

    def strengths(self, values: Tensor) -> np.ndarray:
        """Signed fractions of `high`, in [-1, 1] or [0, 1]."""
        fractions = values.double() / self.high if self.high > 0 else torch.zeros_like(values)
        return fractions.clamp(-1 if self.diverging else 0, 1).cpu().numpy()

    def paint(self, strengths: np.ndarray) -> np.ndarray:
        """Signed fractions (H, W) of `high` to colours (H, W, 3)."""
        return apply_colours(strengths / 2 + 0.5 if self.diverging else strengths, self.colours)

    def labels(self) -> list[str]:
        """What stands below a colour bar: its lower limit, its middle and its upper limit."""
        low = -self.high if self.diverging and self.high else 0.0
        values = (low, (low + self.high) / 2, self.high)
        factor, unit = (100, "%") if self.percent else (1, "")
        return [f"{factor * value:{'+' if self.diverging and value else ''}.3g}{unit}" for value in values]


def apply_colours(values: np.ndarray, scale: tuple[Colour, ...] = SEQUENTIAL) -> np.ndarray:
    """(H, W) values in [0, 1] to (H, W, 3) colours of 0 to 255."""
    stops = np.linspace(0, 1, len(scale))
    return np.stack([np.interp(values, stops, [stop[c] for stop in scale]) for c in range(3)], axis=-1)


def denormalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """What the model saw: the normalised image (C, H, W), resized and cropped as it was, back in colours."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pixels = (image.float().cpu() * std + mean).clamp(0, 1).expand(3, -1, -1)
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())


def enlarge(image: Image.Image, side: int) -> Image.Image:
    """The image in its own proportions, `side` pixels high."""
    return image.convert("RGB").resize(
        (max(1, round(image.width * side / image.height)), side), Image.Resampling.BICUBIC
    )


def outline(image: Image.Image, mask: Tensor, colour: Colour = (0, 220, 255), width: int = 1) -> Image.Image:
    """The image with the border of a mask, spread over the image, drawn `width` pixels wide just outside of it.

    Args:
        image: any size.
        mask: (H, W), in the image's proportions; a box is a filled rectangle.
        colour: of the border.
        width: of the border in pixels.
    """
    inside = F.interpolate(mask.bool().cpu().float()[None, None], size=image.size[::-1])[0]
    grown = F.max_pool2d(inside, 2 * width + 1, stride=1, padding=width)[0] > 0
    pixels = np.array(image.convert("RGB"))
    pixels[(grown & (inside[0] == 0)).numpy()] = colour
    return Image.fromarray(pixels)


def spread(values: Tensor, image: Image.Image, smooth: bool = True) -> Tensor:
    """A map (H, W) over the pixels of an image: bilinear, or where it is not smooth one block for each cell."""
    size, mode = image.size[::-1], {"mode": "bilinear", "align_corners": False} if smooth else {"mode": "nearest"}
    return F.interpolate(values.detach().cpu().float()[None, None], size=size, **mode)[0, 0]


def overlay(image: Image.Image, heatmap: Tensor, opacity: float = 0.75) -> Image.Image:
    """A heat map in [0, 1], (H, W) like the image, over the image in grey; the hotter, the more opaque."""
    return tint(image, heatmap, Scale(1.0), opacity)


def tint(image: Image.Image, values: Tensor, scale: Scale, opacity: float = 0.75) -> Image.Image:
    """Values (H, W) like the image, over the image in grey; the farther from zero, the more opaque.

    Under a diverging scale the grey is pale, so that zero looks the same everywhere and both colours stand out.
    """
    strengths = scale.strengths(values)
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=float)
    grey = 150 + grey * 105 / 255 if scale.diverging else grey
    weight = opacity * np.sqrt(np.abs(strengths))[..., None]
    return Image.fromarray(((1 - weight) * grey + weight * scale.paint(strengths)).astype(np.uint8))


def signed_map(values: Tensor, size: tuple[int, int]) -> Image.Image:
    """A signed map (H, W) at `size` (height, width): blue below zero, white at zero, orange above."""
    scale = Scale.of(values.float(), diverging=True)
    pixels = scale.paint(scale.strengths(values)).astype(np.uint8)
    return Image.fromarray(pixels).resize(size[::-1], Image.Resampling.NEAREST)


def write_numbers(image: Image.Image, texts: list[list[str]], frame: int = 0) -> Image.Image:
    """The image with a text in the middle of each cell of a grid: black on what is light, white on what is dark.

    Args:
        image: any size.
        texts: one for each cell; where it is `DOT`, or too long to be read within its cell, a dot stands for it.
        frame: pixels at the border of a cell that a text must leave free.
    """
    image = image.convert("RGB")
    pen, brightness = ImageDraw.Draw(image), np.asarray(image.convert("L"))
    room = 0.94 * image.width / len(texts[0]) - 2 * frame, 0.85 * image.height / len(texts) - 2 * frame
    letters = _fitting({text for line in texts for text in line}, *room)
    for row, column, (left, top, right, bottom) in cells(image, len(texts), len(texts[0])):
        text, middle = texts[row][column], ((left + right) / 2, (top + bottom) / 2)
        ink = "black" if brightness[top:bottom, left:right].mean() > 120 else "white"
        if text and text != DOT and _fits(text, letters, *room):
            pen.text(middle, text, fill=ink, font=letters, anchor="mm")
        elif text:
            pen.ellipse([value + shift for shift in (-1, 1) for value in middle], fill=ink)
    return image


def frame_cells(image: Image.Image, chosen: Tensor, colour: Colour, width: int) -> Image.Image:
    """The image with a frame just inside of each chosen cell (H, W), and a thin white one within it."""
    image = image.convert("RGB")
    pen = ImageDraw.Draw(image)
    for row, column, (left, top, right, bottom) in cells(image, *chosen.shape):
        if chosen[row, column]:
            for shade, line in (("white", width + 1), (colour, width)):
                pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=shade, width=line)
    return image


def cells(image: Image.Image, rows: int, columns: int) -> Iterator[tuple[int, int, tuple[int, int, int, int]]]:
    """Row, column and box (left, top, right, bottom) in pixels of every cell, each at least one pixel large."""
    xs, ys = (np.linspace(0, n, k + 1).round().astype(int) for n, k in zip(image.size, (columns, rows), strict=True))
    for row in range(rows):
        for column in range(columns):
            left, top = int(min(xs[column], image.width - 1)), int(min(ys[row], image.height - 1))
            yield row, column, (left, top, max(left + 1, int(xs[column + 1])), max(top + 1, int(ys[row + 1])))


def _fitting(texts: set[str], width: float, height: float) -> Font:
    """The largest font in which every text fits, or the smallest that can be read."""
    sizes = [font(size) for size in range(LARGEST_TEXT, SMALLEST_TEXT - 1, -1)]
    return next((letters for letters in sizes if all(_fits(text, letters, width, height) for text in texts)), sizes[-1])


def _fits(text: str, letters: Font, width: float, height: float) -> bool:
    return letters.size <= height and letters.getlength(text) <= width
