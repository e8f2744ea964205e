"""Streams give the same samples for any number of workers, and resume where a run stopped."""

import itertools
from collections import Counter

import datasets
import pytest
import torch
from helpers.data import load, manifest, manifest_text, paint
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor

from softcam_hub.data.config import DataConfig
from softcam_hub.data.splits import load_splits
from softcam_hub.data.streaming import EndlessImageDataset, StreamedImageDataset
from softcam_hub.models.images import UnreadableImage

pytestmark = pytest.mark.usefixtures("dataset_cache")


def stream(**settings):
    return load("lesions", train_count=11, eval_count=4, data_size=32, streaming=True, **settings)


def samples_of(images, workers):
    samples = list(DataLoader(images, batch_size=None, num_workers=workers))
    assert len({sample["index"] for sample in samples}) == len(samples)
    return {sample["index"]: sample for sample in samples}


def test_a_stream_is_the_same_for_any_number_of_workers():
    splits = stream()
    noisy = StreamedImageDataset(
        splits.train, lambda image: pil_to_tensor(image) + torch.rand(3, 32, 32), seed=5, buffer=4
    )
    noisy.set_epoch(2)
    alone, among = samples_of(noisy, 0), samples_of(noisy, 2)
    assert sorted(alone) == sorted(among) == list(range(11))
    assert all(torch.equal(alone[key]["pixel_values"], among[key]["pixel_values"]) for key in alone)
    assert sorted(int(sample["labels"]) for sample in alone.values()) == sorted(number % 4 for number in range(11))
    noisy.set_epoch(3)
    assert not torch.equal(samples_of(noisy, 0)[0]["pixel_values"], alone[0]["pixel_values"])
    assert (len(splits.validation), splits.validation.labels.tolist()) == (4, [0, 1, 2, 3])


def test_a_stream_skips_unreadable_images_or_stops(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    good = paint(tmp_path / "good.png").read_bytes()
    cells = {"image": [{"bytes": b, "path": None} for b in (good, b"no image", good)], "label": [0, 1, 1]}
    datasets.Dataset.from_dict(cells, features=features).save_to_disk(str(tmp_path / "data"))
    skipping = load(tmp_path / "data", streaming=True, unreadable="skip").train
    (gone,) = {0, 1, 2} - set(samples_of(StreamedImageDataset(skipping, pil_to_tensor, buffer=0), 0))
    assert skipping.unreadable == [f"position {gone} of split 'train'"]
    stopping = load(tmp_path / "data", streaming=True).train
    with pytest.raises(UnreadableImage, match=f"position {gone} of split 'train' cannot be read"):
        samples_of(StreamedImageDataset(stopping, pil_to_tensor, buffer=0), 0)


def batches_of(images, workers, count, seen=0):
    endless = EndlessImageDataset(images, batch_size=4)
    endless.batches_seen = seen
    found = itertools.islice(DataLoader(endless, batch_size=4, num_workers=workers), count)
    return [(batch["index"].tolist(), batch["pixel_values"]) for batch in found]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("unreadable", ["stop", "skip"])
def test_an_endless_stream_shows_every_image_and_resumes_where_it_stopped(workers, unreadable):
    images = StreamedImageDataset(stream(unreadable=unreadable).train, _noisy, seed=5, buffer=4)
    whole = batches_of(images, workers, 24)
    seen = Counter(index for indices, _ in whole for index in indices)
    assert set(seen) == set(range(11))
    assert max(seen.values()) - min(seen.values()) <= 4, "about as often"
    for cut in (1, 9):
        for (index, pixels), (found, again) in zip(
            whole[cut:], batches_of(images, workers, 24 - cut, cut), strict=True
        ):
            assert index == found
            assert torch.equal(pixels, again)


def _noisy(image):
    return pil_to_tensor(image) + torch.rand(3, 32, 32)


def test_a_resumed_stream_does_not_decode_earlier_images(monkeypatch):
    images, shown = StreamedImageDataset(stream().train, pil_to_tensor, seed=5), []
    read, decode = images.samples.read, images.samples.image
    monkeypatch.setattr(images.samples, "image", lambda row, position: shown.append(position) or decode(row, position))
    passes = []
    monkeypatch.setattr(
        images.samples, "read", lambda seed, epoch, buffer: passes.append(epoch) or read(seed, epoch, buffer)
    )
    batches_of(images, 0, 2, seen=25)
    assert passes == [0, 9], "the first, to count, and the tenth"
    assert shown == list(range(1, 9))


def test_a_stream_of_a_folder_is_not_in_the_order_of_its_classes(tmp_path):
    for name in ("cat", "dog"):
        for number in range(40):
            paint(tmp_path / f"{name}/{number}.png")
    images = StreamedImageDataset(load(tmp_path, streaming=True).train, pil_to_tensor, buffer=0)
    first = [int(sample["labels"]) for sample in itertools.islice(images, 40)]
    assert 10 < sum(first) < 30


def test_a_stream_without_an_image_for_a_worker_raises(tmp_path):
    images = EndlessImageDataset(StreamedImageDataset(stream(unreadable="skip").train, pil_to_tensor), 4)
    images.images.samples.image = lambda row, position: None
    with pytest.raises(ValueError, match="split 'train' has no image for worker 0 of 1"):
        next(iter(images))


def test_a_stream_has_the_classes_of_the_other_splits_in_their_order(tmp_path):
    def split(names):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        return datasets.Dataset.from_dict(
            {"image": [Image.new("RGB", (8, 8))] * 3, "label": [0, 0, 1]}, features=features
        )

    datasets.DatasetDict({"train": split(["a", "b"]), "test": split(["b", "a"])}).save_to_disk(tmp_path / "data")
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"split 'test' declares the classes \['b', 'a'\], but split 'train'"):
            load(tmp_path / "data", streaming=streaming)


def test_a_stream_must_know_its_classes(tmp_path):
    with pytest.raises(ValueError, match="does not declare its class names"):
        load(manifest(tmp_path, manifest_text("a", "b")), streaming=True)


def stream_of_paths(folder, paths):
    cells = {
        "image": [{"path": path, "bytes": None} for path in paths],
        "label": [row % 2 for row in range(len(paths))],
    }
    names = datasets.ClassLabel(names=["a", "b"])
    data = datasets.Dataset.from_dict(cells, datasets.Features({"image": datasets.Image(), "label": names}))
    data.save_to_disk(str(folder / "saved"))
    return load(folder / "saved", streaming=True)


def test_streams_of_folders_still_give_images(tmp_path):
    local = [str(paint(tmp_path / f"{number}.png")) for number in range(2)]
    samples = list(StreamedImageDataset(stream_of_paths(tmp_path, local).train, pil_to_tensor, buffer=0))
    assert len(samples) == 2
    assert load_splits(DataConfig(str(tmp_path / "saved"))).train.image(0).size == (12, 10)


def test_a_stream_refuses_addresses_row_by_row(tmp_path):
    local = str(paint(tmp_path / "0.png"))
    splits = stream_of_paths(tmp_path, [local, local])
    row = {"image": {"path": "http://127.0.0.1:9/0.png", "bytes": None}}
    with pytest.raises(
        ValueError, match="position 7 of split 'train' .* is not a local file: expected paths of local files"
    ):
        splits.train.image(row, 7)
