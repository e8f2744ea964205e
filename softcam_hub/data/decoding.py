"""The only place that opens image files: a fixed list of formats, and upright RGB out of every mode.

- Pillow knows some forty formats, and reads a few of them with other programs: a PostScript file, whatever its name,
  starts Ghostscript. Here only the formats of `FORMATS` are opened, recognised by content and not by name.
- EXIF orientation is applied.
- Transparent images are laid over white: what hides under full transparency is arbitrary. 16-bit grey is divided by
  257, not clipped. CMYK, palettes and one-bit images are converted as Pillow does it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
"""Pillow's name of a format -> the suffixes of its files, by which folders are searched."""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

EXPECTED = "JPEG, PNG, GIF, BMP, TIFF, WebP or PPM"
"""The formats, as messages list them."""


class UndecodableImage(ValueError):
    """The reason why content cannot be decoded; whoever knows the name of the image adds it."""


class TooManyPixels(UndecodableImage):
    """An image so large that Pillow refuses it."""


@contextmanager
def open_image(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image without decoding its pixels yet.

    What fails here or in the body of the `with` is raised as `UndecodableImage`.
    """
    with reasons(), Image.open(source, formats=tuple(FORMATS)) as image:
        yield image


def decode(source: Path | BinaryIO) -> Image.Image:
    """Decode the first image of a file and turn it upright, in the mode it has."""
    with open_image(source) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def upright(image: Image.Image) -> Image.Image:
    """Turn an image that someone has opened upright, and decode it if they have not."""
    with reasons():
        return ImageOps.exif_transpose(image)


@contextmanager
def reasons() -> Iterator[None]:
    """Raise what Pillow raises as `UndecodableImage`."""
    try:
        yield
    except UndecodableImage:
        raise
    except UnidentifiedImageError as error:
        raise UndecodableImage(f"it is no image of a format that is read here: expected {EXPECTED}") from error
    except Image.DecompressionBombError as error:
        # what PIL warns of from MAX_IMAGE_PIXELS on, it refuses from twice as many
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise TooManyPixels(f"it has more than {most:.3g} million pixels, as a decompression bomb has") from error
    except OSError as error:
        raise UndecodableImage(error.strerror or str(error) or type(error).__name__) from error
    # Pillow's readers raise errors of many kinds (SyntaxError, struct.error, IndexError, ...)
    except Exception as error:
        raise UndecodableImage(str(error) or type(error).__name__) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB with 8 bits per channel."""
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise UndecodableImage("it has more than 16 bits per pixel")
        image = Image.fromarray((deep / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise UndecodableImage("its pixels are floating-point numbers")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
