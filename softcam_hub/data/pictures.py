"""One picture that a person hands in: upright and RGB, or an error that tells them why not.

- What a file claims of itself is checked before its pixels are decoded, so that a small file cannot fill the memory.
- A picture much longer than wide is refused too: its shorter side is scaled to the model's, and the longer one with it.
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps

from .decoding import TooManyPixels, UndecodableImage, open_image, to_rgb
from .locations import open_local
from .samples import UnreadableImage
from .text import printable

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 50_000_000
MOST_PROPORTION = 20
"""Longer side over shorter side."""


@dataclass(frozen=True)
class Picture:
    """A readable picture.

    Args:
        image: RGB.
        remark: what was left out of the file; often nothing.
    """

    image: Image.Image
    remark: str = ""


def read_picture(source: str | Path | bytes, name: str | None = None) -> Picture:
    """Read the first picture of a file, or refuse it as `UnreadableImage` with a sentence.

    Args:
        source: Path of the file, or its content.
        name: Name of the file in messages; by default that of the path.
    """
    name = printable(os.path.basename(source) if name is None else name)
    with named(name):
        if isinstance(source, bytes):
            return _read(io.BytesIO(source), name)
        _check_file(Path(source))
        with open_local(source) as file:
            return _read(file, name)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Add the name of the picture to the reason why it cannot be read."""
    try:
        yield
    except UndecodableImage as error:
        raise UnreadableImage(f"{name} cannot be read: {str(error).removesuffix('.')}.") from error


def _check_file(path: Path) -> None:
    """Refuse what is no file, an empty file, and too large a one."""
    if not os.path.isfile(path):
        raise UndecodableImage("there is no such file")
    if not path.stat().st_size:
        raise UndecodableImage("the file is empty")
    if path.stat().st_size > MOST_BYTES:
        raise UndecodableImage(f"the file has more than {MOST_BYTES // 2**20} MB: save it smaller")


def _read(source: BinaryIO, name: str) -> Picture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        try:
            with open_image(source) as image:
                _check_size(image.size)
                # further pictures of an MPO are what a camera keeps beside the first
                frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
                picture = to_rgb(ImageOps.exif_transpose(image))
        except TooManyPixels as error:
            raise UndecodableImage(
                f"it has more than {MOST_PIXELS / 1e6:.0f} million pixels: make it smaller"
            ) from error
    return Picture(picture, f"{name} has {frames} pictures, and this is the first of them." if frames > 1 else "")


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise UndecodableImage(
            f"it has {width}×{height} = {width * height / 1e6:.0f} million pixels, more than the "
            f"{MOST_PIXELS / 1e6:.0f} million that are taken here: make it smaller"
        )
    if max(size) > MOST_PROPORTION * min(size):
        raise UndecodableImage(
            f"it has {width}×{height} pixels, and its sides may differ {MOST_PROPORTION}-fold at most: crop it"
        )
