"""Read the data set that `--data` names as splits, with images left undecoded.

- `datasets` would put an image into the test split because its file name has "test" in it. Image folders are
  therefore passed on with their splits named: by the folders `train`, `validation` and `test`, or all of it
  as training images. `split_names.py` has other names of splits.
- In a manifest a class may be called "None" or "NA": only an empty cell is a missing value.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from glob import escape
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..models.images import FORMAT_NAMES, find_images_in
from ..models.text import as_unicode, printable
from . import fundus, lesions
from .columns import name_label_column
from .config import DataConfig
from .labels import declared_classes
from .lesions import LESIONS, VARIANTS
from .locations import ANY_ADDRESS, Locations
from .split_names import splits_of_names, usual_split

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_MANIFEST_FORMATS = {".csv": "csv", ".parquet": "parquet"}

logger = logging.getLogger(__name__)


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
        if path.is_dir():
            logger.warning(
                "%s stands for generated images, and the folder ./%s is not read: write ./%s for it",
                *(config.data, config.data, config.data),
            )
        return _generate(config)
    if path.suffix.lower() in _MANIFEST_FORMATS:
        return Source(_read_manifest(path, config), Locations(path.resolve().parent, addresses))
    if path.is_dir():
        folder = path.resolve()
        return Source(_read_folder(folder, config), Locations(Path() if _is_saved(folder) else folder, addresses))
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
    """Return the beginnings of the addresses of files on the Hub."""
    from datasets.config import HF_ENDPOINT

    return ("hf://", f"{HF_ENDPOINT}/")


def _is_saved(folder: Path) -> bool:
    """Tell whether a folder holds what `save_to_disk` of `datasets` wrote."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


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
        raise FileNotFoundError(f"there is no manifest {printable(path)}: check the path of --data")
    format_name = _MANIFEST_FORMATS[path.suffix.lower()]
    options: dict[str, Any] = {"keep_default_na": False, "na_values": [""]} if format_name == "csv" else {}
    try:
        files = {"train": [escape(str(path.resolve()))]}  # datasets takes patterns
        table = load_dataset(format_name, data_files=files, split="train", **options)
    except Exception as error:  # datasets wraps what pandas and pyarrow raise in errors of many kinds
        reason = error.__cause__ or error
        raise ValueError(f"manifest {printable(path)} cannot be read as {format_name}: {reason}") from error
    if not len(table):
        raise ValueError(f"manifest {printable(path)} lists no image: expected a row for every image")
    if format_name == "csv":
        _refuse_equal_numbers([path], table, name_label_column(table.column_names, config))
    if "split" not in table.column_names:
        return {config.train_split: table}
    names = table["split"][:]
    if None in names:
        raise ValueError(f"row {names.index(None)} of manifest {printable(path)} has no split: fill in column 'split'")
    split_of = splits_of_names(dict.fromkeys(map(str, names)), config)
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(split_of[str(name)], []).append(row)
    _tell_unused_rows(path, rows_of, config)
    return {name: table.select(rows) for name, rows in rows_of.items()}


def _tell_unused_rows(path: Path, rows_of: dict[str, list[int]], config: DataConfig) -> None:
    """Warn of rows whose split is none of those that are read, as of a name with a slip of the pen."""
    for name, rows in rows_of.items():
        if usual_split(name) is None and name not in (config.train_split, *config.optional_splits):
            logger.warning(
                "%d rows of manifest %s are not used, because their split is %r: expected train, validation or test",
                *(len(rows), printable(path), name),
            )


def _refuse_equal_numbers(files: Iterable[Path], table: "Dataset", column: str) -> None:
    """Raise ValueError where two labels that are written differently, such as 01 and 1, were read as one number.

    Args:
        files: CSV files of which the table was made.
        table: What was read.
        column: Column of the labels.
    """
    if column not in table.column_names or table.features[column].dtype != "int64":
        return
    if declared_classes(table.features[column]) is not None:
        return  # labels are the names of folders
    import pandas  # as `datasets` reads the files

    written: dict[int, str] = {}
    for file in files:
        rows = pandas.read_csv(file, dtype=str, keep_default_na=False)
        labels = rows[column].str.strip().unique() if column in rows else []
        for label in filter(None, labels):
            known = written.setdefault(int(label), label)
            if known != label:
                raise ValueError(
                    f"{printable(file)} writes one number in two ways in column {column!r}, {known} and {label}: "
                    "write a class in one way, and begin names with a letter (class-01) where they are two classes"
                )


def _read_folder(path: Path, config: DataConfig) -> "dict[str, Any]":
    """Read a saved data set, an image folder, or the files of a Hub data set."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    if _is_saved(path):
        saved = load_from_disk(str(path))
        return _with_usual_names(dict(saved), config) if isinstance(saved, DatasetDict) else {config.train_split: saved}
    if next(find_images_in(path), None) is None:
        if next(path.rglob("*.parquet"), None) is None:
            raise ValueError(
                f"folder {printable(path)} has no image in it: expected <class>/<image>, or "
                f"<split>/<class>/<image>, and images of the formats {FORMAT_NAMES}"
            )
        return _read_hub(str(path), config)
    patterns = _split_patterns(path, config)
    files = {split: [f"{escape(str(path))}/{pattern}" for pattern in of_split] for split, of_split in patterns.items()}
    try:
        splits = dict(load_dataset("imagefolder", data_files=files))
    except Exception as error:  # datasets wraps what goes wrong in errors of many kinds
        _refuse_names(path)
        reason = printable(error.__cause__ or error).removesuffix(".")
        raise ValueError(
            f"image folder {printable(path)} cannot be read: {reason}. "
            "If it has a file metadata.csv, each file_name in it is a path inside this folder"
        ) from error
    train = splits[config.train_split]
    if "label" in train.column_names and declared_classes(train.features["label"]) is not None:
        for pattern in chain.from_iterable(patterns.values()):
            _refuse_folders_in_classes(path / pattern.removesuffix("**"))
    tables = sorted(path.rglob("metadata.csv"))
    _refuse_equal_numbers(tables, train, name_label_column(train.column_names, config))
    if train.column_names == ["image"]:
        _refuse_one_class([path / pattern.removesuffix("**") for pattern in patterns[config.train_split]])
    return splits


def _with_usual_names(splits: "dict[str, Any]", config: DataConfig) -> "dict[str, Any]":
    """Rename splits such as `val`, where the data have none of the usual name."""
    split_of = splits_of_names(splits, config)
    taken = [*splits, *(split for name, split in split_of.items() if split != name)]
    return {split_of[name] if taken.count(split_of[name]) == 1 else name: table for name, table in splits.items()}


def _refuse_names(path: Path) -> None:
    """Raise ValueError for a file with a name that keeps `datasets` from reading the folder."""
    for file in find_images_in(path):
        if as_unicode(file) != str(file):
            raise ValueError(f"the name of {printable(file)} is not UTF-8, and tables of images hold UTF-8: rename it")
        if "::" in str(file):
            raise ValueError(
                f"the name of {printable(file)} holds '::', which stands for a file in an archive: rename it"
            )


def _refuse_one_class(roots: list[Path]) -> None:
    """Raise ValueError where all images are of one class. `datasets` then gives no labels."""
    folders = {file.parent for root in roots for file in find_images_in(root)}
    if len(folders) == 1 and not folders & set(roots):
        raise ValueError(f"the data has one class, the folder {printable(folders.pop())}: at least two are needed")


def _refuse_folders_in_classes(root: Path) -> None:
    """Raise ValueError for images in folders of folders, whose innermost ones `datasets` takes for the classes.

    One folder around all classes is no question.

    Args:
        root: Folder of a split.
    """
    inner = sorted({file.parent.relative_to(root) for file in find_images_in(root)})
    while inner and len({folder.parts[0] for folder in inner if folder.parts}) == 1 and len(inner) > 1:
        inner = [folder.relative_to(folder.parts[0]) for folder in inner if folder.parts]
    deep = next((folder for folder in inner if len(folder.parts) > 1), None)
    if deep is not None:
        raise ValueError(
            f"image folder {printable(root)} has images in {printable(deep)}, so that {printable(deep.parts[0])} or "
            f"{printable(deep.name)} may be the class: expected <class>/<image>. A manifest can name the class, "
            "and the patient in the column of --group-column"
        )


def _split_patterns(path: Path, config: DataConfig) -> dict[str, list[str]]:
    """Return split -> glob patterns of the files in an image folder, as `datasets` takes them.

    The training split comes first: where a split has images of one class alone, `datasets` gives it labels only if it
    has seen several classes before.
    """
    splits = (config.train_split, config.validation_split, config.test_split)
    folders = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
    split_of = splits_of_names(folders, config)
    if config.train_split not in split_of.values():
        _refuse_splits_without_training(path, split_of)
        return {config.train_split: ["**"]}
    if (path / "metadata.csv").is_file():
        raise ValueError(
            f"image folder {printable(path)} has a metadata.csv beside the folders of its splits, where it belongs to "
            "none of them: put one into the folder of every split, or name a manifest with a column 'split'"
        )
    # Folders beside the splits, such as masks, are no splits and need not hold images.
    patterns: dict[str, list[str]] = {config.train_split: []}
    for name, split in split_of.items():
        if split in splits:
            patterns.setdefault(split, []).append(f"{name}/**")
    return patterns


def _refuse_splits_without_training(path: Path, split_of: dict[str, str]) -> None:
    """Raise ValueError where all folders are named like splits, which would otherwise be classes."""
    if len(split_of) > 1 and all(usual_split(name) for name in split_of):
        raise ValueError(
            f"image folder {printable(path)} has the splits {', '.join(map(printable, split_of))} and no training "
            "split: expected a folder 'train', or --train_split with the name of one of them"
        )


def _read_hub(name: str, config: DataConfig) -> "dict[str, Any]":
    """Read a data set on the Hub, or a folder with the files of one."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return _with_usual_names(dict(load_dataset(name, config.data_name, streaming=config.streaming)), config)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"{name!r} is neither a generated variant ({', '.join(VARIANTS)}), nor a folder or manifest here, "
            f"nor a data set on the Hub that can be reached: {error}"
        ) from error
