"""What makes a model card invalid: gaps, blocks that do not parse, pictures that are missing, numbers without a row.

- Numbers are looked at in the bodies of tables and in the model-index, decimals and percentages in the prose as well;
  code, links and years in sentences are left alone. A number is a row's if that rounds to it.
"""

import ast
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from huggingface_hub import ModelCard

REQUIRED = ("license", "library_name", "pipeline_tag", "tags")
GAPS = ("{{", "}}", "{%", "%}", "[More Information Needed]", "TODO", "TBD", "FIXME", "None |", "nan |")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)(\s?%|\s?ms\b)?")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
UNITS = {"%": 100.0, "ms": 1000.0}
"""A number's unit -> what a row's value is multiplied by."""


def check_card(card: str, rows: list[Any] | None = None, present: set[str] | None = None) -> None:
    """Raise ValueError with the first thing that is wrong.

    Args:
        card: Markdown with metadata.
        rows: where its numbers must come from; without them numbers are not looked at.
        present: files beside the card; without them pictures are not looked at.
    """
    parsed = ModelCard(card)
    metadata, text = parsed.data.to_dict(), parsed.text
    _check_metadata(metadata)
    _check_text(text)
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        if present is not None and "://" not in target and target not in present:
            raise ValueError(f"the card shows {target}, which is not beside it: add the picture, or leave it out")
    if rows is not None:
        known = list(_numbers_of(rows))
        for number in [*_stated(text), *_indexed(metadata)]:
            if not _is_known(number, known):
                raise ValueError(f"the card says {number}, but no row has that number: render the card from its rows")


def _check_metadata(metadata: dict[str, Any]) -> None:
    for name in REQUIRED:
        if not metadata.get(name):
            raise ValueError(f"the card's metadata lacks {name}: it must begin with a YAML block that has one")
    empty = next((path for path, value in _leaves(metadata) if value in (None, "", [], {})), None)
    if empty:
        raise ValueError(f"the card's metadata leaves {empty} empty: fill it in, or leave it out")


def _check_text(text: str) -> None:
    if text.count("```") % 2:
        raise ValueError("the card opens a code block that it does not close")
    for language, code in FENCE.findall(text):
        if language == "python":
            _check_code(code)
    prose = FENCE.sub("(code)", text)
    gap = next((gap for gap in GAPS if gap in prose), None)
    if gap:
        raise ValueError(f"the card has a gap: {gap!r} stands in it")
    if re.search(r"^\|(.*\|)?[ \t]*\|", prose, flags=re.MULTILINE):
        raise ValueError("a table of the card has an empty cell")
    _check_sections(prose)


def _check_code(code: str) -> None:
    try:
        ast.parse(code)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise ValueError(f"a Python block of the card does not parse: {error.msg} in {line!r}") from error


def _check_sections(prose: str) -> None:
    """No heading is followed at once by one of its own or a higher level, or by the end."""
    parts = re.split(r"^(#+ .*)$", prose, flags=re.MULTILINE)
    headings = [*parts[1::2], "#"]
    if not parts[1::2]:
        raise ValueError("the card has no heading")
    for heading, body, following in zip(headings, parts[2::2], headings[1:], strict=False):
        if not body.strip() and _level(following) <= _level(heading):
            raise ValueError(f"the card says nothing under {heading!r}")


def _level(heading: str) -> int:
    return len(heading) - len(heading.lstrip("#"))


def _stated(text: str) -> Iterator[str]:
    """The numbers that need a row."""
    prose = re.sub(r"`[^`\n]*`|\]\([^)]*\)|https?://\S+", " ", FENCE.sub("", text))
    for line in prose.splitlines():
        in_table = line.startswith("|")
        for found in NUMBER.finditer(line):
            if in_table or found[1] or re.search(r"[.e]", found[0]):
                yield found[0].strip()


def _indexed(metadata: dict[str, Any]) -> Iterator[str]:
    for result in metadata.get("model-index") or []:
        for entry in result["results"]:
            values = (metric["value"] for metric in entry["metrics"])
            yield from (repr(value) for value in values if isinstance(value, int | float))


def _is_known(number: str, known: list[float]) -> bool:
    """Whether a row's value, in the unit of the number, rounds to it."""
    digits, unit = re.fullmatch(r"(\S*?)\s?(%|ms)?", number).groups()
    stated, scale = Decimal(digits), UNITS.get(unit, 1.0)
    half = 0.5 * 10.0 ** stated.as_tuple().exponent * (1 + 1e-9)
    return any(abs(value * scale - float(stated)) <= half + 1e-12 * abs(value) for value in known)


def _numbers_of(rows: Any) -> Iterator[float]:
    """Every number of rows, at any depth."""
    return (value for _, value in _leaves(rows) if isinstance(value, int | float) and not isinstance(value, bool))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict | list) or not value:
        yield path, value
        return
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, f"{path}.{name}" if path else str(name))
