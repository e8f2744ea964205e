"""Images that a table lists, looked for before anything is trained: local files that are there, and nothing else.

Embedded images are not touched: their bytes may be a hundred gigabytes.
"""

from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from .locations import Locations, is_address
from .samples import Columns, disable_decoding, unreadable
from .text import printable

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = ("string", "large_string", "binary", "large_binary")
"""Types of columns that hold paths or encoded images; structs of "bytes" and "path" are the other ones."""


def check_image_paths(
    data: "Dataset", columns: Columns, split: str, locations: Locations, skips_missing: bool = False
) -> None:
    """Refuse paths of images and masks that lead to no local file, and addresses that may not be read.

    Args:
        data: Samples of one split.
        columns: Columns of `data`.
        split: Name of the split in messages.
        locations: Places that paths in `data` lead to.
        skips_missing: Say nothing of missing files, because images that cannot be read are left out later.
    """
    data = disable_decoding(data, columns)
    for column in columns.of_images():
        owner = "the mask of row" if column == columns.mask else "row"
        paths = _paths(data, column, split, optional=column == columns.mask)
        for row, path in paths.items():
            if path and is_address(path):
                locations.check_address(path, f"{owner} {row} of split {split!r} ({printable(path)})")
        if not skips_missing:
            _check_missing(paths, locations, owner, split)


def _paths(data: "Dataset", column: str, split: str, optional: bool) -> dict[int, str | None]:
    """Return row -> path of the images that are not embedded; `None` where a path is missing."""
    flat = data.select_columns([column]).flatten()
    if column in flat.column_names:
        kind = getattr(flat.features[column], "dtype", None)
        if kind in KINDS[:2]:
            paths = dict(enumerate(flat[column][:]))
        elif kind in KINDS:
            paths = _without_content(flat, column)
        elif flat.data.column(column).null_count == len(flat.data):
            paths = dict.fromkeys(range(len(flat)))
        else:
            raise ValueError(
                f"column {column!r} of split {split!r} is of type {kind or flat.features[column]}: expected paths or "
                "images"
            )
    else:
        paths = _paths_of_structs(flat, column)
    return {row: path for row, path in paths.items() if path is not None} if optional else paths


def _paths_of_structs(flat: "Dataset", column: str) -> dict[int, str | None]:
    path, content = f"{column}.path", f"{column}.bytes"
    rows = _without_content(flat, content) if content in flat.column_names else range(len(flat))
    if not rows or path not in flat.column_names:
        return dict.fromkeys(rows)
    paths = flat[path][:]
    return {row: paths[row] for row in rows}


def _without_content(flat: "Dataset", column: str) -> dict[int, None]:
    """Return the rows whose bytes are missing."""
    if not flat.data.column(column).null_count:  # known without reading any of them
        return {}
    missing, batches = [], flat.select_columns([column]).with_format("arrow").iter(batch_size=1000)
    for batch in batches:
        missing += pc.is_null(batch.column(0)).to_pylist()
    return dict.fromkeys(row for row, is_missing in enumerate(missing) if is_missing)


def _check_missing(paths: dict[int, str | None], locations: Locations, owner: str, split: str) -> None:
    def is_missing(item: tuple[int, Any]) -> bool:
        _, path = item
        return not path or (not is_address(path) and not locations.has(path))

    with ThreadPool() as pool:
        found = pool.map(is_missing, paths.items(), chunksize=64)
    missing = [row for row, is_gone in zip(paths, found, strict=True) if is_gone]
    if missing:
        row, path = missing[0], paths[missing[0]]
        more = f" (and {len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        name = f"{owner} {row} of split {split!r}" + (f" ({printable(path)})" if path else "")
        reason = f"there is no file {printable(locations.root / path)}" if path else "it has no path"
        raise unreadable(name, reason + more)
