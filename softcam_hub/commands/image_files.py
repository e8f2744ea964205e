"""Find the images that a command line names, and choose the file names of their pictures."""

import os
import unicodedata
from pathlib import Path

from ..files import DRAFT, is_draft
from ..models.images import FORMAT_NAMES, find_images_in
from ..models.text import printable

MAX_NAME_BYTES = 200
"""Bytes in the file name of a picture. File systems allow 255 at most, and some fewer."""


def find_images(paths: list[Path], out: Path) -> list[Path]:
    """Return the named files, and all images in the named folders but those that an earlier run drew in `out`.

    Args:
        paths: Files and folders.
        out: Output folder of the command.
    """
    images: list[Path] = []
    for path in paths:
        if not os.path.isdir(path):  # unlike Path.is_dir, isdir is False for a name that is too long
            images.append(path)
            continue
        files = [file for file in sorted(find_images_in(path)) if not is_draft(file)]
        outside = [file for file in files if _resolve(out) not in _resolve(file).parents]
        if not outside:
            why = f": expected files of the formats {FORMAT_NAMES}"
            if files:
                why = f" outside of --output {printable(out)}: choose another --output"
            raise FileNotFoundError(f"there is no image in folder {printable(path)}{why}")
        images += outside
    return list(dict.fromkeys(images))


def name_pictures(images: list[Path]) -> dict[Path, str]:
    """Return image file -> name of its picture, with a number where several images have the same name."""
    names: dict[Path, str] = {}
    used: set[str] = set()
    for image in images:
        stem = f"_{image.stem}" if image.stem.startswith(DRAFT) else image.stem  # later runs delete drafts
        name, number = writable_name(stem, ".png"), 1
        while _same_name(name) in used:
            number += 1
            name = writable_name(stem, f"-{number}.png")
        used.add(_same_name(name))
        names[image] = name
    return names


def _same_name(name: str) -> str:
    """Return a text that is equal for names of one file on macOS or Windows, such as a.png and A.png."""
    return unicodedata.normalize("NFC", name).casefold()


def _resolve(path: Path) -> Path:
    """Follow the links of a path. Unlike Path.resolve, realpath accepts links that lead in a circle."""
    return Path(os.path.realpath(path))


def writable_name(stem: str, ending: str) -> str:
    """Return a file name of moderate length that every terminal can show.

    Args:
        stem: Name of the image without its suffix. It may hold any character, and be as long as a file name
            may be.
        ending: End of the name, which is never shortened.
    """
    text = "".join(character if character.isprintable() else "_" for character in stem)
    return text.encode()[: MAX_NAME_BYTES - len(ending)].decode(errors="ignore") + ending


def check_images_are_kept(pictures: dict[Path, str], out: Path) -> None:
    """Raise FileExistsError if a picture would replace an image that is to be explained."""
    images = {_resolve(image) for image in pictures}
    for name in pictures.values():
        if _resolve(out / name) in images:
            raise FileExistsError(
                f"{printable(out / name)} is to be explained, so no picture may replace it: choose another --output"
            )
