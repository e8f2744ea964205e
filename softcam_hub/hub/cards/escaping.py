"""Write names that other people chose, such as those of classes, as text in Markdown."""

import re

from .checks import GAP_WORDS, NUMBER

LONGEST = 80
"""Number of characters of a name that a card shows."""

_PLAIN = re.compile(r"[\w ./:@~+=-]+")
"""Names that a code span shows as they are."""

_ESCAPED = (
    re.compile(r"[^\w .,;:'()@+/-]"),  # markup
    re.compile(r"(?<![^\W_])_|_(?![^\W_])"),  # emphasis: within a word, an underscore is no markup
    re.compile(r"^[-+]"),  # a list
    re.compile("|".join([*GAP_WORDS, r"https?(?=:)", r"www(?=\.)"])),  # gaps, and what readers show as links
    NUMBER,  # a list, or what a check takes for a score
)
"""Patterns whose first character becomes an HTML entity."""


def as_text(name: object) -> str:
    """Write a name so that Markdown shows its characters: markup becomes entities, breaks become spaces."""
    if isinstance(name, int):
        return str(name)
    text = _shorten(name)
    escaped = {match.start() for pattern in _ESCAPED for match in pattern.finditer(text)}
    return "".join(f"&#{ord(char)};" if position in escaped else char for position, char in enumerate(text))


def as_code(name: object) -> str:
    """Write a name as a code span, or as text if its characters could end a code span."""
    text = _shorten(name)
    if not text:
        return ""
    plain = _PLAIN.fullmatch(text) and not re.search("|".join(GAP_WORDS), text)
    return f"`{text}`" if plain else as_text(text)


def on_one_line(value: object) -> str:
    """Return a value as text without line breaks and control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())


def _shorten(name: object) -> str:
    text = on_one_line(name)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
