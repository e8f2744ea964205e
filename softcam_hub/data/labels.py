"""Read label columns of any type as class indices (N,) or multi-hot labels (N, C).

- Class names come from the features (`ClassLabel`) if they declare names, else from the training split: its
  label strings, sorted. Integer labels without names are called "0", "1", ….
- Several labels per image are multi-hot lists, lists of names, or in a manifest names joined by ";". A column
  of strings holds several labels per image if it is called `labels` or if one of its cells holds a ";". An
  empty cell is then an image without any label.
- Lists of `ClassLabel` hold class indices, as the type says, and become multi-hot.
"""

import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.types as types

from ..models.text import abbreviate

if TYPE_CHECKING:
    from datasets import Dataset

MULTI_LABEL_COLUMN = "labels"
"""Column to read where the default label column is absent. It holds several labels per image in a manifest."""


MAX_CLASSES = 100_000
"""Largest number of classes without names. A larger number is an identifier rather than a class."""


class Labels(NamedTuple):
    """Labels of all splits.

    Args:
        values: Split -> class indices (N,) or multi-hot labels (N, C).
        classes: Class names in the order of their indices.
        multi_label: Whether an image may have several classes, or none.
    """

    values: dict[str, np.ndarray]
    classes: list[str]
    multi_label: bool


def read_labels(splits: "dict[str, Dataset]", column: str, classes: list[str] | None = None) -> Labels:
    """Read and check the labels of all splits without decoding any image.

    Args:
        splits: Split -> table, the training split first. All of them have the column.
        column: Column of labels.
        classes: Class names, where the features do not declare them.
    """
    if not classes:
        classes = same_classes({name: declared_classes(table.features[column]) for name, table in splits.items()})
    cells = {}
    for name, table in splits.items():
        cells[name] = table.select_columns([column]).with_format("arrow")[:].column(0)
    cells = _split_at_semicolons(cells, column)
    values = {}
    for name, table in splits.items():
        values[name], classes = read_cells(cells[name], table.features[column], classes, name)
    _refuse_twins(classes or [])
    return Labels(values, classes or [], next(iter(values.values())).ndim == 2)


def _refuse_twins(classes: list[str]) -> None:
    """Refuse names that look alike, because they differ only in spaces at their ends or in their Unicode form."""
    first: dict[str, str] = {}
    for name in classes:
        other = first.setdefault(unicodedata.normalize("NFC", name).strip(), name)
        if other != name:
            raise ValueError(
                f"the classes {other!a} and {name!a} look alike: they differ only in spaces, or in how "
                "Unicode writes them. Give them one name"
            )


def read_cells(
    cells: pa.ChunkedArray, feature: Any, classes: list[str] | None, split: str
) -> tuple[np.ndarray, list[str]]:
    """Read the labels of one split as (N,) or (N, C), and return them with the class names.

    Args:
        cells: Cells of the label column.
        feature: Type of the column in `datasets`.
        classes: Class names, or None to derive them from the labels.
        split: Name of the split in messages.
    """
    if cells.null_count:
        row = cells.is_null().to_pylist().index(True)
        raise ValueError(f"row {row} of split {split!r} has no label: fill it in, or remove the row")
    if not _is_list(cells.type):
        return _read_indices(cells, classes, split)
    holds_indices = declared_classes(getattr(feature, "feature", None)) is not None
    return _read_multi_hot(cells, classes, split, holds_indices)


def declared_classes(feature: Any) -> list[str] | None:
    """Return the class names that a `ClassLabel`, or a list of it, declares."""
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return list(names) if names else None


def same_classes(declared: dict[str, list[str] | None]) -> list[str] | None:
    """Return the class names that all splits declare, or raise ValueError if they differ."""
    (train, names), *others = declared.items()
    for split, other_names in others:
        if other_names != names:
            raise ValueError(f"split {split!r} declares the classes {other_names}, but split {train!r} {names}")
    return names


def _split_at_semicolons(cells: dict[str, pa.ChunkedArray], column: str) -> dict[str, pa.ChunkedArray]:
    """Turn strings "a;b" into lists of names, if the column holds several labels per image."""
    if not all(_is_string(array.type) for array in cells.values()):
        return cells
    texts = {split: array.to_pylist() for split, array in cells.items()}
    if column != MULTI_LABEL_COLUMN and not any(";" in (text or "") for part in texts.values() for text in part):
        return cells
    lists = {split: [_names_in(text) for text in part] for split, part in texts.items()}
    return {split: pa.chunked_array([part], pa.list_(pa.string())) for split, part in lists.items()}


def _names_in(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(";") if name.strip()]


def _read_indices(cells: pa.ChunkedArray, classes: list[str] | None, split: str) -> tuple[np.ndarray, list[str]]:
    """Read one class per image, and return the indices (N,) with the class names."""
    if _is_string(cells.type):
        names = cells.to_pylist()
        classes = classes or sorted(set(names))
        return _look_up(names, classes, split), classes
    if not (types.is_integer(cells.type) or types.is_boolean(cells.type)):
        raise ValueError(
            f"labels of split {split!r} are of type {cells.type}: expected class names, whole numbers from 0, "
            "or, for several labels per image, lists of names or of 0 and 1"
        )
    values = cells.to_pylist()
    if not classes and max(values) >= MAX_CLASSES:
        raise ValueError(
            f"label {max(values)} in row {values.index(max(values))} of split {split!r} is too large: whole numbers "
            f"number the classes from 0, and a model has at most {MAX_CLASSES} classes. Expected class names, or "
            "another column of labels"
        )
    indices = np.asarray(values, dtype=np.int64)
    _check_range(indices, np.arange(len(indices)), len(classes) if classes else None, split)
    return indices, classes or [str(index) for index in range(int(indices.max()) + 1)]


def _check_range(indices: np.ndarray, rows: np.ndarray, count: int | None, split: str) -> None:
    """Refuse a class index below 0, or beyond the `count` classes."""
    wrong = (indices < 0) if count is None else (indices < 0) | (indices >= count)
    if wrong.any():
        first = int(wrong.argmax())
        expected = "0 or more" if count is None else f"0 to {count - 1}, the classes of the training split"
        raise ValueError(
            f"label {indices[first]} in row {rows[first]} of split {split!r} is out of range: expected {expected}. "
            "Correct it, or leave a split without labels out (test_split='')"
        )


def _look_up(names: list[str], classes: list[str], split: str) -> np.ndarray:
    """Return the class index of every name, or raise ValueError for names that are not among the classes."""
    index_of = {name: index for index, name in enumerate(classes)}
    unknown = sorted(set(names) - set(index_of))
    if unknown:
        raise ValueError(
            f"split {split!r} has classes that the training split does not have: {abbreviate(unknown)}. "
            f"Expected some of {abbreviate(classes)}"
        )
    return np.asarray([index_of[name] for name in names], dtype=np.int64)


def _read_multi_hot(
    cells: pa.ChunkedArray, classes: list[str] | None, split: str, holds_indices: bool
) -> tuple[np.ndarray, list[str]]:
    """Read several classes per image, and return the multi-hot labels (N, C) with the class names.

    Args:
        cells: Lists of names, of class indices, or of 0 and 1.
        classes: Class names, or None to derive them from the labels.
        split: Name of the split in messages.
        holds_indices: Whether the lists hold class indices rather than 0 and 1.
    """
    lists = cells.to_pylist()
    if holds_indices or _is_string(cells.type.value_type):
        values = [value for labels in lists for value in labels]
        rows = np.repeat(np.arange(len(lists)), [len(labels) for labels in lists])
        if holds_indices:
            indices = np.asarray(values, dtype=np.int64)
            _check_range(indices, rows, len(classes), split)
        else:
            classes = classes or sorted(set(values))
            indices = _look_up(values, classes, split)
        multi_hot = np.zeros((len(lists), len(classes)), dtype=np.int64)
        multi_hot[rows, indices] = 1
        return multi_hot, classes
    width = len(classes) if classes else len(lists[0])
    for row, labels in enumerate(lists):
        if len(labels) != width or not set(labels) <= {0, 1}:
            raise ValueError(
                f"labels {labels} in row {row} of split {split!r} are not multi-hot: expected {width} times 0 or 1"
            )
    return np.asarray(lists, dtype=np.int64), classes or [str(index) for index in range(width)]


def _is_string(dtype: pa.DataType) -> bool:
    return types.is_string(dtype) or types.is_large_string(dtype)


def _is_list(dtype: pa.DataType) -> bool:
    return types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype)
