"""Put pictures, captions, notes, legends and colour bars together to one figure."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..models.overlays import Colour, Scale
from .drawing import enlarge
from .text import font, shorten, wrap

GAP = 12
"""Pixels between the parts of a figure, and around it."""

CAPTION_SIZE, NOTE_SIZE = 13, 12
"""Heights of letters in pixels: captions above pictures, and all other text."""

CAPTION_LINE, NOTE_LINE, LEGEND_LINE = 19, 18, 24
"""Heights of one line in pixels."""


def stack_vertically(pictures: list[Image.Image]) -> Image.Image:
    """Put pictures below one another, aligned at the left."""
    size = max(picture.width for picture in pictures), sum(picture.height for picture in pictures)
    sheet = Image.new("RGB", size, "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def captioned_row(
    panels: list[tuple[str, Image.Image]], side: int = 256, gap: int = GAP, letter_size: int = CAPTION_SIZE
) -> Image.Image:
    """Put pictures beside one another, each with its caption above.

    Args:
        panels: Caption and picture of each panel. Without any caption, no room is left for captions.
        side: Height of every picture in pixels.
        gap: Pixels between the panels, and around them.
        letter_size: Height of the captions' letters in pixels. Larger ones suit a picture that a page shows smaller.
    """
    letters, line_height = font(letter_size), round(letter_size * CAPTION_LINE / CAPTION_SIZE)
    pictures = [enlarge(picture, side) for _, picture in panels]
    captions = []
    for (caption, _), picture in zip(panels, pictures, strict=True):
        captions.append(wrap(caption, picture.width, letters))
    has_captions = any(caption for caption, _ in panels)
    caption_height = line_height * max(map(len, captions)) + 8 if has_captions else 0

    width = sum(picture.width + gap for picture in pictures) + gap
    sheet = Image.new("RGB", (width, side + caption_height + 2 * gap), "white")
    pen, left = ImageDraw.Draw(sheet), gap
    for caption, picture in zip(captions, pictures, strict=True):
        for number, line in enumerate(caption):
            pen.text((left, gap + number * line_height), line, fill="black", font=letters)
        sheet.paste(picture, (left, caption_height + gap))
        left += picture.width + gap
    return sheet


def note(text: str, width: int) -> Image.Image:
    """Write a paragraph on a sheet of its own, `width` pixels wide."""
    letters = font(NOTE_SIZE)
    lines = wrap(text, width - 2 * GAP, letters, most=12)
    sheet = Image.new("RGB", (width, NOTE_LINE * len(lines) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        pen.text((GAP, 2 + number * NOTE_LINE), line, fill="black", font=letters)
    return sheet


@dataclass(frozen=True)
class LegendEntry:
    """A frame and its meaning.

    Args:
        text: Meaning of the frame.
        colour: Colour of the frame; text alone without one.
        line_width: Width of the frame's line in pixels.
    """

    text: str
    colour: Colour | None = None
    line_width: int = 0


def legend(title: str, entries: list[LegendEntry], width: int) -> Image.Image:
    """Write a title and the entries of a legend behind one another, in as many lines as the width needs.

    Args:
        title: Text before the first entry.
        entries: Frames and their meanings.
        width: Width of the sheet in pixels.
    """
    letters = font(NOTE_SIZE)
    title = shorten(title, width - 2 * GAP, letters)
    sheet = Image.new("RGB", (width, LEGEND_LINE * (len(entries) + 2)), "white")
    pen, left, top = ImageDraw.Draw(sheet), GAP, 2
    for entry in [LegendEntry(title), *entries]:
        indent = 26 if entry.colour else 0
        length = int(letters.getlength(entry.text)) + indent
        if left > GAP and left + length > width - GAP:
            left, top = GAP, top + LEGEND_LINE
        if entry.colour:
            pen.rectangle((left, top, left + 17, top + 17), outline=entry.colour, width=entry.line_width)
        pen.text((left + indent, top + 1), entry.text, fill="black", font=letters)
        left += length + 22
    return sheet.crop((0, 0, width, top + LEGEND_LINE))


def colour_bar(
    scale: Scale, width: int, labels: list[str] | None = None, left: int = GAP, letter_size: int = NOTE_SIZE
) -> Image.Image:
    """Draw the colours of a scale as a horizontal bar, with labels below its ends and its middle.

    Args:
        scale: Scale to show.
        width: Width of the sheet in pixels.
        labels: Three texts; by default the limits and the middle of the scale.
        left: Pixels to leave free at the left of the bar.
        letter_size: Height of the labels' letters in pixels.
    """
    length = max(40, min(300, width - left - GAP))
    sheet = Image.new("RGB", (width, 34 + letter_size), "white")
    strengths = np.linspace(-1 if scale.diverging else 0, 1, length)
    colours = scale.paint(strengths[None].repeat(16, axis=0)).astype(np.uint8)
    sheet.paste(Image.fromarray(colours), (left, 4))
    pen, letters = ImageDraw.Draw(sheet), font(letter_size)
    pen.rectangle((left, 4, left + length - 1, 19), outline=(120, 120, 120))
    # The outer labels end with the bar, so that they stay on the sheet.
    for position, anchor, text in zip((0, 0.5, 1), ("la", "ma", "ra"), labels or scale.labels(), strict=True):
        pen.text((left + position * (length - 1), 24), text, fill="black", font=letters, anchor=anchor)
    return sheet
