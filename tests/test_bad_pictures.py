"""Files that are no images, or have names that hurt: no program is started, no run ended, and every name shown safely."""

import argparse
import ast
import base64
import io
import json
import os
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from test_loading import _cache, load, paint  # noqa: F401, the fixture applies here too
from torchvision.transforms.functional import pil_to_tensor

import softcam_hub
from softcam_hub.cli import main
from softcam_hub.commands.explain import MAX_NAME_BYTES, ImageExplainer, find_images, name_pictures, writable_name
from softcam_hub.data.columns import Columns
from softcam_hub.data.images import FORMATS, SUFFIXES, UndecodableImage, UnreadableImage, decode, read_user_image
from softcam_hub.data.locations import Locations
from softcam_hub.data.masks import read_mask
from softcam_hub.data.samples import Samples
from softcam_hub.data.streaming import StreamedImageDataset
from softcam_hub.data.text import as_unicode, printable
from softcam_hub.loading import load_classifier
from softcam_hub.pipeline import read_input

PACKAGE = Path(softcam_hub.__file__).parent

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def test_images_are_opened_in_one_place():
    """Neither Pillow's `open` nor a reader of another package is called anywhere else."""
    readers = {"open_image": 0}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if owner in ("Image", "PIL.Image") and node.func.attr in ("open", "Image.open"):
                    assert file == PACKAGE / "data" / "images.py", f"{file}:{node.lineno} opens an image"
                    readers["open_image"] += 1
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = {alias.name for alias in node.names}
                assert not names & {"load_image", "read_image_file", "imageio", "cv2", "imread"}, f"{file}"
                assert not (isinstance(node, ast.ImportFrom) and node.module == "PIL.Image" and "open" in names)
    assert readers == {"open_image": 1}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_the_list_is_read(kind):
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (250, 0, 0)).save(file, kind)
    file.seek(0)
    assert np.abs(np.asarray(decode(file).convert("RGB"))[5, 5].astype(int) - [250, 0, 0]).max() < 6


def test_suffixes_are_those_that_pillow_knows_for_the_formats():
    known = Image.registered_extensions()
    aliases = {"MPO": "JPEG"}
    assert {aliases.get(known[suffix], known[suffix]) for suffix in SUFFIXES} == set(FORMATS)


# foreign formats


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program in the place of Ghostscript, which leaves a file when it is started."""
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
    """The first sample of a stream of an image folder with one class of foreign files."""
    (folder / "b").mkdir()
    (folder / "a").mkdir()
    (folder / "mine.png").rename(folder / "a" / "mine.png")
    (folder / "b" / "mine.png").write_bytes((folder / "a" / "mine.png").read_bytes())
    return next(iter(StreamedImageDataset(load(folder, streaming=True).train, pil_to_tensor)))


def explain_command(path):
    explainer = ImageExplainer(
        load_classifier(softcam_hub.CAPE_LESIONS),
        argparse.Namespace(explainer=None, kind=None, classes=None, top_k=None, batch_size=1),
    )
    assert not list(explainer.explain_files([path]))
    raise UnreadableImage(*explainer.problems)


DOORS = {
    "picture": read_user_image,
    "explain": explain_command,
    "row-path": lambda path: Locations().read_image(str(path), "row 0"),
    "row-bytes": lambda path: Locations().read_image(path.read_bytes(), "row 0"),
    "rows": lambda path: Samples(embedded(path.read_bytes()), np.zeros(1, dtype=int), Columns("image", "label")).image(
        0
    ),
    "mask": lambda path: read_mask({"mask": str(path)}, Columns("i", "l", "mask"), (9, 9), Locations(), "row 0"),
    "stream": lambda path: stream_of(path.parent),
    "pipeline-path": lambda path: read_input(str(path), None),
    "pipeline-base64": lambda path: read_input(base64.b64encode(path.read_bytes()).decode(), None),
    "pipeline-data": lambda path: read_input(
        "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(), None
    ),
}
"""Every way from a file to pixels."""


@pytest.mark.parametrize("door", DOORS)
def test_postscript_that_is_called_png_starts_no_program(door, tmp_path, ghostscript):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "mine.png").write_bytes(POSTSCRIPT)
    with pytest.raises(UnreadableImage, match="cannot be read: .*expected") as caught:
        DOORS[door](folder / "mine.png")
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
def test_a_format_outside_the_list_is_refused(kind):
    with pytest.raises(UndecodableImage, match="expected JPEG, PNG, GIF, BMP, TIFF, WebP or PPM"):
        decode(io.BytesIO(FOREIGN[kind]))


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "null-byte", "long", "missing"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind, tmp_path):
    path = {"device": "/dev/zero", "null-byte": "a\0b.png", "long": "a" * 300}.get(kind, str(tmp_path / kind))
    if kind == "folder":
        Path(path).mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    for read in (read_user_image, lambda path: Locations().read_image(path, "row 0")):
        with pytest.raises(UnreadableImage, match="cannot be read: "):
            read(path)


def bomb():
    """A PNG of one pixel whose header promises 400 million."""
    file = io.BytesIO()
    Image.new("1", (1, 1)).save(file, "PNG")
    content = file.getvalue()
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    content = bomb()
    for door in (lambda: Locations().read_image(content, "row 0"), lambda: read_user_image(content, "x")):
        with pytest.raises(UnreadableImage, match="it has more than (179|50) million pixels"):
            door()


# names


HURTFUL = {
    "not-utf-8": b"caf\xe9",
    "newline": b"one\ntwo",
    "escape": b"\x1b[2J\x1b[31mred",
    "bell": b"ring\x07\x08",
    "right-to-left": "safe\u202egnp.exe".encode(),
    "surrogate-half": b"\xed\xa0\x80",
    "long": b"n" * 250,
    "long-wide": "é".encode() * 125,
    "quotes": b"'\"<b>&",
    "percent": b"100%25 {x} {{y}}",
    "dots": b"a..b",
    "blank": b" ",
}
SHOWN = {
    "not-utf-8": r"caf\xe9",
    "newline": r"one\ntwo",
    "escape": r"\x1b[2J\x1b[31mred",
    "bell": r"ring\x07\x08",
    "right-to-left": r"safe\u202egnp.exe",
    "surrogate-half": r"\xed\xa0\x80",
}
"""What is shown of a name that is not shown as it is."""


def stem_of(kind):
    return os.fsdecode(HURTFUL[kind])


@pytest.mark.parametrize("kind", HURTFUL)
def test_a_name_is_shown_on_one_line_of_printable_characters(kind):
    assert printable(stem_of(kind)) == SHOWN.get(kind, stem_of(kind))
    assert printable(stem_of(kind)).isprintable()
    as_unicode(stem_of(kind)).encode("utf-8")


def test_text_that_utf_8_can_encode_stays_as_it_is():
    assert as_unicode("one\n\x1b\u202e é") == "one\n\x1b\u202e é"
    assert as_unicode(os.fsdecode(b"caf\xe9")) == r"caf\xe9"


@pytest.mark.parametrize("kind", HURTFUL)
def test_a_file_with_a_hurtful_name_is_read_or_refused_by_name(kind, tmp_path):
    path = tmp_path / f"{stem_of(kind)}.png"
    path.write_bytes(POSTSCRIPT)
    for read in (read_user_image, lambda path: read_input(path, None), lambda path: read_input(str(path), None)):
        with pytest.raises(UnreadableImage) as caught:
            read(path)
        assert str(caught.value).isprintable()
        assert f"{SHOWN.get(kind, stem_of(kind))}.png cannot be read: " in str(caught.value)
    paint(path)
    assert read_user_image(path).image.size == read_input(path, None).size == (12, 10)


@pytest.mark.parametrize("kind", HURTFUL)
def test_the_picture_of_a_file_with_a_hurtful_name_can_be_written(kind, tmp_path):
    for ending in (".png", "-1234.png"):
        name = writable_name(stem_of(kind), ending)
        assert len(name.encode()) <= MAX_NAME_BYTES
        assert name.isprintable()
        assert name.endswith(ending)
        (tmp_path / f".{name}.{'x' * 40}").touch()


def test_pictures_of_files_whose_names_differ_only_in_what_is_left_out():
    files = [Path(os.fsdecode(name) + ".png") for name in (b"a\xe8", b"a\xe9", b"n" * 240, b"n" * 241, b"a_")]
    names = list(name_pictures(files).values())
    assert len({name.lower() for name in names}) == 5
    assert [names[0], names[1], names[4]] == ["a_.png", "a_-2.png", "a_-3.png"]


def test_explain_goes_on_over_files_with_hurtful_names(tmp_path, capfd):
    given, out = tmp_path / "given", tmp_path / "out"
    for kind in HURTFUL:
        paint(given / f"{stem_of(kind)}.png")
        (given / f"{stem_of(kind)[:-1]}x.png").write_bytes(POSTSCRIPT)
    assert main(["explain", str(given), str(given / ("m" * 300)), "--out", str(out)]) == 1
    printed = capfd.readouterr()
    assert f"{len(HURTFUL)} images explained in" in printed.out
    assert f"{len(HURTFUL) + 1} of {2 * len(HURTFUL) + 1} could not be read" in printed.err
    assert not set("\x1b\x07\u202e") & set(printed.out + printed.err)
    written = [json.loads(line) for line in (out / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert sorted(line["file"] for line in written) == sorted(as_unicode(given / f"{stem_of(k)}.png") for k in HURTFUL)
    assert all((out / line["picture"]).is_file() for line in written)
    assert all(json.dumps(line, ensure_ascii=False).encode("utf-8") for line in written)


def test_folders_with_hurtful_names_are_searched_for_images_of_the_list_alone(tmp_path):
    folder = tmp_path / stem_of("not-utf-8") / stem_of("escape")
    for name in ("a.png", "b.TIF", "c.pgm"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("d.eps", "e.pdf", "f.psd", "g.svg", "h.txt"):
        (folder / name).touch()
    assert [file.name for file in find_images([tmp_path], tmp_path / "out")] == ["a.png", "b.TIF", "c.pgm"]
    (tmp_path / stem_of("newline")).mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        find_images([tmp_path / stem_of("newline")], tmp_path / "out")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", [kind for kind in HURTFUL if kind not in ("not-utf-8", "surrogate-half")])
def test_a_training_folder_may_hold_files_with_hurtful_names(kind, tmp_path):
    for name in ("cat", "dog"):
        paint(tmp_path / name / f"{stem_of(kind)}.png")
    assert load(tmp_path).train.image(1).size == (12, 10)
    (tmp_path / "dog" / f"{stem_of(kind)}.png").write_bytes(POSTSCRIPT)
    with pytest.raises(UnreadableImage) as caught:
        load(tmp_path).train.image(1)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "reason"), [(b"caf\xe9", r"caf\\xe9.png is not UTF-8"), (b"a::b", "a::b.png holds '::'")]
)
def test_a_training_folder_names_a_file_that_its_table_cannot_hold(name, reason, tmp_path):
    for folder in ("cat", "dog"):
        paint(tmp_path / folder / f"{os.fsdecode(name)}.png")
    with pytest.raises(ValueError, match=f"the name of .*{reason}.*: rename it"):
        load(tmp_path)
