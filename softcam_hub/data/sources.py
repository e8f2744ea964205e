"""Read the data set that `--data` names as splits, with images left undecoded.

- `datasets` would put an image into the test split because its file name has "test" in it. Image folders are
  therefore passed on with their splits named: by the folders `train`, `validation` and `test`, or all of it
  as training images.
- In a manifest a class may be called "None" or "NA": only an empty cell is a missing value.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..models.images import FORMAT_NAMES, SUFFIXES
from ..models.text import as_unicode, printable
from . import fundus, lesions
from .config import DataConfig
from .lesions import LESIONS, VARIANTS
from .locations import ANY_ADDRESS, Locations

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_MANIFEST_FORMATS = {".csv": "csv", ".parquet": "parquet"}
_SPLIT_OF_FOLDER = {
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "training": "train",
    "testing": "test",
}


class Source(NamedTuple):
    """A data set before its labels are read and its splits divided.

    Args:
        splits: Split -> table.
        locations: Places that image paths lead to.
        classes: Class names, where the features do not declare them.
    """

    splits: "dict[str, Dataset] | dict[str, IterableDataset]"
    locations: Locations = Locations()
    classes: list[str] | None = None


def read_source(config: DataConfig) -> Source:
    """Recognise what `config.data` names, and read it."""
    path = Path(config.data).expanduser()
    addresses = ANY_ADDRESS if config.remote_images else ()
    if config.data in VARIANTS:
        return _generate(config)
    if path.suffix.lower() in _MANIFEST_FORMATS:
        return Source(_read_manifest(path, config), Locations(path.resolve().parent, addresses))
    if path.is_dir():
        return Source(_read_folder(path.resolve(), config), Locations(addresses=addresses))
    if path.is_file():
        raise ValueError(
            f"{printable(path)} is a {printable(path.suffix) or 'nameless'} file: expected a folder, or a "
            ".csv or .parquet manifest"
        )
    if path.is_absolute() or config.data.startswith((".", "~")) or config.data.count("/") > 1:
        raise FileNotFoundError(
            f"there is no folder {printable(path)}: expected an image folder, a manifest or a Hub data set"
        )
    return Source(_read_hub(config.data, config), Locations(addresses=addresses or _hub_addresses()))


def _hub_addresses() -> tuple[str, ...]:
    """Return the beginnings of the addresses of files that are part of a Hub data set."""
    from datasets.config import HF_ENDPOINT

    return ("hf://", f"{HF_ENDPOINT}/")


def _generate(config: DataConfig) -> Source:
    counts = {"train": config.train_count, "validation": config.eval_count, "test": config.eval_count}
    needed = {config.train_split, *config.optional_splits}
    splits = {split: _generate_split(split, count, config) for split, count in counts.items() if split in needed}
    return Source(splits, classes=list(LESIONS) if config.data == "labels" else None)


def _generate_split(split: str, count: int, config: DataConfig) -> "Dataset":
    """Generate the images of `load_lesions` once, and then read them from the cache of `datasets`."""
    from datasets import Dataset

    settings = {"split": split, "size": config.data_size, "variant": config.data, "seed": config.data_seed}
    features = lesions.load_lesions(count=1, **settings).features
    sources = [Path(str(module.__file__)).read_bytes() for module in (fundus, lesions)]
    code = hashlib.sha256(b"".join(sources)).hexdigest()
    arguments = {"count": count, "code": code, **settings}
    return Dataset.from_generator(_generate_rows, gen_kwargs=arguments, features=features)


def _generate_rows(code: str, **settings: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of `load_lesions`. A change of `code` makes the cache forget older images."""
    yield from lesions.load_lesions(**settings)


def _read_manifest(path: Path, config: DataConfig) -> "dict[str, Dataset]":
    """Read a table of image paths and labels, and divide it by its column `split` if it has one."""
    from datasets import load_dataset

    if not path.is_file():
        raise FileNotFoundError(f"there is no manifest {printable(path)}")
    format_name = _MANIFEST_FORMATS[path.suffix.lower()]
    options: dict[str, Any] = {"keep_default_na": False, "na_values": [""]} if format_name == "csv" else {}
    try:
        table = load_dataset(format_name, data_files={"train": [str(path.resolve())]}, split="train", **options)
    except Exception as error:  # datasets wraps what pandas and pyarrow raise in errors of many kinds
        reason = error.__cause__ or error
        raise ValueError(f"manifest {printable(path)} cannot be read as {format_name}: {reason}") from error
    if not len(table):
        raise ValueError(f"manifest {printable(path)} lists no image")
    if format_name == "csv":
        _refuse_equal_numbers(path, table, config.label_column)
    if "split" not in table.column_names:
        return {config.train_split: table}
    names = table["split"][:]
    if None in names:
        raise ValueError(f"row {names.index(None)} of manifest {printable(path)} has no split: fill in column 'split'")
    rows_of: dict[Any, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(name, []).append(row)
    return {str(name): table.select(rows) for name, rows in rows_of.items()}


def _refuse_equal_numbers(path: Path, table: "Dataset", column: str) -> None:
    """Raise ValueError where two labels that are written differently, such as 01 and 1, were read as one number."""
    if column not in table.column_names or table.features[column].dtype != "int64":
        return
    import pandas  # as `datasets` reads the file

    written: dict[int, str] = {}
    labels = pandas.read_csv(path, usecols=[column], dtype=str, keep_default_na=False)[column]
    for label in filter(None, labels.str.strip().unique()):
        known = written.setdefault(int(label), label)
        if known != label:
            raise ValueError(
                f"manifest {printable(path)} writes one number in two ways in column {column!r}, {known} and {label}: "
                "write a class in one way, and begin names with a letter (class-01) where they are two classes"
            )


def _read_folder(path: Path, config: DataConfig) -> "dict[str, Any]":
    """Read a saved data set, an image folder, or the files of a Hub data set."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = load_from_disk(str(path))
        return dict(saved) if isinstance(saved, DatasetDict) else {config.train_split: saved}
    if next(find_images(path), None) is None:
        if next(path.rglob("*.parquet"), None) is None:
            raise ValueError(
                f"folder {printable(path)} has no image in it: expected <class>/<image>, or "
                f"<split>/<class>/<image>, and images of the formats {FORMAT_NAMES}"
            )
        return _read_hub(str(path), config)
    patterns = _split_patterns(path, config)
    try:
        splits = dict(load_dataset("imagefolder", data_dir=str(path), data_files=patterns))
    except Exception as error:  # datasets wraps what goes wrong in errors of many kinds
        _refuse_names(path)
        reason = printable(error.__cause__ or error).removesuffix(".")
        raise ValueError(
            f"image folder {printable(path)} cannot be read: {reason}. "
            "If it has a file metadata.csv, each file_name in it is a path inside this folder"
        ) from error
    if splits[config.train_split].column_names == ["image"]:
        _refuse_one_class([path / pattern.removesuffix("**") for pattern in patterns[config.train_split]])
    return splits


def _refuse_names(path: Path) -> None:
    """Raise ValueError for a file with a name that keeps `datasets` from reading the folder."""
    for file in find_images(path):
        if as_unicode(file) != str(file):
            raise ValueError(f"the name of {printable(file)} is not UTF-8, and tables of images hold UTF-8: rename it")
        if "::" in str(file):
            raise ValueError(
                f"the name of {printable(file)} holds '::', which stands for a file in an archive: rename it"
            )


def _refuse_one_class(roots: list[Path]) -> None:
    """Raise ValueError where all images are of one class. `datasets` then gives no labels."""
    folders = {file.parent for root in roots for file in find_images(root)}
    if len(folders) == 1 and not folders & set(roots):
        raise ValueError(f"the data has one class, the folder {printable(folders.pop())}: at least two are needed")


def find_images(path: Path) -> Iterator[Path]:
    """Yield the images in a folder, at any depth."""
    return (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def _split_patterns(path: Path, config: DataConfig) -> dict[str, list[str]]:
    """Return split -> glob patterns of the files in an image folder, as `datasets` takes them."""
    splits = (config.train_split, config.validation_split, config.test_split)
    folders = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
    split_of = {name: name if name in splits else _SPLIT_OF_FOLDER.get(name, name) for name in folders}
    if config.train_split not in split_of.values():
        return {config.train_split: ["**"]}
    # Folders beside the splits, such as masks, are no splits and need not hold images.
    return {split: [f"{name}/**"] for name, split in split_of.items() if split in splits}


def _read_hub(name: str, config: DataConfig) -> "dict[str, Any]":
    """Read a data set on the Hub, or a folder with the files of one."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return dict(load_dataset(name, config.data_name, streaming=config.streaming))
    except (DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"{name!r} is neither a generated variant ({', '.join(VARIANTS)}), nor a folder or manifest here, "
            f"nor a data set on the Hub that can be reached: {error}"
        ) from error
