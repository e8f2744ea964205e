"""Unusual file names are read, and shown and written safely."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from helpers.data import POSTSCRIPT, load, paint

from softcam_hub.cli import main
from softcam_hub.commands.image_files import MAX_NAME_BYTES, find_images, name_pictures, writable_name
from softcam_hub.models.images import UnreadableImage, read_user_image
from softcam_hub.models.inputs import read_image
from softcam_hub.models.text import as_unicode, printable

pytestmark = pytest.mark.usefixtures("dataset_cache")


UNUSUAL = {
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
"""Case -> text that messages show in place of the name, where it differs from the name."""


def stem_of(case):
    return os.fsdecode(UNUSUAL[case])


@pytest.mark.parametrize("case", UNUSUAL)
def test_a_name_is_shown_on_one_line_of_printable_characters(case):
    assert printable(stem_of(case)) == SHOWN.get(case, stem_of(case))
    assert printable(stem_of(case)).isprintable()
    as_unicode(stem_of(case)).encode("utf-8")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@host/a.png", "https://…@host/a.png"),
        ("error at ftp://token@host, twice: http://a:b@c", "error at ftp://…@host, twice: http://…@c"),
        ("https://host/a.png?X-Amz-Signature=secret&id=3", "https://host/a.png?…"),
        ("HTTP://host/?token=secret cannot be read", "HTTP://host/?… cannot be read"),
        ("me@host/what?.png", "me@host/what?.png"),
    ],
)
def test_addresses_are_shown_without_passwords_and_tokens(address, shown):
    assert printable(address) == shown


def test_text_that_utf_8_can_encode_stays_as_it_is():
    assert as_unicode("one\n\x1b\u202e é") == "one\n\x1b\u202e é"
    assert as_unicode(os.fsdecode(b"caf\xe9")) == r"caf\xe9"


@pytest.mark.parametrize("case", UNUSUAL)
def test_a_file_with_a_unusual_name_is_read_or_refused_by_name(case, tmp_path):
    path = tmp_path / f"{stem_of(case)}.png"
    path.write_bytes(POSTSCRIPT)
    for read in (read_user_image, lambda path: read_image(path), lambda path: read_image(str(path))):
        with pytest.raises(UnreadableImage) as caught:
            read(path)
        assert str(caught.value).isprintable()
        assert f"{SHOWN.get(case, stem_of(case))}.png cannot be read: " in str(caught.value)
    paint(path)
    assert read_user_image(path).image.size == read_image(path).size == (12, 10)


@pytest.mark.parametrize("case", UNUSUAL)
def test_the_picture_of_a_file_with_a_unusual_name_can_be_written(case, tmp_path):
    for ending in (".png", "-1234.png"):
        name = writable_name(stem_of(case), ending)
        assert len(name.encode()) <= MAX_NAME_BYTES
        assert name.isprintable()
        assert name.endswith(ending)
        (tmp_path / f".{name}.{'x' * 40}").touch()


def test_pictures_get_different_names_where_only_removed_characters_differ():
    stems = (b"a\xe8", b"a\xe9", b"n" * 240, b"n" * 241, b"a_", "é".encode(), "e\u0301".encode())
    names = list(name_pictures([Path(os.fsdecode(stem) + ".png") for stem in stems]).values())
    assert len({unicodedata.normalize("NFC", name).lower() for name in names}) == len(stems)
    assert [names[0], names[1], *names[4:6]] == ["a_.png", "a_-2.png", "a_-3.png", "é.png"]


def test_explain_continues_after_files_with_unusual_names(tmp_path, capfd):
    given, out = tmp_path / "given", tmp_path / "out"
    for case in UNUSUAL:
        paint(given / f"{stem_of(case)}.png")
        (given / f"{stem_of(case)[:-1]}x.png").write_bytes(POSTSCRIPT)
    assert main(["explain", str(given), str(given / ("m" * 300)), "--output", str(out)]) == 1
    printed = capfd.readouterr()
    assert f"{len(UNUSUAL)} images explained in" in printed.out
    assert f"{len(UNUSUAL) + 1} of {2 * len(UNUSUAL) + 1} could not be read" in printed.err
    assert not set("\x1b\x07\u202e") & set(printed.out + printed.err)
    written = [json.loads(line) for line in (out / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert sorted(line["file"] for line in written) == sorted(
        as_unicode(given / f"{stem_of(case)}.png") for case in UNUSUAL
    )
    assert all((out / line["picture"]).is_file() for line in written)
    assert all(json.dumps(line, ensure_ascii=False).encode("utf-8") for line in written)


def test_folders_with_unusual_names_are_searched_for_supported_images_alone(tmp_path):
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


@pytest.mark.parametrize("case", [case for case in UNUSUAL if case not in ("not-utf-8", "surrogate-half")])
def test_a_training_folder_may_hold_files_with_unusual_names(case, tmp_path):
    for name in ("cat", "dog"):
        paint(tmp_path / name / f"{stem_of(case)}.png")
    assert load(tmp_path).train.image(1).size == (12, 10)
    (tmp_path / "dog" / f"{stem_of(case)}.png").write_bytes(POSTSCRIPT)
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
