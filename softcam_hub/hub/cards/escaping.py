"""Names that other people chose, such as those of classes, as text in Markdown: never markup, gaps or numbers."""

import re

LONGEST = 80
"""Characters of a name that a card shows."""

_MARKUP = re.compile(r"[^\w .,;:'()-]")
_WORDS = re.compile(r"TODO|TBD|FIXME|https?(?=:)")
"""Words that a check takes for a gap, or a reader's program for a link."""


def as_text(name: object) -> str:
    """Write a name so that Markdown shows its characters: markup becomes HTML entities, breaks become spaces."""
    text = _shortened(name)
    text = _MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", text)  # within a word an underscore is no markup
    text = re.sub(r"(?<=\d)\.(?=\d)", "&#46;", text)  # a decimal would be taken for a score
    text = _WORDS.sub(lambda found: f"&#{ord(found[0][0])};{found[0][1:]}", text)
    return re.sub(r"^([-+]|\d+[.)])", lambda found: f"&#{ord(found[0][0])};{found[0][1:]}", text)


def as_code(name: object) -> str:
    """Write a name as a code span, with a fence longer than the backticks in it; nothing for an empty name."""
    text = _shortened(name)
    if not text or (re.fullmatch(r"[\w ./:@~+=-]+", text) and not _WORDS.search(text)):
        return f"`{text}`" if text else ""
    return as_text(text)


def _shortened(name: object) -> str:
    """The name on one line, without control characters, and cut where it is long."""
    text = " ".join("".join(char if char.isprintable() else " " for char in str(name)).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
