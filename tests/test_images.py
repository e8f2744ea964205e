"""Images of every kind become RGB, the unreadable are named, and a sample depends on (seed, epoch, index) alone."""

import io
import logging
import os
import random
import re
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_loading import _cache, load, manifest, paint, rows_of  # noqa: F401, the fixture applies here too
from timm.data import create_transform
from torch.utils.data import DataLoader

from softcam_hub.data import load_lesions
from softcam_hub.data.columns import Columns
from softcam_hub.data.images import UnreadableImage, to_rgb
from softcam_hub.data.samples import ImageDataset, Samples
from softcam_hub.data.transforms import AugmentationConfig, make_transforms, mask_transform

CONFIG = {
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.2, 0.2),
    "interpolation": "bicubic",
    "crop_pct": 0.8,
    "crop_mode": "center",
}
EVERYTHING = AugmentationConfig(crop_scale=0.3, vflip=0.5, color_jitter=0.4, auto_augment="augmix-m5-w3", erase=1.0)
"""Draws from torch, `random` and NumPy."""


@pytest.fixture(scope="module")
def rows():
    data = load_lesions("train", 8, 48)
    return Samples(data, np.asarray(data["label"][:]), Columns("image", "label", "mask"))


# decoding


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


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def rows_from(*contents, **settings):
    """Rows of embedded images."""
    cells = {"image": [{"bytes": content, "path": None} for content in contents]}
    data = datasets.Dataset.from_dict(cells, features=datasets.Features({"image": datasets.Image()}))
    return Samples(data, np.zeros(len(contents), dtype=np.int64), Columns("image", "label"), **settings)


def test_a_palette_with_transparency_a_deep_png_and_a_cmyk_jpeg_as_files():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    deep = Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16))
    found = rows_from(
        saved(palette, format="PNG", transparency=1),
        saved(deep, format="PNG"),
        saved(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), format="JPEG"),
    )
    assert found.image(0).getpixel((0, 0)) == (255, 255, 255)
    assert found.image(1).getpixel((0, 0)) == (255, 255, 255)
    assert np.allclose(found.image(2).getpixel((0, 0)), (254, 0, 0), atol=3)


def test_exif_orientation_is_applied():
    image, exif = Image.new("RGB", (6, 4)), Image.Exif()
    image.putpixel((0, 0), (255, 255, 255))
    exif[0x0112] = 6  # to be turned clockwise
    found = rows_from(saved(image, format="PNG", exif=exif)).image(0)
    assert found.size == (4, 6)
    assert found.getpixel((3, 0)) == (255, 255, 255)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
BROKEN = {
    "truncated-png": saved(NOISE, format="PNG")[:2000],
    "truncated-jpeg": saved(NOISE, format="JPEG")[:800],
    "empty": b"",
    "text": b"<html>404</html>",
    "floats": saved(Image.new("F", (4, 4)), format="TIFF"),
    "damaged-png": saved(NOISE, format="PNG").replace(b"IDAT", b"JDAT", 1),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_an_unreadable_image_stops_with_its_name_or_is_left_out(broken, caplog):
    contents = [saved(Image.new("RGB", (4, 4), (number, 0, 0)), format="PNG") for number in range(3)]
    contents.insert(1, BROKEN[broken])
    with pytest.raises(UnreadableImage, match="row 1 of split 'exam'.*unreadable='skip'"):
        rows_from(*contents, split="exam").image(1)
    with caplog.at_level(logging.WARNING):
        found = rows_from(*contents, split="exam", unreadable="skip")
    assert "1 of the 4 images of split 'exam' cannot be read and are left out: row 1" in caplog.text
    assert (len(found), len(found.labels), found.unreadable) == (3, 3, ["row 1 of split 'exam'"])
    assert found.image(1).getpixel((0, 0)) == (1, 0, 0)
    assert found.name(1) == "row 2 of split 'exam'"


def test_a_decompression_bomb_is_unreadable(monkeypatch):
    content = saved(Image.new("RGB", (100, 100)), format="PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        rows_from(content).image(0)


def test_missing_files_and_folders_of_nothing_but_broken_images(tmp_path):
    path = manifest(tmp_path, rows_of("a", "b"))
    (tmp_path / "images/1.png").unlink()
    with pytest.raises(
        UnreadableImage, match=r"row 1 of split 'train' \(images/1.png\) cannot be read: there is no file"
    ):
        load(path)
    assert load(path, unreadable="skip").train.unreadable == ["row 1 of split 'train' (images/1.png)"]
    (tmp_path / "images/0.png").write_bytes(b"")
    with pytest.raises(UnreadableImage, match="none is left"):
        load(path, unreadable="skip")


def test_a_worker_names_the_broken_image():
    images = ImageDataset(rows_from(b"broken"), create_transform(**CONFIG))
    with pytest.raises(UnreadableImage) as caught:
        images[0]
    with pytest.raises(UnreadableImage) as from_worker:
        next(iter(DataLoader(images, num_workers=1)))
    found, expected = (re.sub("0x[0-9a-f]+", "", str(error.value)) for error in (from_worker, caught))
    assert found == expected
    assert found.startswith("row 0 of split 'train' cannot be read: ")


def test_paths_and_boxes_are_checked_before_they_are_needed(tmp_path):
    header, rows = "image,label,mask,boxes\n", ["images/1.png,a,,\n", "images/2.png,b,,\n"]
    load(manifest(tmp_path, header + "".join(rows)))
    for cells, message in {
        "none.png,a,,": r"row 2 of split 'train' \(none.png\) cannot be read: there is no file .*/none.png",
        "images/3.png,a,none.png,": "row 2 of .* cannot be read: there is no file .*/none.png",
        'images/3.png,a,,"[[0, 0, 4]]"': r"boxes of row 2 .* are '\[\[0, 0, 4\]\]': expected",
        'images/3.png,a,,"[[0, 5, 4, 5]]"': r"row 2 of split 'train' \(images/3.png\): \[0, 5, 4, 5\] is not a box",
    }.items():
        path = manifest(tmp_path, header + "".join([*rows, cells + "\n"]))
        with pytest.raises(ValueError, match=message):
            load(path)
    path.write_text(header + "".join([*rows, "none.png,a,,\n", "gone.png,a,,\n"]))
    with pytest.raises(UnreadableImage, match="no file .*/none.png \\(and 1 more are missing\\)"):
        load(path)
    assert len(load(path, unreadable="skip").train) == 2


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (
            "[[0, 0, 99, 2.5]]",
            r"row 0 of split 'train'.*: the box \[0, 0, 99, 2.5\] does not fit .*expected x1 up to 12 and y1 up to 10",
        ),
        ("[[3, 3, 1, 4]]", r"row 0 of split 'train'.*: \[3, 3, 1, 4\] is not a box: expected"),
        ("[1, 2, 3]", "boxes of row 0 of split 'train'.*expected"),
        ("left", "boxes of row 0 of split 'train'.*expected"),
        ('{"x": 1}', "boxes of row 0 of split 'train'.*expected"),
    ],
)
def test_boxes_are_checked(tmp_path, boxes, message):
    data = datasets.Dataset.from_dict({"image": [str(paint(tmp_path / "1.png"))], "label": [0], "boxes": [boxes]})
    found = Samples(data, np.zeros(1, dtype=np.int64), Columns("image", "label", boxes="boxes"))
    with pytest.raises(ValueError, match=message):
        found.mask(0)


def test_a_mask_of_another_size_is_refused(tmp_path):
    Image.new("L", (5, 5)).save(tmp_path / "mask.png")
    path = manifest(tmp_path, "image,label,mask\nimages/1.png,a,mask.png\nimages/2.png,b,\n")
    with pytest.raises(ValueError, match="5×5 pixels but its image 12×10"):
        load(path).train.mask(0)


# fingerprints


def test_the_fingerprint_is_of_images_and_order(rows, tmp_path):
    one, two = (saved(Image.new("RGB", (4, 4), colour), format="PNG") for colour in ("red", "blue"))
    prints = {rows_from(*contents).fingerprint() for contents in ((one, two), (two, one), (one,), (one, two, one))}
    assert len(prints) == 4
    assert rows_from(one, two).fingerprint() in prints
    path = manifest(tmp_path, rows_of("a", "b"))
    before = load(path).train.fingerprint()
    assert load(path).train.fingerprint() == before
    os.utime(tmp_path / "images/1.png", ns=(0, 1))
    touched = load(path).train.fingerprint()
    (tmp_path / "images/0.png").write_bytes(one)
    assert len({before, touched, load(path).train.fingerprint()}) == 3


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_another_process():
    settings = "'lesions', train_count=8, eval_count=4, data_size=32, hold_out=0.25"
    code = (
        "from softcam_hub.data.config import DataConfig; from softcam_hub.data.splits import load_splits; "
        f"print(load_splits(DataConfig({settings})).train.fingerprint())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert load("lesions", train_count=8, eval_count=4, data_size=32, hold_out=0.25).train.fingerprint() == other


# samples


def test_a_sample_depends_on_seed_epoch_and_index_alone(rows):
    images = ImageDataset(rows, make_transforms(CONFIG, EVERYTHING)[0], seed=3)
    first = images[1, 5]["pixel_values"]
    for _ in range(2):
        torch.rand(3), random.random(), np.random.rand()
        assert torch.equal(images[1, 5]["pixel_values"], first)
    assert not torch.equal(images[2, 5]["pixel_values"], first)
    assert not torch.equal(ImageDataset(rows, images.transform, seed=4)[1, 5]["pixel_values"], first)


@pytest.mark.parametrize("draw", [torch.rand, random.random, np.random.rand], ids=["torch", "random", "numpy"])
def test_each_generator_is_seeded_and_put_back(rows, draw):
    draws = []

    def transform(image):
        draws.append(draw() if draw is not torch.rand else draw(1).item())
        return torch.zeros(3, 1, 1)

    images = ImageDataset(rows, transform, seed=3)
    generators = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    for key in ((0, 1), (0, 1), (0, 2), (1, 1)):
        assert images[key]["index"] == key[1]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
    assert generators == (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())


def test_generators_are_put_back_after_an_exception(rows):
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        ImageDataset(rows, lambda image: 1 / 0, seed=3)[0, 0]
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_change_nothing(rows):
    images = ImageDataset(rows, make_transforms(CONFIG, EVERYTHING)[0], seed=3)
    keys = [(4, index) for index in (7, 0, 3, 1)]
    alone, among = (list(DataLoader(images, 2, sampler=keys, num_workers=number)) for number in (0, 2))
    for one, other in zip(alone, among, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert one["index"].tolist() == other["index"].tolist()
    assert torch.cat([batch["labels"] for batch in alone]).tolist() == [3, 0, 3, 1]


def test_samples_in_evaluation(rows):
    transform = make_transforms(CONFIG)[1]
    sample = ImageDataset(rows, transform)[2]
    assert torch.equal(sample["pixel_values"], transform(rows.image(2)))
    assert (sample["labels"].dtype, sample["index"]) == (torch.int64, 2)
    several = ImageDataset(load("labels", train_count=8, eval_count=8, data_size=32).train, transform)[5]["labels"]
    assert (several.dtype, several.tolist()) == (torch.float32, [1, 0, 1])


def test_samples_that_cannot_be_made(rows):
    transform = make_transforms(CONFIG)[1]
    with pytest.raises(ValueError, match="needs a seed"):
        ImageDataset(rows, transform)[0, 1]
    with pytest.raises(IndexError, match="no image 8: split 'train' has 8"):
        ImageDataset(rows, transform)[8]
    with pytest.raises(ValueError, match="neither masks nor boxes"):
        ImageDataset(rows_from(b""), transform, masks=mask_transform(CONFIG))
    with pytest.raises(ValueError, match="not the augmentation"):
        ImageDataset(rows, transform, seed=1, masks=mask_transform(CONFIG))


# transforms


def test_without_augmentation_training_sees_what_evaluation_sees(rows):
    train, evaluation = make_transforms(CONFIG, AugmentationConfig(augment=False))
    plain, _ = make_transforms(CONFIG, AugmentationConfig(crop_scale=1.0, hflip=0.0))
    expected = create_transform(**CONFIG)(rows.image(1))
    for transform in (train, evaluation, plain):
        assert torch.equal(transform(rows.image(1)), expected)
    assert not torch.equal(make_transforms(CONFIG)[0](rows.image(1)), expected)


def test_flips_and_the_evaluation_crop():
    image = Image.new("RGB", (64, 64))
    image.putpixel((16, 16), (255, 255, 255))
    flipped, evaluation = make_transforms(CONFIG, AugmentationConfig(crop_scale=1.0, hflip=1.0, vflip=1.0))
    assert torch.equal(flipped(image), evaluation(image).flip(1, 2))
    _, whole = make_transforms(CONFIG, AugmentationConfig(eval_crop=1.0))
    assert torch.equal(whole(image), create_transform(**{**CONFIG, "crop_pct": 1.0})(image))


@pytest.mark.parametrize("settings", [{"hflip": 1.5}, {"crop_scale": 0}, {"eval_crop": 2}, {"color_jitter": -1}])
def test_augmentation_is_checked(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        AugmentationConfig(**settings)


def test_grey_models_are_refused():
    with pytest.raises(ValueError, match="in_chans=3"):
        make_transforms({**CONFIG, "input_size": (1, 32, 32)})


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(96, 64), (70, 130), (40, 40)])
def test_a_mask_lies_where_its_mark_is(mode, size):
    config = {**CONFIG, "crop_mode": mode, "mean": (0.0, 0.4, 0.3)}  # a border without red
    image, mask = Image.new("RGB", size, (0, 0, 0)), Image.new("L", size)
    box = (size[0] * 0.4, size[1] * 0.35, size[0] * 0.6, size[1] * 0.55)
    ImageDraw.Draw(image).rectangle(box, fill=(255, 0, 0))
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    red = make_transforms(config)[1](image)[0] * 0.2
    found = mask_transform(config)(mask)
    assert found.shape == (32, 32)
    assert 10 < found.sum() < 300
    assert found[red > 0.6].all()
    assert not found[red < 0.05].any()


def test_a_lesion_of_one_pixel_does_not_vanish_and_a_large_one_does_not_grow():
    mask = Image.new("L", (400, 400))
    mask.putpixel((123, 200), 255)
    transform = mask_transform({**CONFIG, "crop_pct": 1.0})
    assert transform(mask).nonzero().tolist() == [[200 * 32 // 400, 123 * 32 // 400]]
    ImageDraw.Draw(mask).rectangle((200, 200, 399, 399), fill=255)
    assert transform(mask)[16:, 16:].all()
    assert transform(mask).sum() == 256 + 1


def test_masks_in_samples_follow_eval_crop(rows):
    augmentation = AugmentationConfig(eval_crop=1.0)
    evaluation, masks = make_transforms(CONFIG, augmentation)[1], mask_transform(CONFIG, augmentation)
    sample = ImageDataset(rows, evaluation, masks=masks)[3]
    assert sample["mask"].dtype == torch.bool
    whole = np.asarray(rows.mask(3).resize((32, 32), Image.Resampling.BOX)) >= 64
    assert (sample["mask"].numpy() >= whole).all()
    assert sample["mask"].any()
    assert not ImageDataset(rows, evaluation, masks=masks)[0]["mask"].any()
