"""Charts drawn with Pillow: lines for training curves and scores over k, stacked bars for shares of a whole.

The colours stay apart for colour-blind readers; every line also has a dash pattern of its own, and every part of a bar
the place that the legend gives it.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

from PIL import Image, ImageDraw

from .text import font, readable, shorten

Points = list[tuple[float, float]]

COLOURS = (
    *((0, 90, 170), (215, 95, 0), (0, 140, 100), (190, 80, 150)),
    *((90, 90, 90), (150, 120, 0), (80, 170, 220), (110, 0, 20)),
)
DASHES = ((1, 0), (10, 5), (3, 4), (12, 4), (6, 6), (16, 4), (2, 2), (9, 3))
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 40, 48


def part_colour(index: int) -> tuple[int, int, int]:
    """Colour of a bar's part: the palette, then paler, then darker, so that 24 parts differ."""
    towards, weight = ((0, 0.0), (255, 0.55), (0, 0.5))[index // len(COLOURS) % 3]
    red, green, blue = (round(value + weight * (towards - value)) for value in COLOURS[index % len(COLOURS)])
    return red, green, blue


def curves(
    panels: dict[str, dict[str, Points]], x_label: str, width: int = 560, height: int = 360, shared: bool = False
) -> Image.Image:
    """Charts beside one another, each with its lines and a legend below.

    Args:
        panels: title -> name of a line -> its points.
        x_label: below every chart.
        width: of one chart in pixels.
        height: of one chart without its legend.
        shared: all charts show one measure, on one vertical axis.
    """
    every = [y for lines in panels.values() for line in lines.values() for _, y in line if math.isfinite(y)]
    levels = ticks(every) if shared and every else None
    legend = 22 * max((len(lines) for lines in panels.values()), default=0) + 12
    sheet = Image.new("RGB", (width * max(1, len(panels)), height + legend), "white")
    for index, (title, lines) in enumerate(panels.items()):
        sheet.paste(_chart(title, lines, x_label, width, height, legend, levels), (index * width, 0))
    return sheet


def _chart(
    title: str,
    lines: dict[str, Points],
    x_label: str,
    width: int,
    height: int,
    legend: int,
    levels: list[float] | None = None,
) -> Image.Image:
    picture = Image.new("RGB", (width, height + legend), "white")
    pen, letters = ImageDraw.Draw(picture), font(14)
    pen.text((LEFT, 10), shorten(title, width - LEFT - RIGHT, font(17)), fill="black", font=font(17))
    points = [point for line in lines.values() for point in line if math.isfinite(point[1])]
    if not points:
        pen.text((LEFT, height / 2), "nothing to show", fill="black", font=letters)
        return picture
    xs, ys = ticks([x for x, _ in points]), levels or ticks([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / (xs[-1] - xs[0])
        up = (y - ys[0]) / (ys[-1] - ys[0])
        return LEFT + across * (width - LEFT - RIGHT), height - BOTTOM - up * (height - TOP - BOTTOM)

    for y in ys:
        pen.line([place(xs[0], y), place(xs[-1], y)], fill=(225, 225, 225))
        pen.text((LEFT - 8, place(xs[0], y)[1]), f"{y:g}", fill="black", font=letters, anchor="rm")
    for x in xs:
        pen.text((place(x, ys[0])[0], height - BOTTOM + 8), f"{x:g}", fill="black", font=letters, anchor="ma")
    pen.text(((LEFT + width - RIGHT) / 2, height - 20), readable(x_label), fill="black", font=letters, anchor="ma")
    for index, (name, line) in enumerate(lines.items()):
        style = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        _polyline(pen, [place(x, y) for x, y in line if math.isfinite(y)], *style)
        below = height + 12 + 22 * index
        _polyline(pen, [(LEFT, below), (LEFT + 44, below)], *style)
        shown = shorten(name, width - LEFT - 54 - RIGHT, letters)
        pen.text((LEFT + 54, below), shown, fill="black", font=letters, anchor="lm")
    return picture


def stacked_bars(title: str, bars: dict[str, dict[str, float]], width: int = 720) -> Image.Image:
    """Bars below one another, each a whole that is divided; the parts keep their order and their colours.

    Args:
        title: above the bars.
        bars: name of a bar -> name of a part -> its share; the shares of a bar are 1 together.
        width: of the chart in pixels.
    """
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    letters, small = font(14), font(12)
    left = 24 + int(min(width / 3, max((letters.getlength(readable(name)) for name in bars), default=0)))
    picture = Image.new("RGB", (width, 48 + 34 * len(bars) + 22 * len(parts) + 12), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((12, 10), shorten(title, width - 24, font(17)), fill="black", font=font(17))
    for index, (name, bar) in enumerate(bars.items()):
        top, start = 44 + 34 * index, float(left)
        pen.text((left - 8, top + 13), shorten(name, left - 20, letters), fill="black", font=letters, anchor="rm")
        for part, share in bar.items():
            end, fill = start + share * (width - left - RIGHT), part_colour(parts.index(part))
            if end - start >= 0.5:
                pen.rectangle((start, top, end - 1, top + 25), fill=fill, outline="white")
            if end - start > small.getlength(f"{share:.1%}") + 6:
                ink = "black" if sum(fill) > 3 * 150 else "white"
                pen.text(((start + end) / 2, top + 13), f"{share:.1%}", fill=ink, font=small, anchor="mm")
            start = end
    for index, part in enumerate(parts):
        top = 54 + 34 * len(bars) + 22 * index
        pen.rectangle((left, top, left + 15, top + 15), fill=part_colour(index))
        shown = shorten(part, width - left - 26 - RIGHT, letters)
        pen.text((left + 26, top + 8), shown, fill="black", font=letters, anchor="lm")
    return picture


def ticks(values: list[float], count: int = 6) -> list[float]:
    """Round numbers, evenly spaced, that enclose all values."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _polyline(pen: ImageDraw.ImageDraw, points: Points, colour: tuple[int, int, int], dash: tuple[int, int]) -> None:
    if len(points) == 1:
        (x, y) = points[0]
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    for start, end in _dashes(points, *dash):
        pen.line([start, end], fill=colour, width=2)


def _dashes(points: Points, on: int, off: int) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """Pieces of a line; the pattern goes on across its corners."""
    if not off:
        yield from pairwise(points)
        return
    phase = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        length, at = math.hypot(x1 - x0, y1 - y0), 0.0
        while at < length:
            place = phase % (on + off)
            piece = min((on if place < on else on + off) - place, length - at)
            piece = max(piece, 1e-6)
            if place < on:
                ends = (at / length, (at + piece) / length)
                yield tuple((x0 + t * (x1 - x0), y0 + t * (y1 - y0)) for t in ends)
            at, phase = at + piece, phase + piece
