"""One picture that a person hands in: upright and RGB, or an error that tells them why not.

- What a file claims of itself is checked before its pixels are decoded, so that a small file cannot fill the memory.
- A picture much longer than wide is refused too: its shorter side is scaled to the model's, and the longer one with it.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .rows import UnreadableImage, decode_image

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


def read_picture(path: str | Path, name: str | None = None) -> Picture:
    """The first picture of a file, or `UnreadableImage` with a sentence.

    Args:
        path: of the file.
        name: of the file in messages; by default its own.
    """
    path = Path(path)
    name = name or path.name
    frames = _check(path, name)
    try:
        image = decode_image({"path": str(path)}, Path(), name)
    except UnreadableImage as error:
        reason = str(error).removeprefix(f"{name} cannot be read: ").partition(". Repair")[0]
        raise _refused(name, reason) from error
    return Picture(image, f"{name} has {frames} pictures, and this is the first of them." if frames > 1 else "")


def _check(path: Path, name: str) -> int:
    """Refuse what is no image, or too large a one; the number of its frames."""
    if not path.is_file():
        raise _refused(name, "there is no such file")
    if not path.stat().st_size:
        raise _refused(name, "the file is empty")
    if path.stat().st_size > MOST_BYTES:
        raise _refused(name, f"the file has more than {MOST_BYTES // 2**20} MB: save it smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(path) as opened:
                _check_size(opened.size, name)
                # further pictures of an MPO are what a camera keeps beside the first
                return 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise _refused(name, "it is no image, or of a format that is not known here; JPEG and PNG are") from error
    except Image.DecompressionBombError as error:
        raise _refused(name, f"it has more than {MOST_PIXELS / 1e6:.0f} million pixels: make it smaller") from error
    except Exception as error:  # Pillow's readers raise errors of many kinds
        raise _refused(name, str(error) or type(error).__name__) from error


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise _refused(
            name,
            f"it has {width}×{height} = {width * height / 1e6:.0f} million pixels, more than the "
            f"{MOST_PIXELS / 1e6:.0f} million that are taken here: make it smaller",
        )
    if max(size) > MOST_PROPORTION * min(size):
        raise _refused(
            name,
            f"it has {width}×{height} pixels, and its sides may differ {MOST_PROPORTION}-fold at most: crop it",
        )


def _refused(name: str, reason: str) -> UnreadableImage:
    return UnreadableImage(f"{name} cannot be read: {reason}.")
