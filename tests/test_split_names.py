"""Splits under the names that people give them: no test image is trained on because a folder is called `Test`."""

import datasets
import pytest
from helpers.data import load, manifest, manifest_text, paint

pytestmark = pytest.mark.usefixtures("dataset_cache")


def folders(path, counts):
    """Write an image folder with the classes a and b in each of its splits."""
    for name, count in counts.items():
        for number in range(count):
            paint(path / name / "ab"[number % 2] / f"{number}.png", (number, 0, 0))
    return path


def sizes(splits):
    return [len(samples or ()) for samples in (splits.train, splits.validation, splits.test)]


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Val", "Test"),
        ("training_set", "validation_set", "test_set"),
        ("TRAIN", "dev", "Testing"),
        ("train", "valid", "test-set"),
    ],
)
def test_folders_and_values_of_a_column(names, tmp_path):
    counts = dict(zip(names, (6, 4, 2), strict=True))
    assert sizes(load(folders(tmp_path / "folder", counts))) == [6, 4, 2]
    cells = [f"{'ab'[number % 2]},{name}" for name, count in counts.items() for number in range(count)]
    assert sizes(load(manifest(tmp_path, manifest_text(*cells, header="image,label,split")))) == [6, 4, 2]


def test_two_folders_of_one_split_are_read_together(tmp_path):
    assert sizes(load(folders(tmp_path, {"train": 4, "val": 2, "validation": 4, "test": 2, "testing": 6}))) == [4, 6, 8]


def test_splits_without_a_training_split_are_no_classes(tmp_path):
    with pytest.raises(ValueError, match="has the splits Test, Val and no training split.*'train'.*--train_split"):
        load(folders(tmp_path / "folder", {"Test": 4, "Val": 2}).resolve())
    assert sizes(load(tmp_path / "folder", train_split="Test")) == [4, 2, 0]


def test_classes_may_be_called_as_a_split(tmp_path):
    for name in ("valid", "invalid"):
        for number in range(2):
            paint(tmp_path / name / f"{number}.png")
    assert load(tmp_path).classes == ["invalid", "valid"]


def test_a_name_that_the_settings_use_stays(tmp_path):
    splits = load(
        folders(tmp_path, {"Train": 4, "val": 2, "validation": 6}), train_split="Train", validation_split="val"
    )
    assert sizes(splits) == [4, 2, 0]


def test_rows_with_an_unknown_split_are_told(tmp_path, caplog):
    cells = ["a,train", "b,train", "a,tset", "b,tset", "b,tset"]
    assert sizes(load(manifest(tmp_path, manifest_text(*cells, header="image,label,split")))) == [2, 0, 0]
    assert "3 rows of manifest" in caplog.text
    assert "their split is 'tset'" in caplog.text


def test_a_saved_data_set_with_a_split_called_val(tmp_path):
    table = datasets.Dataset.from_dict({"image": [str(paint(tmp_path / "1.png"))] * 2, "label": ["a", "b"]})
    table = table.cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": table, "val": table}).save_to_disk(tmp_path / "saved")
    assert sizes(load(tmp_path / "saved")) == [2, 2, 0]
    datasets.DatasetDict({"train": table, "val": table, "validation": table}).save_to_disk(tmp_path / "both")
    assert sizes(load(tmp_path / "both")) == [2, 2, 0]
