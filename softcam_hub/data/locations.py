"""Where the images of a data set lie: embedded in its rows, in local files, or at addresses such as URLs.

- A table that somebody else wrote must not make this machine read from the network. An address is read only
  if it begins with one of `Locations.addresses`.
- `check_image_paths` looks for all files before anything is trained. It does not read embedded images, whose
  bytes may be a hundred gigabytes.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow.compute as pc
from PIL import Image

from ..models.downloads import download
from ..models.images import UndecodableImage, decode, name_image, open_local, to_rgb, unreadable
from ..models.text import printable
from .columns import Columns, disable_decoding

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ANY_ADDRESS = ("",)
"""Value of `Locations.addresses` that allows every address."""

ARCHIVES = ("zip://", "tar://", "gzip://", "bz2://", "xz://", "zstd://", "lz4://")
"""Schemes of an fsspec chain that only unpack the content of the next part of the chain."""

ADVICE = "Repair or remove it, or leave such images out with unreadable='skip'"
"""Advice in every message on an unreadable image of a data set."""


@dataclass(frozen=True)
class Locations:
    """Places from which the images of a data set may be read.

    Args:
        root: Folder that relative paths start from.
        addresses: Beginnings of the addresses that may be read: none by default, "" for all.
    """

    root: Path = Path()
    addresses: tuple[str, ...] = ()

    def open(self, source: Any, name: str) -> BinaryIO:
        """Open an image for reading.

        Args:
            source: Path, address, bytes, or a dictionary of "path" and "bytes".
            name: Name of the image in messages.
        """
        content, path = embedded_bytes(source), path_of(source)
        if content is not None:
            return io.BytesIO(content)
        if not path:
            raise UndecodableImage("there is neither a path nor an embedded image")
        if is_address(path):
            self.check_address(path, name)
            return io.BytesIO(download(path, name))
        return open_local(self.root / path)

    def decode(self, source: Any, name: str) -> Image.Image:
        """Decode an image, upright and in its own mode."""
        with self.open(source, name) as file:
            return decode(file)

    def read_image(self, source: Any, name: str) -> Image.Image:
        """Read an image as upright RGB, or raise `UnreadableImage`."""
        with name_image(name, ADVICE):
            return to_rgb(self.decode(source, name))

    def check_address(self, path: str, name: str) -> None:
        """Raise ValueError for an address that may not be read."""
        # In a chain such as zip://image.png::https://host/images.zip the last part says where the content comes
        # from, if all parts before it are archives. But http://host/image.png::hf://file reads from the host.
        *containers, origin = path.split("::")
        allowed = (*ARCHIVES, *self.addresses)
        if not origin.startswith(self.addresses) or not all(part.startswith(allowed) for part in containers):
            raise ValueError(
                f"{name} is not a local file: expected paths of local files. Download {printable(path)}, or allow "
                "addresses with remote_images=True (--remote-images)"
            )

    def has_file(self, path: str) -> bool:
        """Tell whether there is a local file at a path."""
        return os.path.isfile(self.root / path)  # unlike Path.is_file, False for a name that is too long


def is_address(path: str) -> bool:
    """Tell whether a path is a URL or an fsspec chain rather than the name of a local file."""
    return "://" in path


def embedded_bytes(source: Any) -> bytes | None:
    """Return the content of an image that is embedded in its row, or None."""
    if isinstance(source, dict):
        source = source.get("bytes")
    return source if isinstance(source, bytes) else None


def path_of(source: Any) -> str | None:
    """Return the path or address of an image, or None."""
    if isinstance(source, dict):
        source = source.get("path")
    return source if isinstance(source, str) else None


def embed_remote_images(stream: "IterableDataset", columns: Columns, locations: Locations) -> Iterator[dict[str, Any]]:
    """Yield the rows of an undecoded stream, with images at addresses replaced by their content."""
    for position, row in enumerate(stream):
        content = {}
        for column in columns.images:
            path = path_of(row[column])
            if embedded_bytes(row[column]) is None and path and is_address(path):
                with locations.open(row[column], f"position {position} ({printable(path)})") as file:
                    content[column] = {"bytes": file.read(), "path": None}
        yield row | content


def check_image_paths(
    data: "Dataset", columns: Columns, split: str, locations: Locations, skip_missing: bool = False
) -> None:
    """Refuse paths of images and masks that lead to no local file, and addresses that may not be read.

    Args:
        data: Table of one split.
        columns: Columns of `data`.
        split: Name of the split in messages.
        locations: Places that the paths in `data` lead to.
        skip_missing: Accept missing files, because unreadable images are left out later.
    """
    data = disable_decoding(data, columns)
    for column in columns.images:
        owner, paths = "row", _paths_of_column(data, column, split)
        if column == columns.mask:
            # An image may lack a mask.
            owner, paths = "the mask of row", {row: path for row, path in paths.items() if path is not None}
        for row, path in paths.items():
            if path and is_address(path):
                locations.check_address(path, f"{owner} {row} of split {split!r} ({printable(path)})")
        if not skip_missing:
            _check_missing(paths, locations, owner, split)


def _paths_of_column(data: "Dataset", column: str, split: str) -> dict[int, str | None]:
    """Return row -> path of the images that are not embedded, None for a row without a path."""
    table = data.select_columns([column]).flatten()
    path_column, bytes_column = f"{column}.path", f"{column}.bytes"  # parts of a struct
    if column in table.column_names:
        dtype = getattr(table.features[column], "dtype", None)
        path_column = column if dtype in ("string", "large_string") else ""
        bytes_column = column if dtype in ("binary", "large_binary") else ""
        if not path_column and not bytes_column and table.data.column(column).null_count < len(table):
            raise ValueError(
                f"column {column!r} of split {split!r} is of type {dtype or table.features[column]}: expected paths or "
                "images"
            )
    rows = _rows_without_bytes(table, bytes_column)
    if not rows or path_column not in table.column_names:
        return dict.fromkeys(rows)
    paths = table[path_column][:]
    return {row: paths[row] for row in rows}


def _rows_without_bytes(table: "Dataset", column: str) -> list[int]:
    """Return the rows whose images are not embedded: all rows if there is no column of bytes."""
    if column not in table.column_names:
        return list(range(len(table)))
    if not table.data.column(column).null_count:  # known without reading any image
        return []
    batches = table.select_columns([column]).with_format("arrow").iter(batch_size=1000)
    is_missing = [missing for batch in batches for missing in pc.is_null(batch.column(0)).to_pylist()]
    return [row for row, missing in enumerate(is_missing) if missing]


def _check_missing(paths: dict[int, str | None], locations: Locations, owner: str, split: str) -> None:
    """Raise `UnreadableImage` for the first row without a path, or with the path of a missing file."""

    def is_missing(path: str | None) -> bool:
        return not path or (not is_address(path) and not locations.has_file(path))

    with ThreadPool() as pool:
        missing_flags = pool.map(is_missing, paths.values(), chunksize=64)
    missing = [row for row, is_gone in zip(paths, missing_flags, strict=True) if is_gone]
    if missing:
        row, path = missing[0], paths[missing[0]]
        name = f"{owner} {row} of split {split!r}" + (f" ({printable(path)})" if path else "")
        reason = f"there is no file {printable(locations.root / path)}" if path else "it has no path"
        more = f" (and {len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        raise unreadable(name, reason + more, ADVICE)
