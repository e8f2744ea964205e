"""Label columns of any kind -> class indices (N,) or multi-hot (N, C), with the same class names in all splits.

- Names come from the features (`ClassLabel`) if they have them, else from the training split: its label strings,
  sorted; integer labels without names are called "0", "1", ….
- Several labels per image are multi-hot lists, lists of names, or in a manifest names joined by ";". A column of
  strings holds several labels per image if it is called `labels` or if one of its cells holds a ";"; an empty cell
  is then an image without any label.
- Lists of `ClassLabel` hold class indices, as the type says, and become multi-hot.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds

if TYPE_CHECKING:
    from datasets import Dataset

MULTI_LABEL_COLUMN = "labels"
"""The column that is taken where the label column is absent; in a manifest, several labels per image."""


class Labels(NamedTuple):
    """Labels of all splits.

    Args:
        values: split -> (N,) class indices, or (N, C) multi-hot.
        classes: names, in the order of the indices.
        multi_label: whether an image may have several classes, or none.
    """

    values: dict[str, np.ndarray]
    classes: list[str]
    multi_label: bool


def read_labels(splits: "dict[str, Dataset]", column: str, classes: list[str] | None = None) -> Labels:
    """Checked labels of all splits, without decoding any image.

    Args:
        splits: name -> data, the training split first; `column` is in all of them.
        column: of labels.
        classes: names, where the features do not have them.
    """
    classes = classes or _same_classes({name: declared_classes(data.features[column]) for name, data in splits.items()})
    cells = {name: data.select_columns([column]).with_format("arrow")[:].column(0) for name, data in splits.items()}
    cells = _names_apart(cells, column)
    values = {}
    for split, data in splits.items():
        values[split], classes = read_cells(cells[split], data.features[column], classes, split)
    return Labels(values, classes or [], next(iter(values.values())).ndim == 2)


def read_cells(
    cells: pa.ChunkedArray, feature: Any, classes: list[str] | None, split: str
) -> tuple[np.ndarray, list[str]]:
    """Checked labels of one split, (N,) or (N, C), and the class names: `classes`, or what the labels say."""
    if cells.null_count:
        row = cells.is_null().to_pylist().index(True)
        raise ValueError(f"row {row} of split {split!r} has no label: fill it in, or remove the row")
    if _is_list(cells.type):
        of_classes = getattr(getattr(feature, "feature", None), "names", None) is not None
        return _multi_hot(cells, classes, split, of_classes)
    return _indices(cells, classes, split)


def declared_classes(feature: Any) -> list[str] | None:
    """Names that a `ClassLabel`, or a list of it, declares."""
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return list(names) if names else None


def _check_range(indices: np.ndarray, count: int | None, split: str) -> None:
    """Refuse a class index below 0, or beyond the `count` classes."""
    wrong = (indices < 0) if count is None else (indices < 0) | (indices >= count)
    if wrong.any():
        row = int(wrong.argmax())
        expected = "0 or more" if count is None else f"0 to {count - 1}, the classes of the training split"
        raise ValueError(
            f"label {indices[row]} in row {row} of split {split!r} is out of range: expected {expected}. "
            "Correct it, or leave a split without labels out (test_split='')"
        )


def _same_classes(declared: dict[str, list[str] | None]) -> list[str] | None:
    (train, names), *others = declared.items()
    for split, other in others:
        if other != names:
            raise ValueError(f"split {split!r} declares the classes {other}, but split {train!r} {names}")
    return names


def _names_apart(cells: dict[str, pa.ChunkedArray], column: str) -> dict[str, pa.ChunkedArray]:
    """Strings "a;b" as lists of names, if the column holds several labels per image."""
    if not all(_is_string(each.type) for each in cells.values()):
        return cells
    listed = {name: each.to_pylist() for name, each in cells.items()}
    if column != MULTI_LABEL_COLUMN and not any(";" in (cell or "") for each in listed.values() for cell in each):
        return cells
    kind = pa.list_(pa.string())
    return {name: pa.chunked_array([[_apart(cell) for cell in each]], kind) for name, each in listed.items()}


def _apart(cell: str | None) -> list[str]:
    return [name.strip() for name in (cell or "").split(";") if name.strip()]


def _indices(cells: pa.ChunkedArray, classes: list[str] | None, split: str) -> tuple[np.ndarray, list[str]]:
    """One class per image, and the names."""
    if _is_string(cells.type):
        names = cells.to_pylist()
        classes = classes or sorted(set(names))
        return _look_up(names, classes, split), classes
    if not (kinds.is_integer(cells.type) or kinds.is_boolean(cells.type)):
        raise ValueError(
            f"labels of split {split!r} are of type {cells.type}: expected class names, whole numbers from 0, "
            "or lists of 0 and 1 (several labels per image)"
        )
    indices = np.asarray(cells.to_pylist(), dtype=np.int64)
    _check_range(indices, len(classes) if classes else None, split)
    return indices, classes or [str(index) for index in range(int(indices.max()) + 1)]


def _look_up(names: list[str], classes: list[str], split: str) -> np.ndarray:
    index_of = {name: index for index, name in enumerate(classes)}
    unknown = sorted(set(names) - set(index_of))
    if unknown:
        raise ValueError(
            f"split {split!r} has classes that the training split does not have: {abbreviate(unknown)}. "
            f"Expected some of {abbreviate(classes)}"
        )
    return np.asarray([index_of[name] for name in names], dtype=np.int64)


def _multi_hot(
    cells: pa.ChunkedArray, classes: list[str] | None, split: str, of_classes: bool
) -> tuple[np.ndarray, list[str]]:
    """Several classes per image (N, C), and the names."""
    rows = cells.to_pylist()
    if _is_string(cells.type.value_type):
        classes = classes or sorted({name for row in rows for name in row})
        return _set_bits([_look_up(row, classes, split) for row in rows], len(classes)), classes
    if of_classes:
        for row in rows:
            _check_range(np.asarray(row, dtype=np.int64), len(classes), split)
        return _set_bits(rows, len(classes)), classes
    width = len(classes) if classes else len(rows[0])
    for number, row in enumerate(rows):
        if len(row) != width or not set(row) <= {0, 1}:
            raise ValueError(
                f"labels {row} in row {number} of split {split!r} are not multi-hot: expected {width} times 0 or 1"
            )
    return np.asarray(rows, dtype=np.int64), classes or [str(index) for index in range(width)]


def _set_bits(rows: Iterable[Iterable[int]], count: int) -> np.ndarray:
    rows = list(rows)
    hot = np.zeros((len(rows), count), dtype=np.int64)
    for bits, row in zip(hot, rows, strict=True):
        bits[list(row)] = 1
    return hot


def _is_string(kind: pa.DataType) -> bool:
    return kinds.is_string(kind) or kinds.is_large_string(kind)


def _is_list(kind: pa.DataType) -> bool:
    return kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)


def abbreviate(names: list[str], most: int = 5) -> str:
    """The first few of many names, for a message."""
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more
