"""What `--data` may name, how labels are read and checked, and how splits are divided."""

import itertools
import logging
import os
import subprocess
import sys
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from helpers.hub_server import HubServer
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor
from transformers import HfArgumentParser

from softcam_hub.data import load_lesions
from softcam_hub.data.config import DataConfig
from softcam_hub.data.images import UnreadableImage
from softcam_hub.data.splits import load_splits
from softcam_hub.data.stratification import assign_parts, round_robin
from softcam_hub.data.streaming import EndlessImageDataset, StreamedImageDataset
from softcam_hub.data.transforms import AugmentationConfig


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def paint(path, colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), colour).save(path)
    return path


def load(data, **settings):
    return load_splits(DataConfig(str(data), **settings))


def manifest(folder, text, images=12):
    for number in range(images):
        paint(folder / f"images/{number}.png", (10 * number, 0, 0))
    path = folder / "table.csv"
    path.write_text(text)
    return path


def rows_of(*cells, header="image,label"):
    return "\n".join([header, *(f"images/{number}.png,{cell}" for number, cell in enumerate(cells))]) + "\n"


# configuration


def test_every_field_is_a_flag_with_help():
    parser = HfArgumentParser([DataConfig, AugmentationConfig])
    flags = ["--data", "x", "--hold-out", "0.25", "--group_column", "person", "--no_augment", "--eval_crop", "0.875"]
    data, augmentation = parser.parse_args_into_dataclasses(flags)
    assert (data.data, data.hold_out, data.group_column) == ("x", 0.25, "person")
    assert (augmentation.augment, augmentation.eval_crop) == (False, 0.875)
    assert all(action.help for action in parser._actions)
    assert {"data", "augmentation"} <= {group.title for group in parser._action_groups}
    parser.format_help()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": ""}, "data must not be empty"),
        ({"test_split": "train"}, "must differ"),
        ({"unreadable": "ignore"}, "'stop' or 'skip'"),
        ({"hold_out": 1.0}, r"in \[0, 1\)"),
        ({"folds": 1}, "at least 2"),
        ({"fold": 2}, "folds is 0"),
        ({"folds": 5, "fold": 5}, "from 0 to 4"),
        ({"train_count": 0}, "at least 1"),
        ({"data_seed": -1}, "negative"),
        ({"streaming": True, "hold_out": 0.1}, "a stream cannot be divided"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


# what can be loaded


def test_generated_data():
    splits = load("lesions", train_count=9, eval_count=4, data_size=64, data_seed=3)
    expected = load_lesions("train", 9, 64, "lesions", 3)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (9, 4, 4)
    assert splits.classes == expected.features["label"].names
    assert splits.train.labels.tolist() == expected["label"][:]
    assert splits.train.image(5).tobytes() == expected[5]["image"].tobytes()
    assert (np.asarray(splits.train.mask(5)) > 0).tolist() == np.asarray(expected[5]["mask"]).tolist()


def test_generated_data_with_several_labels():
    splits = load("labels", train_count=9, eval_count=8, data_size=32)
    assert splits.multi_label
    assert splits.classes == ["microaneurysm", "haemorrhage", "exudate"]
    assert splits.train.labels.tolist() == load_lesions("train", 9, 32, "labels")["labels"][:]


def test_an_image_folder_is_not_divided_by_its_file_names(tmp_path):
    for number in range(3):
        paint(tmp_path / f"cat/test_{number}.png")
        paint(tmp_path / f"dog/validation-{number}.png")
    splits = load(tmp_path)
    assert (splits.classes, splits.train.labels.tolist()) == (["cat", "dog"], [0, 0, 0, 1, 1, 1])
    assert splits.validation is splits.test is None
    assert not splits.train.has_masks


def test_an_image_folder_with_splits(tmp_path):
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            paint(tmp_path / f"{split}/{name}/1.png")
    paint(tmp_path / "drafts/1.png")
    splits = load(tmp_path)
    assert [len(samples) for samples in (splits.train, splits.validation, splits.test)] == [2, 2, 2]
    paint(tmp_path / "test/eel/1.png")
    with pytest.raises(ValueError, match="split 'test' has classes that no training image has: eel"):
        load(tmp_path)


def test_an_image_folder_with_metadata(tmp_path):
    for number in range(4):
        paint(tmp_path / f"{number}.png")
        paint(tmp_path / f"masks/{number}.png", (0, 0, 0) if number else (1, 1, 1))
    lines = [f"{number}.png,masks/{number}.png,{'ab'[number % 2]}" for number in range(4)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,mask_file_name,label", *lines]))
    splits = load(tmp_path)
    assert (splits.classes, splits.train.labels.tolist()) == (["a", "b"], [0, 1, 0, 1])
    assert [np.asarray(splits.train.mask(number)).max() for number in range(4)] == [255, 0, 0, 0]


def test_a_manifest_with_splits_masks_and_names_that_look_missing(tmp_path):
    paint(tmp_path / "mask.png", (0, 0, 9))
    cells = ["None,train,mask.png", "NA,train,", "None,val,", "NA,exam,"]
    path = manifest(tmp_path, rows_of(*cells, header="image,label,split,mask"))
    splits = load(path, validation_split="val", test_split="exam")
    assert splits.classes == ["NA", "None"]
    assert [samples.labels.tolist() for samples in (splits.train, splits.validation, splits.test)] == [[1, 0], [1], [0]]
    assert splits.validation.image(0).getpixel((0, 0)) == (20, 0, 0)
    assert np.asarray(splits.train.mask(0)).min() == 255
    assert splits.train.mask(1) is None


def test_a_manifest_that_changed_is_read_again(tmp_path):
    assert load(manifest(tmp_path, rows_of("a", "b"))).train.labels.tolist() == [0, 1]
    assert load(manifest(tmp_path, rows_of("b", "a"))).train.labels.tolist() == [1, 0]


def test_a_parquet_manifest_with_absolute_paths_boxes_and_lists_of_names(tmp_path):
    paths = [str(paint(tmp_path / f"elsewhere/{number}.png")) for number in range(3)]
    boxes = [[[1.0, 2.0, 3.5, 4.0]], [], None]
    (tmp_path / "here").mkdir()
    data = datasets.Dataset.from_dict({"image": paths, "labels": [["b"], [], ["c", "b"]], "boxes": boxes})
    data.to_parquet(str(tmp_path / "here/table.parquet"))
    splits = load(tmp_path / "here/table.parquet")
    assert (splits.classes, splits.train.labels.tolist()) == (["b", "c"], [[1, 0], [0, 0], [1, 1]])
    mask = np.asarray(splits.train.mask(0)) > 0
    assert mask.sum() == mask[2:4, 1:4].sum() == 6
    assert not np.asarray(splits.train.mask(1)).any()
    assert splits.train.mask(2) is None


def test_several_labels_in_a_csv(tmp_path):
    splits = load(manifest(tmp_path, rows_of("b; a", "", "c")))
    assert splits.multi_label
    assert (splits.classes, splits.train.labels.tolist()) == (["a", "b", "c"], [[1, 1, 0], [0, 0, 0], [0, 0, 1]])
    splits = load(manifest(tmp_path, rows_of("a", "b", header="image,labels")))
    assert splits.train.labels.tolist() == [[1, 0], [0, 1]]


def test_a_saved_data_set(tmp_path):
    saved = {split: load_lesions(split, 4, 32) for split in ("train", "test")}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "all"))
    splits = load(tmp_path / "all")
    assert (len(splits.train), splits.validation, len(splits.test)) == (4, None, 4)
    saved["train"].save_to_disk(str(tmp_path / "one"))
    assert load(tmp_path / "one").classes == splits.classes


def test_lists_of_classes_become_multi_hot(tmp_path):
    names = datasets.ClassLabel(names=["x", "y", "z"])
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.List(names)})
    image = Image.new("RGB", (4, 4))
    data = datasets.Dataset.from_dict({"image": [image] * 3, "labels": [[2], [], [0, 1]]}, features=features)
    data.save_to_disk(str(tmp_path))
    splits = load(tmp_path)
    assert (splits.classes, splits.train.labels.tolist()) == (["x", "y", "z"], [[0, 0, 1], [0, 0, 0], [1, 1, 0]])


# what is refused


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["0", "-1"], "label -1 in row 1 of split 'train' is out of range"),
        (["0.5", "1"], "of type double: expected class names"),
        (["0", ""], "row 1 of split 'train' has no label"),
        (["a", ""], "row 1 of split 'train' has no label"),
    ],
)
def test_labels_are_checked(tmp_path, cells, message):
    with pytest.raises(ValueError, match=message):
        load(manifest(tmp_path, rows_of(*cells)))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["0,train", "1,train", "2,test"], "label 2 in row 0 of split 'test' is out of range: expected 0 to 1"),
        (["a,train", "b,test"], "split 'test' has classes that the training split does not have: b"),
        (["a,train", "b,"], "row 1 of manifest .* has no split"),
        (["a,test"], "no training split 'train' in .*: it has test"),
    ],
)
def test_splits_must_agree(tmp_path, cells, message):
    with pytest.raises(ValueError, match=message):
        load(manifest(tmp_path, rows_of(*cells, header="image,label,split")))


@pytest.mark.parametrize(("hot", "row"), [([[0, 1], [2, 0]], 1), ([[0, 1], [1, 0, 0]], 1), ([[0.5, 1], [1, 0]], 0)])
def test_multi_hot_is_checked(tmp_path, hot, row):
    data = datasets.Dataset.from_dict({"image": ["a.png"] * 2, "labels": hot})
    data.to_parquet(str(tmp_path / "table.parquet"))
    with pytest.raises(ValueError, match=f"in row {row} of split 'train' are not multi-hot: expected 2 times 0 or 1"):
        load(tmp_path / "table.parquet")


def test_a_class_without_training_images_is_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        splits = load(manifest(tmp_path, rows_of("0", "3")))
    assert len(splits.classes) == 4
    assert "no training image has any of these classes: 1, 2" in caplog.text


def test_one_class_is_not_enough(tmp_path):
    with pytest.raises(ValueError, match="the data has one class, 'a': at least two are needed"):
        load(manifest(tmp_path, rows_of("a", "a")))
    paint(tmp_path / "folder/dog/1.png")
    with pytest.raises(ValueError, match="the data has one class, the folder .*/dog: at least two are needed"):
        load(tmp_path / "folder")
    paint(tmp_path / "flat/1.png")
    with pytest.raises(ValueError, match="no column 'label'"):
        load(tmp_path / "flat")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_column": "grade"}, "no column 'grade' for the label: it has image, label"),
        ({"image_column": "file"}, "no column 'file' for the image"),
        ({"mask_column": "lesion"}, "no column 'lesion' for the mask"),
        ({"group_column": "person", "hold_out": 0.5}, "no column 'person' for the group"),
        ({"validation_split": "dev"}, "no split 'dev' in .*: it has train"),
        ({"hold_out": 0.01}, "hold_out=0.01 of 2 images leave nothing for validation"),
        ({"folds": 3, "fold": 2}, "folds=3 .* of 2 images leave nothing for test"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        load(manifest(tmp_path, rows_of("a", "b")), **settings)


def test_places_that_hold_no_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder /nowhere"):
        load("/nowhere")
    with pytest.raises(FileNotFoundError, match="there is no manifest"):
        load(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="has no image in it"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"notes.txt is a .txt file"):
        load(tmp_path / "notes.txt")
    for text in ("", "image,label\n"):
        (tmp_path / "empty.csv").write_text(text)
        with pytest.raises(ValueError, match="empty.csv"):
            load(tmp_path / "empty.csv")


# division


def test_turns_keep_to_their_shares():
    assert round_robin(np.array([1 / 3] * 3), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    shares = np.array([0.8, 0.2])
    given = round_robin(shares, 1000)
    for start, stop in ((0, 1000), (3, 48), (500, 507)):
        assert abs((given[start:stop] == 1).sum() - 0.2 * (stop - start)) <= 1


def test_every_part_has_its_share_of_every_class():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 37, 11]))
    parts = assign_parts(labels, [0.2] * 5, seed=1)
    counts = np.array([np.bincount(labels[parts == part], minlength=3) for part in range(5)])
    assert (np.abs(counts - counts.sum(axis=0) / 5) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 1
    assert (assign_parts(labels, [0.2] * 5, seed=1) == parts).all()
    assert (assign_parts(labels, [0.2] * 5, seed=2) != parts).any()


def test_groups_are_never_divided():
    rng = np.random.default_rng(0)
    persons = np.repeat(np.arange(171), rng.integers(1, 30, 171))
    labels = rng.integers(0, 3, 171)[persons]
    parts = assign_parts(labels, [0.2] * 5, seed=0, groups=persons)
    assert all(len(set(parts[persons == person])) == 1 for person in range(171))
    counts = np.array([np.bincount(labels[parts == part], minlength=3) for part in range(5)])
    assert (np.abs(counts / counts.sum(axis=0) - 0.2) < 0.02).all()
    held = assign_parts(labels, [0.9, 0.1], seed=0, groups=persons)
    assert abs((held == 1).mean() - 0.1) < 0.02


def test_folds_with_persons_and_a_held_out_part(tmp_path):
    person_of = [0, 1, 1, 2, 0, 3, 4, 2, 5, 3, 5, 4]
    cells = [f"{'ab'[person % 2]},{person}" for person in person_of]
    path = manifest(tmp_path, rows_of(*cells, header="image,label,person"))
    tested = []
    for fold in range(3):
        splits = load(path, folds=3, fold=fold, hold_out=0.5, group_column="person")
        parts = [
            {int(row) for row in samples.row_numbers} for samples in (splits.train, splits.validation, splits.test)
        ]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 12
        persons = [{person_of[row] for row in part} for part in parts]
        assert not persons[0] & persons[1] | persons[1] & persons[2] | persons[0] & persons[2]
        assert [sorted(samples.labels) for samples in (splits.train, splits.test)] == [[0, 0, 1, 1]] * 2
        assert splits.test.labels.tolist() == [person_of[row] % 2 for row in splits.test.row_numbers]
        assert splits.test.image(0).getpixel((0, 0)) == (10 * int(splits.test.row_numbers[0]), 0, 0)
        tested += parts[2]
    assert sorted(tested) == list(range(12))


def test_a_held_out_part_takes_the_place_of_a_validation_split():
    splits = load("lesions", train_count=40, eval_count=4, data_size=32, hold_out=0.2)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (32, 8, 4)
    assert np.bincount(splits.validation.labels).tolist() == [2, 2, 2, 2]


# streams


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


def test_a_stream_goes_past_unreadable_images_or_stops(tmp_path):
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
def test_a_stream_without_end_shows_every_image_and_goes_on_where_it_was_cut_off(workers, unreadable):
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


def test_a_stream_that_goes_on_does_not_look_at_what_was_seen(monkeypatch):
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


def test_a_stream_without_an_image_for_a_worker_ends(tmp_path):
    images = EndlessImageDataset(StreamedImageDataset(stream(unreadable="skip").train, pil_to_tensor), 4)
    images.images.samples.image = lambda row, position: None
    with pytest.raises(ValueError, match="split 'train' has no image for worker 0 of 1"):
        next(iter(images))


def test_a_stream_must_know_its_classes(tmp_path):
    with pytest.raises(ValueError, match="does not declare its class names"):
        load(manifest(tmp_path, rows_of("a", "b")), streaming=True)


# the Hub


READ_FROM_HUB = """
import sys
from softcam_hub.data.config import DataConfig
from softcam_hub.data.splits import load_splits
from softcam_hub.data.streaming import StreamedImageDataset
from torchvision.transforms.functional import pil_to_tensor
splits = load_splits(DataConfig(sys.argv[1], streaming=sys.argv[2] == "stream"))
if sys.argv[2] == "stream":
    labels = [int(sample["labels"]) for sample in StreamedImageDataset(splits.train, pil_to_tensor, buffer=0)]
else:
    labels = splits.train.labels.tolist()
image = splits.validation.image(1)
print(splits.classes, labels, splits.validation.labels.tolist(), image.getpixel((3, 3)), splits.test)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["download", "stream"])
@pytest.mark.parametrize("kind", ["parquet", "files"])
def test_a_data_set_on_the_hub(tmp_path, kind, how):
    files = {}
    for split in ("train", "validation"):
        for number in range(4):
            files[f"{split}/{'ab'[number % 2]}/{number}.png"] = paint(tmp_path / "x.png", (9, number, 0)).read_bytes()
    files = dict(sorted(files.items()))
    expected = "['a', 'b'] [0, 0, 1, 1] [0, 0, 1, 1] (9, 2, 0) None"
    if kind == "parquet":
        for path, content in files.items():
            (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / path).write_bytes(content)
        for split, data in datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "folder")).items():
            data.to_parquet(str(tmp_path / f"{split}.parquet"))
            files[f"data/{split}-00000-of-00001.parquet"] = (tmp_path / f"{split}.parquet").read_bytes()
        files = {path: content for path, content in files.items() if path.startswith("data/")}
    with HubServer() as hub:
        hub.add_repo("tester/images", files, repo_type="dataset")
        command = [sys.executable, "-c", READ_FROM_HUB, "tester/images", how]
        env = {**os.environ, **hub.env(tmp_path / "home")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.stdout.strip() == expected, done.stderr
