"""Images that users hand in are read right, or refused with a sentence."""

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from softcam_hub.models.images import UnreadableImage, read_user_image

RED = Image.new("RGB", (40, 30), (200, 10, 20))


def colour_of(path):
    return np.asarray(read_user_image(path).image).reshape(-1, 3).astype(int).mean(axis=0)


@pytest.mark.parametrize(
    ("mode", "ending"), [("RGB", "png"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "gif"), ("RGB", "webp")]
)
def test_kinds_of_files_are_read_in_their_colours(mode, ending, tmp_path):
    RED.convert(mode).save(tmp_path / f"red.{ending}")
    found = read_user_image(tmp_path / f"red.{ending}")
    assert found.image.mode == "RGB"
    assert found.remark == ""
    assert np.abs(colour_of(tmp_path / f"red.{ending}") - [200, 10, 20]).max() < 12


def test_deep_grey_is_scaled_and_transparency_lies_on_white(tmp_path):
    Image.fromarray(np.full((30, 40), 257 * 100, np.uint16)).save(tmp_path / "deep.png")
    assert colour_of(tmp_path / "deep.png") == pytest.approx([100, 100, 100])
    Image.new("RGBA", (40, 30), (9, 9, 9, 0)).save(tmp_path / "glass.png")
    assert colour_of(tmp_path / "glass.png") == pytest.approx([255, 255, 255])


def test_a_turned_photo_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    RED.save(tmp_path / "turned.jpg", exif=exif)
    assert read_user_image(tmp_path / "turned.jpg").image.size == (30, 40)


def test_of_an_animation_the_first_picture_is_read_with_a_remark(tmp_path):
    others = [Image.new("RGB", RED.size, colour) for colour in ("blue", "green")]
    RED.save(tmp_path / "moving.gif", save_all=True, append_images=others)
    assert (
        read_user_image(tmp_path / "moving.gif").remark == "moving.gif has 3 pictures, and this is the first of them."
    )
    assert np.abs(colour_of(tmp_path / "moving.gif") - [200, 10, 20]).max() < 12


def test_previews_in_a_photo_do_not_count(tmp_path):
    RED.save(tmp_path / "photo.mpo", "MPO", save_all=True, append_images=[RED])
    assert read_user_image(tmp_path / "photo.mpo").remark == ""


def write(path, kind):
    if kind == "truncated":
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
        noise.save(path, "PNG")
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "huge":
        Image.new("1", (10_000, 10_000)).save(path, "PNG")
    elif kind == "gigantic":
        Image.new("1", (20_000, 20_000)).save(path, "PNG")
    elif kind == "long":
        Image.new("L", (2101, 100)).save(path, "PNG")
    elif kind == "floating":
        Image.new("F", (40, 30)).save(path, "TIFF")
    else:
        path.write_bytes(
            {"text": b"dear diary", "empty": b"", "vector": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}[kind]
        )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "it is not an image of a supported format: expected JPEG, PNG, GIF, BMP, TIFF, WebP or PPM."),
        (
            "vector",
            "it is not an image of a supported format: expected JPEG, PNG, GIF, BMP, TIFF, WebP or PPM.",
        ),
        ("empty", "the file is empty."),
        ("truncated", "image file is truncated"),
        (
            "huge",
            "it has 10000×10000 = 100 million pixels, more than the 50 million that are allowed: make it smaller.",
        ),
        ("gigantic", "it has more than 50 million pixels: make it smaller."),
        ("long", "it has 2101×100 pixels, and the longer side may be at most 20 times the shorter side: crop it."),
        ("floating", "its pixels are floating-point numbers."),
    ],
)
def test_unreadable_images_are_refused_with_a_sentence(kind, reason, tmp_path):
    write(tmp_path / "mine.png", kind)
    with pytest.raises(UnreadableImage) as caught:
        read_user_image(tmp_path / "mine.png")
    assert str(caught.value).startswith(f"mine.png cannot be read: {reason}")
    assert str(caught.value).endswith(".")
    assert "unreadable=" not in str(caught.value)


def test_the_pixels_of_too_large_a_picture_are_not_decoded(tmp_path, monkeypatch):
    write(tmp_path / "huge.png", "huge")
    monkeypatch.setattr(PngImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(UnreadableImage, match="100 million pixels"):
        read_user_image(tmp_path / "huge.png")


def test_a_file_of_too_many_bytes_is_refused(tmp_path):
    RED.save(tmp_path / "fat.png")
    with (tmp_path / "fat.png").open("ab") as file:
        file.truncate(20 * 2**20)
        read_user_image(tmp_path / "fat.png")
        file.truncate(20 * 2**20 + 1)
    with pytest.raises(UnreadableImage, match="more than 20 MB"):
        read_user_image(tmp_path / "fat.png")


def test_the_largest_proportion_is_still_read(tmp_path):
    Image.new("L", (2000, 100)).save(tmp_path / "long.png")
    assert read_user_image(tmp_path / "long.png").image.size == (2000, 100)


def test_a_missing_file(tmp_path):
    with pytest.raises(UnreadableImage, match=r"gone.png cannot be read: there is no such file\."):
        read_user_image(tmp_path / "gone.png")
