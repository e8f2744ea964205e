r"""Names of files as people and JSON readers can take them.

A file name may hold anything but "/" and a null byte: bytes that are not UTF-8, line breaks, escape sequences that move
the cursor of a terminal. Messages and results show such characters as `\x1b`, `\n` or `\u202e`.
"""

from collections.abc import Callable


def printable(name: object) -> str:
    """Return a name on one line of printable characters, for messages."""
    return _escape(str(name), str.isprintable)


def as_unicode(name: object) -> str:
    """Return a name as text that UTF-8 can encode: only bytes that are not UTF-8 are escaped."""
    return _escape(str(name), lambda character: not "\ud800" <= character <= "\udfff")


def _escape(text: str, is_kept: Callable[[str], bool]) -> str:
    return "".join(character if is_kept(character) else _code(character) for character in text)


def _code(character: str) -> str:
    # Python decodes a byte that is not UTF-8 as a lone surrogate, U+DC80 to U+DCFF (PEP 383)
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
