"""Image files of the supported formats become upright RGB, and no other format is opened."""

import argparse
import ast
import base64
import io
import os
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers.data import (
    POSTSCRIPT,
    decompression_bomb,
    embedded_samples,
    encode,
    load,
)
from PIL import EpsImagePlugin, Image
from torchvision.transforms.functional import pil_to_tensor

import softcam_hub
from softcam_hub.commands.explain import ImageExplainer
from softcam_hub.data.columns import Columns
from softcam_hub.data.locations import Locations
from softcam_hub.data.masks import read_mask
from softcam_hub.data.samples import Samples
from softcam_hub.data.streaming import StreamedImageDataset
from softcam_hub.loading import load_classifier
from softcam_hub.models.images import (
    FORMATS,
    SUFFIXES,
    UndecodableImage,
    UnreadableImage,
    decode,
    read_user_image,
    to_rgb,
)
from softcam_hub.models.inputs import read_image

pytestmark = pytest.mark.usefixtures("dataset_cache")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.fromarray(np.full((2, 2), 257 * 100, dtype=np.uint16)), (100, 100, 100)),
        (Image.fromarray(np.full((2, 2), 257 * 100, dtype=np.int32)), (100, 100, 100)),
        (Image.new("RGBA", (2, 2), (0, 0, 255, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (0, 0, 255, 255)), (0, 0, 255)),
        (Image.new("LA", (2, 2), (40, 255)), (40, 40, 40)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("RGB", (2, 2), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE), (1, 2, 3)),
    ],
    ids=["cmyk", "16-bit", "int32", "transparent", "opaque", "grey-alpha", "one-bit", "palette"],
)
def test_any_mode_becomes_rgb(image, expected):
    found = to_rgb(image)
    assert found.mode == "RGB"
    assert found.getpixel((1, 1)) == expected


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_picture_of_12_bits_in_16_is_warned_of(dtype):
    with pytest.warns(UserWarning, match="no value above 4,095 of 65,535, so that it becomes almost black: scale"):
        to_rgb(Image.fromarray(np.full((2, 2), 4095, dtype=dtype)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_rgb(Image.fromarray(np.full((2, 2), 4096, dtype=dtype)))
        to_rgb(Image.fromarray(np.zeros((2, 2), dtype=dtype)))  # a picture that is black


def test_a_palette_with_transparency_a_deep_png_and_a_cmyk_jpeg_as_files():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    deep = Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16))
    found = embedded_samples(
        encode(palette, format="PNG", transparency=1),
        encode(deep, format="PNG"),
        encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), format="JPEG"),
    )
    assert found.image(0).getpixel((0, 0)) == (255, 255, 255)
    assert found.image(1).getpixel((0, 0)) == (255, 255, 255)
    assert np.allclose(found.image(2).getpixel((0, 0)), (254, 0, 0), atol=3)


def test_exif_orientation_is_applied():
    image, exif = Image.new("RGB", (6, 4)), Image.Exif()
    image.putpixel((0, 0), (255, 255, 255))
    exif[0x0112] = 6  # to be turned clockwise
    found = embedded_samples(encode(image, format="PNG", exif=exif)).image(0)
    assert found.size == (4, 6)
    assert found.getpixel((3, 0)) == (255, 255, 255)


PACKAGE = Path(softcam_hub.__file__).parent


def test_images_are_opened_in_one_place():
    """Only models/images.py calls Pillow's `open`, and no module calls a reader of another package."""
    readers = {"open_image": 0}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if owner in ("Image", "PIL.Image") and node.func.attr in ("open", "Image.open"):
                    assert file == PACKAGE / "models" / "images.py", f"{file}:{node.lineno} opens an image"
                    readers["open_image"] += 1
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = {alias.name for alias in node.names}
                assert not names & {"load_image", "read_image_file", "imageio", "cv2", "imread"}, f"{file}"
                assert not (isinstance(node, ast.ImportFrom) and node.module == "PIL.Image" and "open" in names)
    assert readers == {"open_image": 1}


@pytest.mark.parametrize("name", FORMATS)
def test_every_supported_format_is_read(name):
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (250, 0, 0)).save(file, name)
    file.seek(0)
    assert np.abs(np.asarray(decode(file).convert("RGB"))[5, 5].astype(int) - [250, 0, 0]).max() < 6


def test_suffixes_are_those_that_pillow_knows_for_the_formats():
    known = Image.registered_extensions()
    aliases = {"MPO": "JPEG"}
    assert {aliases.get(known[suffix], known[suffix]) for suffix in SUFFIXES} == set(FORMATS)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """Put a program in the place of Ghostscript that writes a file when it is started, and return the path of the file."""
    folder, mark = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {mark}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return mark


def test_the_stand_in_for_ghostscript_would_be_started(ghostscript):
    with Image.open(io.BytesIO(POSTSCRIPT)) as image, pytest.raises(OSError):  # noqa: PT011, its output is no image
        image.load()
    assert ghostscript.exists()


def embedded(content, column="image"):
    features = datasets.Features({column: datasets.Image()})
    return datasets.Dataset.from_dict({column: [{"bytes": content, "path": None}]}, features=features)


def stream_of(folder):
    """Return the first sample of a stream of an image folder with one class of foreign files."""
    (folder / "b").mkdir()
    (folder / "a").mkdir()
    (folder / "mine.png").rename(folder / "a" / "mine.png")
    (folder / "b" / "mine.png").write_bytes((folder / "a" / "mine.png").read_bytes())
    return next(iter(StreamedImageDataset(load(folder, streaming=True).train, pil_to_tensor)))


def explain_command(path):
    explainer = ImageExplainer(
        load_classifier(softcam_hub.CAPE_LESIONS),
        argparse.Namespace(explainer=None, kind=None, classes=None, top_k=None, aligned=True, batch_size=1),
    )
    assert not list(explainer.explain_files([path]))
    raise UnreadableImage(*explainer.problems)


READERS = {
    "picture": read_user_image,
    "explain": explain_command,
    "row-path": lambda path: Locations().read_image(str(path), "row 0"),
    "row-bytes": lambda path: Locations().read_image(path.read_bytes(), "row 0"),
    "rows": lambda path: Samples(embedded(path.read_bytes()), np.zeros(1, dtype=int), Columns("image", "label")).image(
        0
    ),
    "mask": lambda path: read_mask({"mask": str(path)}, Columns("i", "l", "mask"), (9, 9), Locations(), "row 0"),
    "stream": lambda path: stream_of(path.parent),
    "pipeline-path": lambda path: read_image(str(path)),
    "pipeline-base64": lambda path: read_image(base64.b64encode(path.read_bytes()).decode(), None),
    "pipeline-data": lambda path: read_image(
        "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(), None
    ),
}
"""Name -> function that reads an image file, one for every way from a file to pixels."""


@pytest.mark.parametrize("door", READERS)
def test_postscript_in_a_png_file_starts_no_program(door, tmp_path, ghostscript):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "mine.png").write_bytes(POSTSCRIPT)
    with pytest.raises(UnreadableImage, match="cannot be read: .*expected") as caught:
        READERS[door](folder / "mine.png")
    assert "\n" not in str(caught.value)
    assert not ghostscript.exists()


FOREIGN = {
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "pdf": b"%PDF-1.4\n",
    "psd": b"8BPS\x00\x01" + bytes(6) + b"\x00\x03" + b"\x00\x00\x00\x09" * 2 + b"\x00\x08\x00\x03" + bytes(14),
    "icns": b"icns\x00\x00\x00\x08",
    "wmf": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(34),
    "fits": b"SIMPLE  =                    T" + b" " * 2850,
    "mpeg": b"\x00\x00\x01\xb3" + bytes(20),
    "pcx": b"\x0a\x05\x01\x08" + bytes(124),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(20),
    "xbm": b"#define w_width 9\n#define w_height 9\nstatic char w_bits[] = {\n0x00};",
    "zeros": bytes(2000),
    "one-byte": b"\x89",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_unsupported_formats_are_refused(kind):
    with pytest.raises(UndecodableImage, match="expected JPEG, PNG, GIF, BMP, TIFF, WebP or PPM"):
        decode(io.BytesIO(FOREIGN[kind]))


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "null-byte", "long", "missing"])
def test_paths_without_a_regular_file_are_refused_at_once(kind, tmp_path):
    path = {"device": "/dev/zero", "null-byte": "a\0b.png", "long": "a" * 300}.get(kind, str(tmp_path / kind))
    if kind == "folder":
        Path(path).mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    for read in (read_user_image, lambda path: Locations().read_image(path, "row 0")):
        with pytest.raises(UnreadableImage, match="cannot be read: "):
            read(path)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    content = decompression_bomb()
    for door in (lambda: Locations().read_image(content, "row 0"), lambda: read_user_image(content, "x")):
        with pytest.raises(UnreadableImage, match="it has more than (179|50) million pixels"):
            door()
