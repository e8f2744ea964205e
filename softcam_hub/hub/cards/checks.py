"""Check a model card for gaps, code that does not parse, missing pictures, and numbers that no row holds.

- All numbers in tables and in the model-index are checked, but in sentences only decimals, percentages and
  milliseconds: years and counts need no row. Code, links and words with escaped characters are left alone.
- A number comes from a row if a number of the row rounds to it.
"""

import ast
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from huggingface_hub import ModelCard

REQUIRED = ("license", "library_name", "pipeline_tag", "tags")
GAP_WORDS = ("TODO", "TBD", "FIXME")
GAPS = ("{{", "}}", "{%", "%}", "[More Information Needed]", *GAP_WORDS, "None |", "nan |")
"""Signs that something was to be filled in and was not."""

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)(\s?%|\s?ms\b)?")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
CODE_SPAN = re.compile(r"`[^`\n]*`")
UNITS = {"%": 100.0, "ms": 1000.0}
"""Unit of a number -> factor from the value in a row."""


def check_card(card: str, rows: list[Any] | None = None, present: set[str] | None = None) -> None:
    """Raise a ValueError for the first mistake of a card.

    Args:
        card: Markdown with metadata.
        rows: Rows that hold the numbers of the card. Without rows, numbers are not checked.
        present: Names of the files beside the card. Without them, pictures are not checked.
    """
    parsed = ModelCard(card)
    metadata, text = parsed.data.to_dict(), parsed.text
    _check_metadata(metadata)
    _check_text(text)
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", CODE_SPAN.sub("", FENCE.sub("", text))):
        if present is not None and "://" not in target and target not in present:
            raise ValueError(f"the card shows {target}, which is not beside it: add the picture, or remove it")
    if rows is not None:
        known = list(_numbers_of(rows))
        for number in [*_stated(text), *_indexed(metadata)]:
            if not _is_known(number, known):
                raise ValueError(
                    f"the card says {number}, but no row has that number: render the card again from its rows"
                )


def _check_metadata(metadata: dict[str, Any]) -> None:
    for name in REQUIRED:
        if not metadata.get(name):
            raise ValueError(f"the metadata of the card lacks {name}: add it to the YAML block at its top")
    empty = next((path for path, value in _leaves(metadata) if value in (None, "", [], {})), None)
    if empty:
        raise ValueError(f"the metadata of the card leaves {empty} empty: fill it in, or remove it")


def _check_text(text: str) -> None:
    if len(re.findall(r"^```", text, flags=re.MULTILINE)) % 2:
        raise ValueError("the card opens a code block that it does not close: add a line with ```")
    for language, code in FENCE.findall(text):
        if language == "python":
            _check_code(code)
    prose = FENCE.sub("(code)", text)
    gap = next((gap for gap in GAPS if gap in prose), None)
    if gap:
        raise ValueError(f"the card has a gap: fill in or remove {gap!r}")
    if re.search(r"^\|(.*\|)?[ \t]*\|", prose, flags=re.MULTILINE):
        raise ValueError("a table of the card has an empty cell: fill it in, or write -")
    _check_sections(prose)


def _check_code(code: str) -> None:
    try:
        ast.parse(code)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise ValueError(f"a Python block of the card does not parse: {error.msg} in {line!r}") from error


def _check_sections(prose: str) -> None:
    """Refuse a heading that is followed at once by one of its own or a higher level, or by the end."""
    parts = re.split(r"^(#+ .*)$", prose, flags=re.MULTILINE)
    headings = [*parts[1::2], "#"]
    if not parts[1::2]:
        raise ValueError("the card has no heading: begin it with one")
    for heading, body, following in zip(headings, parts[2::2], headings[1:], strict=False):
        if not body.strip() and _level(following) <= _level(heading):
            raise ValueError(f"the card says nothing under {heading!r}: add text, or remove the heading")


def _level(heading: str) -> int:
    return len(heading) - len(heading.lstrip("#"))


def _stated(text: str) -> Iterator[str]:
    """Yield the numbers of the text that must come from a row."""
    prose = CODE_SPAN.sub(" ", FENCE.sub("", text))
    prose = re.sub(r"\]\([^)]*\)|https?://\S+|\S*&#\d+;\S*", " ", prose)
    for line in prose.splitlines():
        in_table = line.startswith("|")
        for match in NUMBER.finditer(line):
            if in_table or match[1] or re.search(r"[.e]", match[0]):
                yield match[0].strip()


def _indexed(metadata: dict[str, Any]) -> Iterator[str]:
    """Yield the numbers of the model-index."""
    for result in metadata.get("model-index") or []:
        for entry in result["results"]:
            values = (metric["value"] for metric in entry["metrics"])
            yield from (repr(value) for value in values if isinstance(value, int | float))


def _is_known(number: str, known: list[float]) -> bool:
    """Tell whether a value of a row, in the unit of the number, rounds to the number."""
    digits, unit = re.fullmatch(r"(\S*?)\s?(%|ms)?", number).groups()
    stated, scale = Decimal(digits), UNITS.get(unit, 1.0)
    half = 0.5 * 10.0 ** stated.as_tuple().exponent * (1 + 1e-9)
    return any(abs(value * scale - float(stated)) <= half + 1e-12 * abs(value) for value in known)


def _numbers_of(rows: Any) -> Iterator[float]:
    """Yield every number of the rows, at any depth."""
    for _, value in _leaves(rows):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield value


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of everything in nested dictionaries and lists; an empty one counts as a value."""
    if not isinstance(value, dict | list) or not value:
        yield path, value
        return
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, f"{path}.{name}" if path else str(name))
