"""Data sets of every form are loaded as splits, and labels, columns and settings are checked."""

import logging

import datasets
import numpy as np
import pytest
from helpers.data import load, manifest, manifest_text, paint
from helpers.hub_server import HubServer
from helpers.warm import WarmPython
from PIL import Image
from transformers import HfArgumentParser

from softcam_hub.data import load_lesions
from softcam_hub.data.config import AugmentationConfig, DataConfig

pytestmark = pytest.mark.usefixtures("dataset_cache")


def test_every_field_is_a_flag_with_help():
    parser = HfArgumentParser([DataConfig, AugmentationConfig])
    flags = ["--data", "x", "--hold-out", "0.25", "--group-column", "person", "--no-augment", "--eval-crop", "0.875"]
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
        ({"folds": -1}, "folds must be at least 0, got -1"),
        ({"fold": 2}, "folds is 0"),
        ({"folds": 5, "fold": 5}, "from 0 to 4"),
        ({"train_count": 0}, "at least 1"),
        ({"data_seed": -1}, "data_seed must be at least 0, got -1"),
        ({"streaming": True, "hold_out": 0.1}, "a stream cannot be divided"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


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


def test_folders_of_patients_are_no_classes(tmp_path):
    for name in ("healthy/p1", "healthy/p2", "sick/p1", "sick/p3"):
        paint(tmp_path / f"data/{name}/1.png")
    with pytest.raises(ValueError, match=r"has images in healthy/p1, so that healthy or p1 may be the class: expected"):
        load(tmp_path / "data")
    for split in ("train", "test"):
        for name in ("healthy/p1", "sick/p2"):
            paint(tmp_path / f"split/{split}/{name}/1.png")
    with pytest.raises(ValueError, match=r"split/train has images in healthy/p1"):
        load(tmp_path / "split")
    for name in ("cat", "dog"):
        paint(tmp_path / f"wrapped/images/{name}/1.png")
    assert load(tmp_path / "wrapped").classes == ["cat", "dog"], "one folder around all is no question"


def test_a_test_folder_may_have_one_class(tmp_path):
    for name in ("train/cat", "train/dog", "test/dog"):
        paint(tmp_path / f"{name}/1.png")
    splits = load(tmp_path)
    assert (splits.classes, splits.test.labels.tolist()) == (["cat", "dog"], [1])


def test_a_table_beside_the_folders_of_splits_is_refused(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat"):
        paint(tmp_path / f"{name}/1.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/cat/1.png,cat\n")
    with pytest.raises(ValueError, match=r"has a metadata.csv beside the folders of its splits"):
        load(tmp_path)


def test_names_of_folders_with_the_signs_of_patterns(tmp_path):
    folder = tmp_path / "photos [1]*"
    for name in ("cat", "dog"):
        paint(folder / f"{name}/1.png")
    assert load(folder).classes == ["cat", "dog"]
    table = manifest(folder, manifest_text("a", "b"))
    assert load(table).classes == ["a", "b"]


def test_masks_in_a_table_lie_beside_it_wherever_the_program_runs(tmp_path, monkeypatch):
    lines = ["file_name,mask,label"]
    for number in range(4):
        paint(tmp_path / f"data/{number}.png")
        paint(tmp_path / f"data/masks/{number}.png", (1, 1, 1))
        paint(tmp_path / f"elsewhere/masks/{number}.png", (0, 0, 0))
        lines.append(f"{number}.png,masks/{number}.png,{'ab'[number % 2]}")
    for number in range(4):  # images in a folder of the table are images of the table
        lines.append(f"masks/{number}.png,,{'ab'[number % 2]}")
    (tmp_path / "data/metadata.csv").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path / "elsewhere")
    splits = load(tmp_path / "data")
    assert np.asarray(splits.train.mask(0)).min() == 255


def test_a_folder_with_the_name_of_generated_images_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "marks").mkdir()
    load("marks", train_count=4, eval_count=4, data_size=32)
    assert "marks stands for generated images, and the folder ./marks is not read: write ./marks for it" in caplog.text


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
    path = manifest(tmp_path, manifest_text(*cells, header="image,label,split,mask"))
    splits = load(path, validation_split="val", test_split="exam")
    assert splits.classes == ["NA", "None"]
    assert [samples.labels.tolist() for samples in (splits.train, splits.validation, splits.test)] == [[1, 0], [1], [0]]
    assert splits.validation.image(0).getpixel((0, 0)) == (20, 0, 0)
    assert np.asarray(splits.train.mask(0)).min() == 255
    assert splits.train.mask(1) is None


def test_a_manifest_that_changed_is_read_again(tmp_path):
    assert load(manifest(tmp_path, manifest_text("a", "b"))).train.labels.tolist() == [0, 1]
    assert load(manifest(tmp_path, manifest_text("b", "a"))).train.labels.tolist() == [1, 0]


def test_labels_that_are_the_same_number_are_not_made_one_class_in_silence(tmp_path):
    path = manifest(tmp_path, manifest_text("0", "01", "1", "2"))
    with pytest.raises(ValueError, match="writes one number in two ways in column 'label', 01 and 1"):
        load(path)
    assert load(manifest(tmp_path, manifest_text("00", "01", "01"))).train.labels.tolist() == [0, 1, 1]
    long = manifest_text("0", "01", f'1,"{"x" * 200_000}"', header="image,label,notes")
    with pytest.raises(ValueError, match="01 and 1"):
        load(manifest(tmp_path, long))


def test_labels_in_the_tables_of_an_image_folder_that_are_the_same_number_are_refused(tmp_path):
    def write(split, *labels):
        lines = ["file_name,label"]
        for number, label in enumerate(labels):
            paint(tmp_path / f"data/{split}/{number}.png")
            lines.append(f"{number}.png,{label}")
        (tmp_path / "data" / split / "metadata.csv").write_text("\n".join(lines))

    write("train", "00", "01", "01")
    write("test", "00", "01")
    assert load(tmp_path / "data").train.labels.tolist() == [0, 1, 1]
    write("test", "0", "1")
    with pytest.raises(ValueError, match="writes one number in two ways in column 'label', 0.* and 0"):
        load(tmp_path / "data")


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
    splits = load(manifest(tmp_path, manifest_text("b; a", "", "c")))
    assert splits.multi_label
    assert (splits.classes, splits.train.labels.tolist()) == (["a", "b", "c"], [[1, 1, 0], [0, 0, 0], [0, 0, 1]])
    splits = load(manifest(tmp_path, manifest_text("a", "b", header="image,labels")))
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


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["0", "99999999999"], "label 99999999999 in row 1 of split 'train' is too large"),
        (["é", "e\u0301"], r"the classes 'e\\u0301' and '\\xe9' look alike"),
        (["a", "a "], "the classes 'a' and 'a ' look alike"),
        (["0", "-1"], "label -1 in row 1 of split 'train' is out of range"),
        (["0.5", "1"], "of type double: expected class names"),
        (["0", ""], "row 1 of split 'train' has no label"),
        (["a", ""], "row 1 of split 'train' has no label"),
    ],
)
def test_labels_are_checked(tmp_path, cells, message):
    with pytest.raises(ValueError, match=message):
        load(manifest(tmp_path, manifest_text(*cells)))


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
        load(manifest(tmp_path, manifest_text(*cells, header="image,label,split")))


@pytest.mark.parametrize(("hot", "row"), [([[0, 1], [2, 0]], 1), ([[0, 1], [1, 0, 0]], 1), ([[0.5, 1], [1, 0]], 0)])
def test_multi_hot_is_checked(tmp_path, hot, row):
    data = datasets.Dataset.from_dict({"image": ["a.png"] * 2, "labels": hot})
    data.to_parquet(str(tmp_path / "table.parquet"))
    with pytest.raises(ValueError, match=f"in row {row} of split 'train' are not multi-hot: expected 2 times 0 or 1"):
        load(tmp_path / "table.parquet")


def test_a_class_without_training_images_is_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        splits = load(manifest(tmp_path, manifest_text("0", "3")))
    assert len(splits.classes) == 4
    assert "no training image has any of these classes: 1, 2" in caplog.text


def test_one_class_is_not_enough(tmp_path):
    with pytest.raises(ValueError, match="the data has one class, 'a': at least two are needed"):
        load(manifest(tmp_path, manifest_text("a", "a")))
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
def test_missing_columns_and_splits_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        load(manifest(tmp_path, manifest_text("a", "b")), **settings)


def test_paths_without_data_are_refused(tmp_path):
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


def test_folds_with_persons_and_a_held_out_part(tmp_path):
    person_of = [0, 1, 1, 2, 0, 3, 4, 2, 5, 3, 5, 4]
    cells = [f"{'ab'[person % 2]},{person}" for person in person_of]
    path = manifest(tmp_path, manifest_text(*cells, header="image,label,person"))
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


def test_a_validation_split_is_held_out_where_there_is_none(tmp_path):
    cells = [f"{name},train" for name in "aaaaaaaaaabbbbbcccccccccc"]
    path = manifest(tmp_path, manifest_text(*cells, header="image,label,split"), images=len(cells))
    splits = load(path, hold_out=None)
    assert (len(splits.train), len(splits.validation), splits.test, splits.held_out) == (20, 5, None, 0.2)
    assert np.bincount(splits.validation.labels).tolist() == [2, 1, 2]
    assert not set(splits.train.row_numbers) & set(splits.validation.row_numbers)
    again, other = load(path, hold_out=None), load(path, hold_out=None, data_seed=1)
    assert again.validation.row_numbers.tolist() == splits.validation.row_numbers.tolist()
    assert other.validation.row_numbers.tolist() != splits.validation.row_numbers.tolist()
    for nothing in ({"hold_out": 0.0}, {"hold_out": None, "validation_split": ""}):
        assert load(path, **nothing).validation is None
    assert splits.names == ["validation", "train"]


def test_a_validation_split_of_the_data_is_kept_and_few_images_are_not_divided(tmp_path):
    cells = ["a,train", "b,train", "a,train", "b,train", "b,validation"]
    path = manifest(tmp_path, manifest_text(*cells, header="image,label,split"))
    splits = load(path, hold_out=None)
    assert (len(splits.train), len(splits.validation), splits.held_out) == (4, 1, 0.0)
    (tmp_path / "two").mkdir()
    splits = load(manifest(tmp_path / "two", manifest_text("a", "b")), hold_out=None)
    assert (len(splits.train), splits.validation, splits.held_out, splits.names) == (2, None, 0.0, ["train"])


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


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    """The files of a data set on the Hub, by their form."""
    root, files = tmp_path_factory.mktemp("repos"), {}
    for split in ("train", "validation"):
        for number in range(4):
            path = f"{split}/{'ab'[number % 2]}/{number}.png"
            files[path] = paint(root / "x.png", (9, number, 0)).read_bytes()
            (root / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
            (root / "folder" / path).write_bytes(files[path])
    tables = {}
    loaded = datasets.load_dataset("imagefolder", data_dir=str(root / "folder"), cache_dir=str(root / "cache"))
    for split, data in loaded.items():
        data.to_parquet(str(root / f"{split}.parquet"))
        tables[f"data/{split}-00000-of-00001.parquet"] = (root / f"{split}.parquet").read_bytes()
    return {"files": dict(sorted(files.items())), "parquet": tables}


@pytest.fixture(scope="module")
def read_from_hub(repos, tmp_path_factory):
    """Return a function that reads a data set of some form in a process of its own."""
    with HubServer() as hub, WarmPython(**hub.env(tmp_path_factory.mktemp("home"))) as python:

        def read(form, how):
            hub.add_repo(f"tester/{form}-{how}", repos[form], repo_type="dataset")
            return python.run("-c", READ_FROM_HUB, f"tester/{form}-{how}", how)

        yield read


@pytest.mark.slow
@pytest.mark.parametrize("how", ["download", "stream"])
@pytest.mark.parametrize("form", ["parquet", "files"])
def test_a_data_set_on_the_hub(form, how, read_from_hub):
    done = read_from_hub(form, how)
    assert done.stdout.strip() == "['a', 'b'] [0, 0, 1, 1] [0, 0, 1, 1] (9, 2, 0) None", done.stderr
