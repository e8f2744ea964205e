"""Read image files: the only module that decodes images, from a fixed list of formats to upright RGB.

- Pillow knows some forty formats and reads a few of them with other programs: a PostScript file starts
  Ghostscript, whatever its name. This module opens only the formats of `FORMATS`, recognised by content and
  not by name.
- The EXIF orientation is applied.
- Transparent images are laid over white, because the colours under full transparency are arbitrary. 16-bit
  grey is divided by 257, not clipped. CMYK, palettes and one-bit images are converted as Pillow converts
  them.
- Images that a user hands in one by one have limits (`read_user_image`), checked before any pixel is decoded,
  so that a small file cannot fill the memory. Images of a data set have none beside Pillow's own.
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .text import printable

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
"""Pillow's name of a format -> suffixes of its files, by which folders are searched."""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

FORMAT_NAMES = "JPEG, PNG, GIF, BMP, TIFF, WebP or PPM"
"""The formats, as messages list them."""

LARGEST_OF_12_BITS = 4095
"""Largest value of cameras and scanners with 12 bits per pixel, whose files have 16."""

MAX_USER_BYTES = 20 * 2**20
MAX_USER_PIXELS = 50_000_000
MAX_USER_ASPECT = 20
"""Longer side over shorter side. A model's input size fixes the shorter side, and the longer one grows with it."""


class UndecodableImage(ValueError):
    """The reason why content cannot be decoded. `name_image` adds the name of the image."""


class TooManyPixels(UndecodableImage):
    """An image so large that Pillow refuses it."""


class UnreadableImage(ValueError):
    """An image or mask that cannot be read, by its name.

    When the worker of a data loader raises this error, torch raises it again with the worker's traceback as
    its message. The constructor keeps the sentence at the end of such a message.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence.rpartition(f"{__name__}.UnreadableImage: ")[2].rstrip())


def find_images_in(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder, at any depth, whose suffix is that of an image."""
    return (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def unreadable(name: str, reason: object, advice: str = "") -> UnreadableImage:
    """Make the error for an image that cannot be read.

    Args:
        name: Name of the image.
        reason: Reason why it cannot be read, with or without a full stop.
        advice: Sentence that says what the user may do.
    """
    return UnreadableImage(f"{name} cannot be read: {str(reason).removesuffix('.')}. {advice}".rstrip())


@contextmanager
def name_image(name: str, advice: str = "") -> Iterator[None]:
    """Turn an `UndecodableImage` of the `with` block into an `UnreadableImage` that names the image."""
    try:
        yield
    except UndecodableImage as error:
        raise unreadable(name, error, advice) from error


@contextmanager
def open_image(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image without decoding its pixels yet.

    Errors of Pillow, also those raised in the `with` block, become `UndecodableImage`.
    """
    with _explain_pillow_errors(), Image.open(source, formats=tuple(FORMATS)) as image:
        yield image


def decode(source: Path | BinaryIO) -> Image.Image:
    """Decode the first image of a file and turn it upright, without changing its mode."""
    with open_image(source) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def turn_upright(image: Image.Image) -> Image.Image:
    """Turn an image upright that the caller has opened, and decode it if that has not happened yet."""
    with _explain_pillow_errors():
        return ImageOps.exif_transpose(image)


@contextmanager
def _explain_pillow_errors() -> Iterator[None]:
    """Turn every error of Pillow into an `UndecodableImage` with the reason in words."""
    try:
        yield
    except UndecodableImage:
        raise
    except UnidentifiedImageError as error:
        raise UndecodableImage(f"it is not an image of a supported format: expected {FORMAT_NAMES}") from error
    except Image.DecompressionBombError as error:
        # Pillow warns from MAX_IMAGE_PIXELS on, and refuses twice as many.
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise TooManyPixels(f"it has more than {limit:.3g} million pixels, as a decompression bomb has") from error
    except OSError as error:
        raise UndecodableImage(error.strerror or str(error) or type(error).__name__) from error
    except Exception as error:  # Pillow's readers raise SyntaxError, struct.error, IndexError and others
        raise UndecodableImage(str(error) or type(error).__name__) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB with 8 bits per channel."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UndecodableImage("it has more than 16 bits per pixel")
        if 0 < values.max() <= LARGEST_OF_12_BITS:
            warnings.warn(
                f"a picture of 16 bits has no value above {LARGEST_OF_12_BITS:,} of 65,535, so that it becomes almost "
                "black: scale its values to 0 to 65,535, or save it with 8 bits",
                stacklevel=2,
            )
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise UndecodableImage("its pixels are floating-point numbers")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def open_local(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a local file for reading."""
    # Reading a pipe or a device might never end.
    if os.path.exists(path) and not os.path.isfile(path):
        raise UndecodableImage("it is not a regular file")
    try:
        return open(path, "rb")
    except OSError as error:
        raise UndecodableImage(error.strerror or str(error)) from error
    except ValueError as error:  # a null byte in the path
        raise UndecodableImage(str(error)) from error


@dataclass(frozen=True)
class UserImage:
    """An image that a user handed in.

    Args:
        image: RGB image.
        remark: Sentence on what was left out of the file, or an empty string.
    """

    image: Image.Image
    remark: str = ""


def read_user_image(source: str | Path | bytes, name: str | None = None) -> UserImage:
    """Read the first image of a file within the limits for users, or raise `UnreadableImage`.

    Args:
        source: Path of the file, or its content.
        name: Name of the image in messages. The file name by default.
    """
    name = printable(os.path.basename(source) if name is None else name)
    with name_image(name):
        if isinstance(source, bytes):
            return _read_user_image(io.BytesIO(source), name)
        _check_user_file(Path(source))
        with open_local(source) as file:
            return _read_user_image(file, name)


def _check_user_file(path: Path) -> None:
    """Refuse a path without a file, an empty file and a file over the limit."""
    if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
        raise UndecodableImage("there is no such file")
    if not path.stat().st_size:
        raise UndecodableImage("the file is empty")
    if path.stat().st_size > MAX_USER_BYTES:
        raise UndecodableImage(f"the file has more than {MAX_USER_BYTES // 2**20} MB: save it smaller")


def _read_user_image(source: BinaryIO, name: str) -> UserImage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        try:
            with open_image(source) as image:
                _check_user_size(*image.size)
                # The further images of an MPO are previews and other views that a camera adds to the first.
                frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
                rgb = to_rgb(ImageOps.exif_transpose(image))
        except TooManyPixels as error:
            raise UndecodableImage(
                f"it has more than {MAX_USER_PIXELS / 1e6:.0f} million pixels: make it smaller"
            ) from error
    return UserImage(rgb, f"{name} has {frames} pictures, and this is the first of them." if frames > 1 else "")


def _check_user_size(width: int, height: int) -> None:
    """Refuse an image with too many pixels, or one that is too long and narrow."""
    if width * height > MAX_USER_PIXELS:
        raise UndecodableImage(
            f"it has {width}×{height} = {width * height / 1e6:.0f} million pixels, more than the "
            f"{MAX_USER_PIXELS / 1e6:.0f} million that are allowed: make it smaller"
        )
    if max(width, height) > MAX_USER_ASPECT * min(width, height):
        raise UndecodableImage(
            f"it has {width}×{height} pixels, and the longer side may be at most {MAX_USER_ASPECT} times the shorter "
            "side: crop it"
        )
