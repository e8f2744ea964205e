"""What `--data` names -> the splits that are there, read by `datasets`, with images left undecoded.

- `datasets` would take an image for a test image because its file name has "test" in it. Image folders are therefore
  handed over with their splits named: by the folders `train`, `validation`, `test`, or all of it as training images.
- In a manifest a class may be called "None" or "NA": only an empty cell is a missing value.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import lesions
from .config import DataConfig
from .decoding import EXPECTED, SUFFIXES
from .labels import abbreviate
from .lesions import LESIONS, VARIANTS
from .locations import ANY_ADDRESS, Locations
from .text import as_unicode, printable

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_MANIFESTS = {".csv": "csv", ".parquet": "parquet"}
_FOLDERS = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train", "testing": "test"}


class Source(NamedTuple):
    """Data before labels are read and splits divided.

    Args:
        splits: name -> rows.
        locations: Places that image paths lead to.
        classes: names, where the features do not have them.
    """

    splits: "dict[str, Dataset] | dict[str, IterableDataset]"
    locations: Locations = Locations()
    classes: list[str] | None = None


def read_source(config: DataConfig) -> Source:
    """Find out what kind of data is meant, and read it."""
    path = Path(config.data).expanduser()
    addresses = ANY_ADDRESS if config.remote_images else ()
    if config.data in VARIANTS:
        return _generated(config)
    if path.suffix.lower() in _MANIFESTS:
        return Source(_manifest(path, config), Locations(path.resolve().parent, addresses))
    if path.is_dir():
        return Source(_folder(path.resolve(), config), Locations(addresses=addresses))
    if path.is_file():
        raise ValueError(
            f"{printable(path)} is a {printable(path.suffix) or 'nameless'} file: expected a folder, or a "
            ".csv or .parquet manifest"
        )
    if path.is_absolute() or config.data.startswith((".", "~")) or config.data.count("/") > 1:
        raise FileNotFoundError(
            f"there is no folder {printable(path)}: expected an image folder, a manifest or a Hub data set"
        )
    return Source(_hub(config.data, config), Locations(addresses=addresses or _own_addresses()))


def _own_addresses() -> tuple[str, ...]:
    """Return the beginnings of the addresses of files that are part of a Hub data set."""
    from datasets.config import HF_ENDPOINT

    return ("hf://", f"{HF_ENDPOINT}/")


def _generated(config: DataConfig) -> Source:
    counts = {"train": config.train_count, "validation": config.eval_count, "test": config.eval_count}
    wanted = {config.train_split, *config.optional_splits}
    splits = {name: _drawn(name, count, config) for name, count in counts.items() if name in wanted}
    return Source(splits, classes=list(LESIONS) if config.data == "labels" else None)


def _drawn(split: str, count: int, config: DataConfig) -> "Dataset":
    """`load_lesions`, drawn once and then read from the cache of `datasets`."""
    from datasets import Dataset

    settings = {"split": split, "count": count, "size": config.data_size, "variant": config.data}
    settings |= {"seed": config.data_seed, "code": hashlib.sha256(Path(lesions.__file__).read_bytes()).hexdigest()}
    features = lesions.load_lesions(split, 1, config.data_size, config.data, config.data_seed).features
    return Dataset.from_generator(_draw, gen_kwargs=settings, features=features)


def _draw(code: str, **settings: Any) -> Iterator[dict[str, Any]]:
    """Rows of `load_lesions`; `code` makes the cache forget what older code has drawn."""
    yield from lesions.load_lesions(**settings)


def _manifest(path: Path, config: DataConfig) -> "dict[str, Dataset]":
    """A table of image paths and labels; its column `split`, if it has one, says which row is in which split."""
    from datasets import load_dataset

    if not path.is_file():
        raise FileNotFoundError(f"there is no manifest {printable(path)}")
    kind = _MANIFESTS[path.suffix.lower()]
    settings: dict[str, Any] = {"keep_default_na": False, "na_values": [""]} if kind == "csv" else {}
    try:
        table = load_dataset(kind, data_files={"train": [str(path.resolve())]}, split="train", **settings)
    except Exception as error:  # datasets wraps what pandas and pyarrow raise in errors of many kinds
        raise ValueError(f"manifest {printable(path)} cannot be read as {kind}: {error.__cause__ or error}") from error
    if not len(table):
        raise ValueError(f"manifest {printable(path)} lists no image")
    if "split" not in table.column_names:
        return {config.train_split: table}
    names = table["split"][:]
    if None in names:
        raise ValueError(f"row {names.index(None)} of manifest {printable(path)} has no split: fill in column 'split'")
    rows = {name: [row for row, own in enumerate(names) if own == name] for name in dict.fromkeys(names)}
    return {str(name): table.select(own) for name, own in rows.items()}


def _folder(path: Path, config: DataConfig) -> "dict[str, Any]":
    """A saved data set, an image folder, or the files of a Hub data set."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = load_from_disk(str(path))
        return dict(saved) if isinstance(saved, DatasetDict) else {config.train_split: saved}
    if next(_images(path), None) is None:
        if next(path.rglob("*.parquet"), None) is None:
            raise ValueError(
                f"folder {printable(path)} has no image in it: expected <class>/<image>, or "
                f"<split>/<class>/<image>, and images of the formats {EXPECTED}"
            )
        return _hub(str(path), config)
    patterns = _split_folders(path, config)
    try:
        found = dict(load_dataset("imagefolder", data_dir=str(path), data_files=patterns))
    except Exception as error:  # datasets wraps what goes wrong in errors of many kinds
        _refuse_names(path)
        raise ValueError(
            f"image folder {printable(path)} cannot be read: {printable(error.__cause__ or error).removesuffix('.')}. "
            "If it has a file metadata.csv, each file_name in it is a path inside this folder"
        ) from error
    if found[config.train_split].column_names == ["image"]:
        _refuse_one_class([path / pattern.removesuffix("**") for pattern in patterns[config.train_split]])
    return found


def _refuse_names(path: Path) -> None:
    """Name a file whose name is what keeps `datasets` from reading the folder."""
    for file in _images(path):
        if as_unicode(file) != str(file):
            raise ValueError(f"the name of {printable(file)} is not UTF-8, and tables of images hold UTF-8: rename it")
        if "::" in str(file):
            raise ValueError(
                f"the name of {printable(file)} holds '::', which stands for a file in an archive: rename it"
            )


def _refuse_one_class(roots: list[Path]) -> None:
    """`datasets` gives no labels where all images are of one class."""
    folders = {file.parent for root in roots for file in _images(root)}
    if len(folders) == 1 and not folders & set(roots):
        raise ValueError(f"the data has one class, the folder {printable(folders.pop())}: at least two are needed")


def _images(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def _split_folders(path: Path, config: DataConfig) -> dict[str, list[str]]:
    """Split -> glob patterns for `datasets`."""
    named = (config.train_split, config.validation_split, config.test_split)
    folders = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
    split_of = {name: name if name in named else _FOLDERS.get(name, name) for name in folders}
    if config.train_split not in split_of.values():
        return {config.train_split: ["**"]}
    # folders beside the splits (masks, say) become splits that nobody asks for, and need not hold images
    used = {name: split for name, split in split_of.items() if split in named}
    return {split: [f"{name}/**"] for name, split in used.items()}


def _hub(name: str, config: DataConfig) -> "dict[str, Any]":
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return dict(load_dataset(name, config.data_name, streaming=config.streaming))
    except (DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"{name!r} is neither a generated variant ({', '.join(VARIANTS)}), nor a folder or manifest here, "
            f"nor a data set on the Hub that can be reached: {error}"
        ) from error


def find_column(names: list[str], wanted: str, what: str, split: str) -> str:
    if wanted not in names:
        raise ValueError(
            f"split {split!r} has no column {wanted!r} for the {what}: it has {abbreviate(names, 20)}. "
            f"Name it with {what}_column; an image folder has labels if it has one folder per class, all at one depth"
        )
    return wanted
