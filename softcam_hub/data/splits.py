"""From a `DataConfig` to the splits that training and evaluation read.

- Labels are read and checked before any image is decoded; masks and boxes are optional.
- With `hold_out` the held-out part of the training split is the validation split, also where the data have their own;
  with `folds` one fold of the training split is the test split, also where the data have their own.
- A stream (`streaming=True`) is for training only: validation and test images are always loaded.
"""

import logging
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import DataConfig
from .image_paths import check_image_paths
from .labels import MULTI_LABEL_COLUMN, Labels, abbreviate, declared_classes, read_labels
from .locations import Locations
from .samples import Columns, Samples, disable_decoding, embed
from .sources import Source, find_column, read_source
from .stratification import assign_parts
from .streaming import StreamedSamples

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

_DEFAULTS = {field.name: field.default for field in fields(DataConfig)}


@dataclass(frozen=True)
class Splits:
    """What was loaded.

    Args:
        train: to learn from; `StreamedSamples` with `streaming`.
        validation: to choose by, if there is one.
        test: to report, if there is one.
        classes: names, in the order of the class indices of all splits.
        multi_label: whether labels are multi-hot (N, C) in place of indices (N,).
    """

    train: Samples | StreamedSamples | None
    validation: Samples | None
    test: Samples | None
    classes: list[str]
    multi_label: bool


def load_splits(config: DataConfig) -> Splits:
    """Read, check and divide the data that `config` names.

    Example: `load_splits(DataConfig("lesions", train_count=100)).train.image(0)`
    """
    source = read_source(config)
    used = _choose_splits(source.splits, config)
    if config.streaming:
        return _stream(source, used, config)
    columns = {name: _find_columns(data, name, config) for name, data in used.items()}
    labels = read_labels(used, columns[config.train_split].label, source.classes)
    if not labels.multi_label and len(labels.classes) < 2:
        raise ValueError(f"the data has one class, {labels.classes[0]!r}: at least two are needed")
    for name, data in used.items():
        check_image_paths(data, columns[name], name, source.locations, config.unreadable == "skip")
    parts = _divide(used[config.train_split], labels.values[config.train_split], config)
    make = partial(_make_rows, source, used, labels, columns, config)
    train = make(config.train_split, parts["train"])
    validation = make(config.train_split, parts["validation"]) if config.hold_out else make(config.validation_split)
    test = make(config.train_split, parts["test"]) if config.folds else make(config.test_split)
    _check_coverage(train, {name: rows for name, rows in (("validation", validation), ("test", test)) if rows}, labels)
    return Splits(train, validation, test, labels.classes, labels.multi_label)


def _choose_splits(splits: dict[str, Any], config: DataConfig) -> dict[str, Any]:
    """The training split, and of the others those that are there; a name that was asked for must be there."""
    there = ", ".join(splits)
    if config.train_split not in splits:
        raise ValueError(f"there is no training split {config.train_split!r} in {config.data!r}: it has {there}")
    chosen = {config.train_split: splits[config.train_split]}
    for name in config.optional_splits:
        if name in splits:
            chosen[name] = splits[name]
        elif name not in (_DEFAULTS["validation_split"], _DEFAULTS["test_split"]):
            raise ValueError(f"there is no split {name!r} in {config.data!r}: it has {there}")
    for name, data in chosen.items():
        if hasattr(data, "__len__") and not len(data):
            raise ValueError(f"split {name!r} of {config.data!r} is empty")
    return chosen


def _find_columns(data: "Dataset | IterableDataset", split: str, config: DataConfig) -> Columns:
    if data.features is None:
        raise ValueError(f"split {split!r} of {config.data!r} does not declare its columns: use streaming=False")
    names = list(data.features)
    label = config.label_column
    if label not in names and label == _DEFAULTS["label_column"] and MULTI_LABEL_COLUMN in names:
        label = MULTI_LABEL_COLUMN
    optional = {}
    for what in ("mask", "boxes"):
        name = getattr(config, f"{what}_column")
        if name in names or name != _DEFAULTS[f"{what}_column"]:
            optional[what] = find_column(names, name, what, split)
    return Columns(
        find_column(names, config.image_column, "image", split), find_column(names, label, "label", split), **optional
    )


def _divide(data: "Dataset", labels: np.ndarray, config: DataConfig) -> dict[str, np.ndarray]:
    """Rows of the training split for "train" and, as far as they are cut out of it, "validation" and "test"."""
    groups = _groups(data, config)
    rows, parts = np.arange(len(labels)), {}
    if config.folds:
        part = assign_parts(labels, [1 / config.folds] * config.folds, config.data_seed, groups)
        parts["test"], rows = rows[part == config.fold], rows[part != config.fold]
    if config.hold_out:
        shares = [1 - config.hold_out, config.hold_out]
        part = assign_parts(labels[rows], shares, config.data_seed, None if groups is None else groups[rows])
        parts["validation"], rows = rows[part == 1], rows[part == 0]
    parts["train"] = rows
    for name, own in parts.items():
        if not len(own):
            units = "images" if groups is None else f"groups of column {config.group_column!r}"
            count = len(labels) if groups is None else len(set(groups))
            raise ValueError(
                f"folds={config.folds} and hold_out={config.hold_out} of {count} {units} leave nothing for {name}"
            )
    return parts


def _groups(data: "Dataset", config: DataConfig) -> np.ndarray | None:
    """The group (N,) of every training image, as text, if a division is to respect groups."""
    if config.group_column is None or not (config.folds or config.hold_out):
        return None
    cells = data[find_column(data.column_names, config.group_column, "group", config.train_split)][:]
    if None in cells:
        raise ValueError(f"row {cells.index(None)} has no group in column {config.group_column!r}: fill it in")
    return np.asarray([str(cell) for cell in cells])


def _make_rows(
    source: Source,
    used: dict[str, Any],
    labels: Labels,
    columns: dict[str, Columns],
    config: DataConfig,
    name: str,
    rows: np.ndarray | None = None,
) -> Samples | None:
    if name not in used:
        return None
    made = Samples(used[name], labels.values[name], columns[name], name, source.locations, config.unreadable, rows)
    made.check_boxes()
    return made


def _check_coverage(train: Samples, others: dict[str, Samples], labels: Labels) -> None:
    """A class without a training image is worth a warning; one that a split of its own has besides is an error."""
    missing = ~_seen(train.labels, len(labels.classes))
    for rows in others.values():
        wrong = missing & _seen(rows.labels, len(labels.classes))
        if wrong.any() and rows.split != train.split:
            names = [labels.classes[index] for index in np.flatnonzero(wrong)]
            raise ValueError(f"split {rows.split!r} has classes that no training image has: {abbreviate(names)}")
    if missing.any():
        names = [labels.classes[index] for index in np.flatnonzero(missing)]
        logger.warning("no training image has any of these classes: %s", abbreviate(names))


def _seen(labels: np.ndarray, count: int) -> np.ndarray:
    """(C,) booleans: which classes occur."""
    return labels.any(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=count) > 0


def _stream(source: Source, used: dict[str, Any], config: DataConfig) -> Splits:
    """The training split as a stream, the others loaded."""
    stream, *_ = used.values()
    columns = _find_columns(stream, config.train_split, config)
    if hasattr(stream, "to_iterable_dataset"):
        check_image_paths(stream, columns, config.train_split, source.locations, config.unreadable == "skip")
        # a buffer does not mix what lies in the order of its classes, as folders do
        stream = stream.shuffle(seed=config.data_seed, keep_in_memory=True).to_iterable_dataset()
    feature = stream.features[columns.label]
    classes = source.classes or declared_classes(feature)
    if not classes:
        raise ValueError(
            f"column {columns.label!r} of {config.data!r} does not declare its class names, and a stream cannot be "
            "searched for them: use streaming=False"
        )
    train = StreamedSamples(stream, columns, classes, config.train_split, source.locations, config.unreadable)
    others = {name: _loaded(data, columns, source.locations) for name, data in list(used.items())[1:]}
    for name, data in others.items():
        check_image_paths(data, columns, name, source.locations, config.unreadable == "skip")
    labels = read_labels(others, columns.label, classes) if others else Labels({}, classes, False)
    make = partial(_make_rows, source, others, labels, dict.fromkeys(others, columns), config)
    return Splits(train, make(config.validation_split), make(config.test_split), classes, hasattr(feature, "feature"))


def _loaded(data: "Dataset | IterableDataset", columns: Columns, locations: Locations) -> "Dataset":
    """A stream as a data set on disk, in the cache of `datasets`."""
    from datasets import Dataset

    if isinstance(data, Dataset):
        return data
    return Dataset.from_generator(
        partial(embed, disable_decoding(data, columns), columns, locations), features=data.features
    )
