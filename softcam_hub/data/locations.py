"""Where the images of a data set lie: embedded in its rows, in local files, or at addresses (URLs).

A table that somebody else wrote must not make this machine read from the network, so an address is read only if it
begins with one of `Locations.addresses`.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .decoding import UndecodableImage
from .downloads import download
from .text import printable

ANY_ADDRESS = ("",)
"""As `addresses`: all of them."""

ARCHIVES = ("zip://", "tar://", "gzip://", "bz2://", "xz://", "zstd://", "lz4://")
"""Beginnings of the parts of a chain that read nothing but what the next part gives them."""


@dataclass(frozen=True)
class Locations:
    """Local files below a folder, and the addresses that may be read beside them.

    Args:
        root: Folder that relative paths start from.
        addresses: Beginnings of the addresses that may be read; none by default, "" for all.
    """

    root: Path = Path()
    addresses: tuple[str, ...] = ()

    def open(self, source: Any, name: str) -> BinaryIO:
        """Open an image for reading.

        Args:
            source: Path, address, bytes, or a dictionary of "path" and "bytes".
            name: Name of the image in messages.
        """
        content, path = embedded(source), path_of(source)
        if content is not None:
            return io.BytesIO(content)
        if not path:
            raise UndecodableImage("there is neither a path nor an embedded image")
        if is_address(path):
            self.check_address(path, name)
            return io.BytesIO(download(path, name))
        return open_local(self.root / path)

    def check_address(self, path: str, name: str) -> None:
        """Refuse an address that may not be read."""
        # the last part of a chain, zip://image.png::https://host/images.zip, says where the content comes from, as
        # long as the parts before it are archives: http://host/image.png::hf://file would be read from the host
        *containers, origin = path.split("::")
        allowed = (*ARCHIVES, *self.addresses)
        if not origin.startswith(self.addresses) or not all(part.startswith(allowed) for part in containers):
            raise ValueError(
                f"{name} is not a local file: expected paths of local files. Download {printable(path)}, or let "
                "addresses be read with remote_images=True (--remote_images)"
            )

    def has(self, path: str) -> bool:
        """Tell whether there is a local file at a path."""
        return os.path.isfile(self.root / path)  # unlike Path.is_file, false for a name that is too long


def open_local(path: str | Path) -> BinaryIO:
    """Open a local file for reading."""
    # a pipe or a device would be read for ever
    if os.path.exists(path) and not os.path.isfile(path):
        raise UndecodableImage("it is not a regular file")
    try:
        return open(path, "rb")
    except OSError as error:
        raise UndecodableImage(error.strerror or str(error)) from error
    except ValueError as error:  # a null byte in the path
        raise UndecodableImage(str(error)) from error


def is_address(path: str) -> bool:
    """Tell whether a path is a URL or an fsspec chain, and not the name of a local file."""
    return "://" in path


def embedded(source: Any) -> bytes | None:
    """Return the bytes of an image that a row holds itself."""
    if isinstance(source, dict):
        source = source.get("bytes")
    return source if isinstance(source, bytes) else None


def path_of(source: Any) -> str | None:
    """Return the path or address of an image, if it has one."""
    if isinstance(source, dict):
        source = source.get("path")
    return source if isinstance(source, str) else None
