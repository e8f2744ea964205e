r"""Text for messages and results: file names of any content, the first few of many names, and percentages.

A file name may hold anything but "/" and a null byte: bytes that are not UTF-8, line breaks, escape sequences
that move the cursor of a terminal. Messages and results show such characters as `\x1b`, `\n` or `\u202e`.
"""

import re
from collections.abc import Callable

_CREDENTIALS, _QUERY = re.compile(r"(?<=://)[^/\s@]*@"), re.compile(r"(https?://[^\s?]*)\?[^\s,;)]+", re.IGNORECASE)
"""User and password in an address, and its query, which may hold the token of a signed address."""


def printable(name: object) -> str:
    """Return a name as printable characters on one line, for a message; an address without passwords and tokens."""
    text = _QUERY.sub(r"\1?…", _CREDENTIALS.sub("…@", str(name)))
    return _escape(text, str.isprintable)


def as_unicode(name: object) -> str:
    """Return a name as text that UTF-8 can encode, with only the bytes that are not UTF-8 escaped."""
    return _escape(str(name), lambda character: not "\ud800" <= character <= "\udfff")


def abbreviate(names: list[str], count: int = 5) -> str:
    """List the first `count` names, and say how many there are if that is not all of them."""
    rest = f", … ({len(names)} in all)" if len(names) > count else ""
    return ", ".join(str(name) for name in names[:count]) + rest


def format_share(value: float, sign: str = "", digits: int = 1) -> str:
    """Write a fraction as a percentage for sentences; a number that would round to zero keeps one digit.

    Args:
        value: Fraction; 1 is 100%.
        sign: "+" to write a sign before positive numbers too.
        digits: Number of digits after the point.
    """
    if not value or round(abs(100 * value), digits) != 0:
        return f"{value:{sign}.{digits}%}"
    text = f"{100 * value:{sign}.1g}%"
    if "e" in text:  # few readers want to see 8e-05%
        return "<0.0001%" if value > 0 else ">-0.0001%"
    return text


def _escape(text: str, is_kept: Callable[[str], bool]) -> str:
    return "".join(character if is_kept(character) else _escape_character(character) for character in text)


def _escape_character(character: str) -> str:
    # Python decodes a byte that is not UTF-8 as a lone surrogate, U+DC80 to U+DCFF (PEP 383).
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
