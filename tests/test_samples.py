"""Unreadable images are named or left out, and a sample depends on (seed, epoch, index) alone."""

import logging
import os
import random
import re

import numpy as np
import pytest
import torch
from helpers.data import PREPROCESSING, embedded_samples, encode, load, manifest, manifest_text
from helpers.warm import warm_python
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader

from softcam_hub.data import load_lesions
from softcam_hub.data.columns import Columns
from softcam_hub.data.config import AugmentationConfig
from softcam_hub.data.samples import ImageDataset, Samples
from softcam_hub.data.transforms import make_transforms, mask_transform
from softcam_hub.models.images import UnreadableImage

pytestmark = pytest.mark.usefixtures("dataset_cache")


@pytest.fixture(scope="module")
def samples():
    data = load_lesions("train", 8, 48)
    return Samples(data, np.asarray(data["label"][:]), Columns("image", "label", "mask"))


EVERYTHING = AugmentationConfig(crop_scale=0.3, vflip=0.5, color_jitter=0.4, auto_augment="augmix-m5-w3", erase=1.0)
"""Augmentation that draws random numbers from torch, `random` and NumPy."""


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


BROKEN = {
    "truncated-png": encode(NOISE, format="PNG")[:2000],
    "truncated-jpeg": encode(NOISE, format="JPEG")[:800],
    "empty": b"",
    "text": b"<html>404</html>",
    "floats": encode(Image.new("F", (4, 4)), format="TIFF"),
    "damaged-png": encode(NOISE, format="PNG").replace(b"IDAT", b"JDAT", 1),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_an_unreadable_image_stops_with_its_name_or_is_left_out(broken, caplog):
    contents = [encode(Image.new("RGB", (4, 4), (number, 0, 0)), format="PNG") for number in range(3)]
    contents.insert(1, BROKEN[broken])
    with pytest.raises(UnreadableImage, match="row 1 of split 'exam'.*unreadable='skip'"):
        embedded_samples(*contents, split="exam").image(1)
    with caplog.at_level(logging.WARNING):
        found = embedded_samples(*contents, split="exam", unreadable="skip")
    assert "1 of the 4 images of split 'exam' cannot be read and are left out: row 1" in caplog.text
    assert (len(found), len(found.labels), found.unreadable) == (3, 3, ["row 1 of split 'exam'"])
    assert found.image(1).getpixel((0, 0)) == (1, 0, 0)
    assert found.name(1) == "row 2 of split 'exam'"


def test_a_decompression_bomb_is_unreadable(monkeypatch):
    content = encode(Image.new("RGB", (100, 100)), format="PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        embedded_samples(content).image(0)


def test_missing_files_and_folders_of_broken_images(tmp_path):
    path = manifest(tmp_path, manifest_text("a", "b"))
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
    images = ImageDataset(embedded_samples(b"broken"), create_transform(**PREPROCESSING))
    with pytest.raises(UnreadableImage) as caught:
        images[0]
    with pytest.raises(UnreadableImage) as from_worker:
        next(iter(DataLoader(images, num_workers=1)))
    found, expected = (re.sub("0x[0-9a-f]+", "", str(error.value)) for error in (from_worker, caught))
    assert found == expected
    assert found.startswith("row 0 of split 'train' cannot be read: ")


def test_the_fingerprint_depends_on_images_and_their_order(samples, tmp_path):
    one, two = (encode(Image.new("RGB", (4, 4), colour), format="PNG") for colour in ("red", "blue"))
    prints = {
        embedded_samples(*contents).fingerprint() for contents in ((one, two), (two, one), (one,), (one, two, one))
    }
    assert len(prints) == 4
    assert embedded_samples(one, two).fingerprint() in prints
    path = manifest(tmp_path, manifest_text("a", "b"))
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
    other = warm_python().run("-c", code)
    mine = load("lesions", train_count=8, eval_count=4, data_size=32, hold_out=0.25).train.fingerprint()
    assert other.stdout.strip() == mine, other.stderr


def test_a_sample_depends_on_seed_epoch_and_index_alone(samples):
    images = ImageDataset(samples, make_transforms(PREPROCESSING, EVERYTHING)[0], seed=3)
    first = images[1, 5]["pixel_values"]
    for _ in range(2):
        torch.rand(3), random.random(), np.random.rand()
        assert torch.equal(images[1, 5]["pixel_values"], first)
    assert not torch.equal(images[2, 5]["pixel_values"], first)
    assert not torch.equal(ImageDataset(samples, images.transform, seed=4)[1, 5]["pixel_values"], first)


@pytest.mark.parametrize("draw", [torch.rand, random.random, np.random.rand], ids=["torch", "random", "numpy"])
def test_each_generator_is_seeded_and_restored(samples, draw):
    draws = []

    def transform(image):
        draws.append(draw() if draw is not torch.rand else draw(1).item())
        return torch.zeros(3, 1, 1)

    images = ImageDataset(samples, transform, seed=3)
    generators = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    for key in ((0, 1), (0, 1), (0, 2), (1, 1)):
        assert images[key]["index"] == key[1]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
    assert generators == (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())


def test_generators_are_restored_after_an_exception(samples):
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        ImageDataset(samples, lambda image: 1 / 0, seed=3)[0, 0]
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_do_not_depend_on_the_number_of_workers(samples):
    images = ImageDataset(samples, make_transforms(PREPROCESSING, EVERYTHING)[0], seed=3)
    keys = [(4, index) for index in (7, 0, 3, 1)]
    alone, among = (list(DataLoader(images, 2, sampler=keys, num_workers=number)) for number in (0, 2))
    for one, other in zip(alone, among, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert one["index"].tolist() == other["index"].tolist()
    assert torch.cat([batch["labels"] for batch in alone]).tolist() == [3, 0, 3, 1]


def test_samples_in_evaluation(samples):
    transform = make_transforms(PREPROCESSING)[1]
    sample = ImageDataset(samples, transform)[2]
    assert torch.equal(sample["pixel_values"], transform(samples.image(2)))
    assert (sample["labels"].dtype, sample["index"]) == (torch.int64, 2)
    several = ImageDataset(load("labels", train_count=8, eval_count=8, data_size=32).train, transform)[5]["labels"]
    assert (several.dtype, several.tolist()) == (torch.float32, [1, 0, 1])


def test_impossible_samples_are_refused(samples):
    transform = make_transforms(PREPROCESSING)[1]
    with pytest.raises(ValueError, match="needs a seed"):
        ImageDataset(samples, transform)[0, 1]
    with pytest.raises(IndexError, match="no image 8: split 'train' has 8"):
        ImageDataset(samples, transform)[8]
    with pytest.raises(ValueError, match="neither masks nor boxes"):
        ImageDataset(embedded_samples(b""), transform, masks=mask_transform(PREPROCESSING))
    with pytest.raises(ValueError, match="not the augmentation"):
        ImageDataset(samples, transform, seed=1, masks=mask_transform(PREPROCESSING))
