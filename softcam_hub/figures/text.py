"""Text in pictures: in signs that the font has, and in lines that fit.

The font that comes with Pillow knows ASCII and little more: accents are dropped from letters, and what it has no sign
for becomes a question mark.
"""

import unicodedata

from PIL import ImageFont

Font = ImageFont.FreeTypeFont

SIGNS = "·…±"
"""What the font draws beyond ASCII."""


def font(size: int) -> Font:
    """The font of all pictures."""
    return ImageFont.load_default(size=size)


def readable(text: str) -> str:
    """The text in signs that the font has."""
    text = text.replace("−", "-").replace("–", "-").replace("µ", "mu").replace("ß", "ss")
    text = "".join(sign if sign in SIGNS else unicodedata.normalize("NFKD", sign) for sign in text)
    known = (sign for sign in text if not unicodedata.combining(sign))
    return "".join(sign if sign in SIGNS or sign == "\n" or " " <= sign <= "~" else "?" for sign in known)


def shorten(text: str, width: float, font: Font) -> str:
    """One line of readable text; where it is wider than `width` pixels three dots stand for its middle.

    Names that begin alike, as those of classes often do, can then still be told apart.
    """
    text = readable(text)
    if font.getlength(text) <= width:
        return text
    cuts = (text[: (kept + 1) // 2].rstrip() + "…" + text[len(text) - kept // 2 :] for kept in range(len(text), 0, -1))
    return next((cut for cut in cuts if font.getlength(cut) <= width), "…")


def wrap(text: str, width: float, font: Font, most: int = 2) -> list[str]:
    """The lines of a text, broken at spaces to fit `width` pixels.

    Args:
        text: with line breaks where it must break.
        width: in pixels.
        font: in which it will be drawn.
        most: lines that one line of the text may become; the last of them is shortened.
    """
    lines = []
    for paragraph in readable(text).split("\n"):
        broken = [""]
        for word in paragraph.split(" "):
            longer = f"{broken[-1]} {word}".strip()
            if not broken[-1] or font.getlength(longer) <= width:
                broken[-1] = longer
            else:
                broken.append(word)
        kept = [*broken[: most - 1], " ".join(broken[most - 1 :])] if len(broken) > most else broken
        lines += [shorten(line, width, font) for line in kept]
    return lines
