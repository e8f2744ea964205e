"""Sheets of panels: captioned rows, columns, notes, legends and colour bars."""

import numpy as np
from PIL import Image, ImageDraw

from .drawing import Colour, Scale, enlarge
from .text import font, shorten, wrap

GAP = 12


def stack_vertically(rows: list[Image.Image]) -> Image.Image:
    """Pictures below one another."""
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for picture in rows:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def captioned_row(panels: list[tuple[str, Image.Image]], side: int = 256, gap: int = GAP) -> Image.Image:
    """Captioned panels beside one another, each `side` pixels high; no caption at all leaves no room for any."""
    letters = font(15)
    pictures = [enlarge(panel, side) for _, panel in panels]
    captions = [wrap(caption, picture.width, letters) for (caption, _), picture in zip(panels, pictures, strict=True)]
    lines = max(map(len, captions)) if any(caption for caption, _ in panels) else 0
    bar = 20 * lines + 8 if lines else 0
    sheet = Image.new("RGB", (sum(p.width + gap for p in pictures) + gap, side + bar + 2 * gap), "white")
    draw, left = ImageDraw.Draw(sheet), gap
    for caption, picture in zip(captions, pictures, strict=True):
        draw.multiline_text((left, gap), "\n".join(caption), fill="black", font=letters, spacing=4)
        sheet.paste(picture, (left, bar + gap))
        left += picture.width + gap
    return sheet


def note(text: str, width: int) -> Image.Image:
    """A paragraph, `width` pixels wide."""
    letters = font(14)
    lines = wrap(text, width - 2 * GAP, letters, most=12)
    sheet = Image.new("RGB", (width, 19 * len(lines) + GAP), "white")
    ImageDraw.Draw(sheet).multiline_text((GAP, 2), "\n".join(lines), fill="black", font=letters, spacing=5)
    return sheet


def legend(title: str, entries: list[tuple[str, Colour | None, int]], width: int) -> Image.Image:
    """A line of frames and what they mean, broken where it would leave the sheet.

    Args:
        title: before the first.
        entries: text, colour of its frame (none: text alone), width of the frame's line.
        width: of the sheet in pixels.
    """
    letters = font(14)
    title = shorten(title, width - 2 * GAP, letters)
    sheet = Image.new("RGB", (width, 24 * (len(entries) + 2)), "white")
    pen, left, top = ImageDraw.Draw(sheet), GAP, 2
    for text, colour, line in [(title, None, 0), *entries]:
        length = int(letters.getlength(text)) + (26 if colour else 0)
        if left > GAP and left + length > width - GAP:
            left, top = GAP, top + 24
        if colour:
            pen.rectangle((left, top + 1, left + 17, top + 18), outline=colour, width=line)
        pen.text((left + (26 if colour else 0), top + 1), text, fill="black", font=letters)
        left += length + 22
    return sheet.crop((0, 0, width, top + 24))


def colour_bar(scale: Scale, width: int, labels: list[str] | None = None, left: int = GAP) -> Image.Image:
    """The colours of a scale with its limits and its middle, from `left` on a sheet `width` pixels wide."""
    length = max(40, min(300, width - left - GAP))
    sheet = Image.new("RGB", (width, 46), "white")
    steps = np.linspace(-1 if scale.diverging else 0, 1, length)[None].repeat(16, axis=0)
    sheet.paste(Image.fromarray(scale.paint(steps).astype(np.uint8)), (left, 4))
    pen, letters = ImageDraw.Draw(sheet), font(13)
    pen.rectangle((left, 4, left + length - 1, 19), outline=(120, 120, 120))
    for place, anchor, text in zip((0, 0.5, 1), ("la", "ma", "ra"), labels or scale.labels(), strict=True):
        pen.text((left + place * (length - 1), 24), text, fill="black", font=letters, anchor=anchor)
    return sheet
