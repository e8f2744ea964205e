"""Sort lines of values, one for each explainer and image, by explainers and by measures."""

from collections.abc import Mapping, Sequence
from typing import Any

Line = dict[str, Any]
"""The values of one image and one explainer."""

Columns = Mapping[str, Sequence[Any]]
"""Name in a line -> entries of all images, None where an image has none."""


def is_line(line: Any) -> bool:
    """Tell whether this is a mapping of an image's index, label and prediction, an explainer, and numbers or lists."""
    if not isinstance(line, dict) or type(line.get("index")) is not int or type(line.get("annotated")) is not bool:
        return False
    if not {"label", "predicted"} <= line.keys():
        return False
    texts = ("explainer", "explains")
    if not all(isinstance(line.get(name), str) for name in texts):
        return False
    numbers: list[Any] = []
    for name, value in line.items():
        if name not in texts:
            numbers += value if isinstance(value, list) else [value]
    return all(number is None or isinstance(number, int | float) for number in numbers)


def group_lines(lines: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    """Return the lines of every explainer and role, in the order of the images."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in sorted(lines, key=lambda line: line["index"]):
        groups.setdefault((line["explainer"], line["explains"]), []).append(line)
    return groups


def columns_of(lines: Sequence[Line]) -> Columns:
    """Return the entries of all images by their names."""
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: [line.get(name) for line in lines] for name in names}


def lists_of(row: Mapping[str, Any]) -> Columns:
    """Return the columns of a row that hold an entry for every image."""
    return {name: entries for name, entries in row.items() if isinstance(entries, list)}
