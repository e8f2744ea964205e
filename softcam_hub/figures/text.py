"""Text in pictures: the font, and lines that are broken or shortened to fit a width.

The font is DejaVu Sans, which comes with matplotlib and has accents, Greek letters and most signs of Latin
scripts. Characters that it lacks, such as Chinese ones, become question marks.
"""

import unicodedata
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont


def font(size: int) -> Font:
    """Load the font of all pictures.

    Args:
        size: Height of the letters in pixels.
    """
    return ImageFont.truetype(_font_file(), size)


def readable(text: str) -> str:
    """Replace every character that the font lacks by a question mark."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(char if char == "\n" or ord(char) in _characters() else "?" for char in composed)


@cache
def _font_file() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@cache
def _characters() -> frozenset[int]:
    """Return the code points of all characters that the font can draw."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_font_file()).get_charmap())


def shorten(text: str, width: float, font: Font) -> str:
    """Return one line of text, with an ellipsis for its middle if it is wider than `width` pixels.

    Names that begin alike, as those of classes often do, can still be told apart by their ends.
    """
    text = readable(text)
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text), 0, -1):
        shorter = text[: (kept + 1) // 2].rstrip() + "…" + text[len(text) - kept // 2 :]
        if font.getlength(shorter) <= width:
            return shorter
    return "…"


def wrap(text: str, width: float, font: Font, most: int = 2) -> list[str]:
    """Break a text into lines at its spaces.

    Args:
        text: Text with line breaks at the places where it must break.
        width: Largest width of a line in pixels.
        font: Font in which the text will be drawn.
        most: Number of lines that one paragraph may become. What is left over goes into the last line,
            shortened.
    """
    lines = []
    for paragraph in readable(text).split("\n"):
        pieces = [""]
        for word in paragraph.split(" "):
            longer = f"{pieces[-1]} {word}".strip()
            if not pieces[-1] or font.getlength(longer) <= width:
                pieces[-1] = longer
            else:
                pieces.append(word)
        if len(pieces) > most:
            pieces = [*pieces[: most - 1], " ".join(pieces[most - 1 :])]
        lines += [shorten(piece, width, font) for piece in pieces]
    return lines
