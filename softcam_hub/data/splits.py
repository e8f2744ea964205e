"""Load the splits that training and evaluation read, as a `DataConfig` describes them.

- Labels are read and checked before any image is decoded. Masks and boxes are optional.
- With `hold_out` the held-out part of the training split is the validation split, even if the data have their
  own. Without a validation split, and without a choice of the user, a fifth of the training split is held out.
  With `folds` one fold of the training split is the test split, even if the data have their own.
- A stream (`streaming=True`) is for training only: validation and test images are always loaded.
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.text import abbreviate
from .columns import DEFAULTS, Columns, disable_decoding, find_column, find_columns
from .config import AUTOMATIC_HOLD_OUT, DataConfig
from .labels import Labels, declared_classes, read_labels, same_classes
from .locations import Locations, check_image_paths, embed_remote_images
from .samples import Samples
from .sources import Source, read_source
from .stratification import assign_parts
from .streaming import StreamedSamples

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """The splits of a data set.

    Args:
        train: Samples to learn from, `StreamedSamples` with `streaming`.
        validation: Samples to choose settings by, or None.
        test: Samples to report scores on, or None.
        classes: Class names in the order of the class indices of all splits.
        multi_label: Whether labels are multi-hot (N, C) in place of class indices (N,).
        held_out: Share of the training split that became the validation split.
    """

    train: Samples | StreamedSamples | None
    validation: Samples | None
    test: Samples | None
    classes: list[str]
    multi_label: bool
    held_out: float = 0.0

    @property
    def names(self) -> list[str]:
        """Splits that exist, of "test", "validation" and "train": the best to measure on comes first."""
        return [name for name in ("test", "validation", "train") if isinstance(getattr(self, name), Samples)]


def load_splits(config: DataConfig) -> Splits:
    """Read, check and divide a data set.

    Example: `load_splits(DataConfig("lesions", train_count=100)).train.image(0)`
    """
    source = read_source(config)
    tables = _choose_splits(source.splits, config)
    if config.streaming:
        return _load_stream(source, tables, config)
    columns = {split: find_columns(table, split, config) for split, table in tables.items()}
    labels = read_labels(tables, columns[config.train_split].label, source.classes)
    if not labels.multi_label and len(labels.classes) < 2:
        raise ValueError(f"the data has one class, {labels.classes[0]!r}: at least two are needed")
    make = partial(_make_samples, source, tables, labels, columns, config)
    _check_all_paths(source, tables, columns, config)
    held_out = _choose_hold_out(tables, config)
    parts = _divide(tables[config.train_split], labels.values[config.train_split], config, held_out)
    train = make(config.train_split, parts["train"])
    has_part = "validation" in parts
    validation = make(config.train_split, parts["validation"]) if has_part else make(config.validation_split)
    test = make(config.train_split, parts["test"]) if config.folds else make(config.test_split)
    _check_coverage(train, [samples for samples in (validation, test) if samples is not None], labels.classes)
    return Splits(train, validation, test, labels.classes, labels.multi_label, held_out if has_part else 0.0)


def _choose_hold_out(tables: dict[str, Any], config: DataConfig) -> float:
    """Return the share of the training split to hold out, which depends on the data unless the user names it."""
    if config.hold_out is not None:
        return config.hold_out
    lacks_validation = bool(config.validation_split) and config.validation_split not in tables
    return AUTOMATIC_HOLD_OUT if lacks_validation else 0.0


def _choose_splits(splits: dict[str, Any], config: DataConfig) -> dict[str, Any]:
    """Return the training split and the optional splits that exist. A split that a user names must exist."""
    names = ", ".join(splits)
    if config.train_split not in splits:
        raise ValueError(f"there is no training split {config.train_split!r} in {config.data!r}: it has {names}")
    chosen = {config.train_split: splits[config.train_split]}
    for name in config.optional_splits:
        if name in splits:
            chosen[name] = splits[name]
        elif name not in (DEFAULTS["validation_split"], DEFAULTS["test_split"]):
            raise ValueError(f"there is no split {name!r} in {config.data!r}: it has {names}")
    for name, table in chosen.items():
        if hasattr(table, "__len__") and not len(table):
            raise ValueError(
                f'split {name!r} of {config.data!r} is empty: add images to it, or name another split ("" for none)'
            )
    return chosen


def _check_all_paths(
    source: Source, tables: "dict[str, Dataset]", columns: dict[str, Columns], config: DataConfig
) -> None:
    for split, table in tables.items():
        check_image_paths(table, columns[split], split, source.locations, skip_missing=config.unreadable == "skip")


def _is_fair(labels: np.ndarray, part: np.ndarray) -> bool:
    """Tell whether images are held out, and every class of the images still has one to learn from."""
    learnt = labels[part == 0]
    if labels.ndim == 2:
        return 1 in part and bool((learnt.any(axis=0) == labels.any(axis=0)).all())
    return 1 in part and set(learnt.tolist()) == set(labels.tolist())


def _divide(table: "Dataset", labels: np.ndarray, config: DataConfig, hold_out: float) -> dict[str, np.ndarray]:
    """Divide the rows of the training split into "train" and, where they are held out, "validation" and "test"."""
    groups = _read_groups(table, config) if config.folds or hold_out else None
    rows, parts = np.arange(len(labels)), {}
    if config.folds:
        fold = assign_parts(labels, [1 / config.folds] * config.folds, config.data_seed, groups)
        parts["test"], rows = rows[fold == config.fold], rows[fold != config.fold]
    if hold_out:
        shares = [1 - hold_out, hold_out]
        part = assign_parts(labels[rows], shares, config.data_seed, None if groups is None else groups[rows])
        if config.hold_out is not None or _is_fair(labels[rows], part):  # a few images cannot be divided unasked
            parts["validation"], rows = rows[part == 1], rows[part == 0]
    parts["train"] = rows
    for name, part_rows in parts.items():
        if not len(part_rows):
            units = "images" if groups is None else f"groups of column {config.group_column!r}"
            count = len(labels) if groups is None else len(set(groups))
            raise ValueError(
                f"folds={config.folds} and hold_out={hold_out} of {count} {units} leave nothing for {name}: choose "
                "fewer folds or a smaller hold_out"
            )
    return parts


def _read_groups(table: "Dataset", config: DataConfig) -> np.ndarray | None:
    """Return the group (N,) of every training image as text, or None if no division has to respect groups."""
    if config.group_column is None:
        return None
    cells = table[find_column(table.column_names, config.group_column, "group", config.train_split)][:]
    if None in cells:
        raise ValueError(f"row {cells.index(None)} has no group in column {config.group_column!r}: fill it in")
    return np.asarray([str(cell) for cell in cells])


def _make_samples(
    source: Source,
    tables: dict[str, Any],
    labels: Labels,
    columns: dict[str, Columns],
    config: DataConfig,
    split: str,
    rows: np.ndarray | None = None,
) -> Samples | None:
    """Make the samples of a split, or of some rows of it; None if the data do not have the split."""
    if split not in tables:
        return None
    samples = Samples(
        tables[split], labels.values[split], columns[split], split, source.locations, config.unreadable, rows
    )
    samples.check_boxes()
    return samples


def _check_coverage(train: Samples, others: list[Samples], classes: list[str]) -> None:
    """Warn of classes without a training image, or raise ValueError if another split has images of them."""
    missing = ~_occurring(train.labels, len(classes))
    for samples in others:
        unknown = missing & _occurring(samples.labels, len(classes))
        if unknown.any() and samples.split != train.split:
            names = abbreviate([classes[index] for index in np.flatnonzero(unknown)])
            raise ValueError(f"split {samples.split!r} has classes that no training image has: {names}")
    if missing.any():
        names = abbreviate([classes[index] for index in np.flatnonzero(missing)])
        logger.warning("no training image has any of these classes: %s", names)


def _occurring(labels: np.ndarray, count: int) -> np.ndarray:
    """Return booleans (C,) that tell which classes occur."""
    return labels.any(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=count) > 0


def _load_stream(source: Source, tables: dict[str, Any], config: DataConfig) -> Splits:
    """Load the training split as a stream, and the other splits as a whole."""
    others = dict(tables)
    stream = others.pop(config.train_split)
    columns = find_columns(stream, config.train_split, config)
    if hasattr(stream, "to_iterable_dataset"):
        _check_all_paths(source, {config.train_split: stream}, {config.train_split: columns}, config)
        # A buffer cannot mix what lies in the order of its classes, as image folders do.
        stream = stream.shuffle(seed=config.data_seed, keep_in_memory=True).to_iterable_dataset()
    feature = stream.features[columns.label]
    classes = source.classes or declared_classes(feature)
    if not classes:
        raise ValueError(
            f"column {columns.label!r} of {config.data!r} does not declare its class names, and a stream cannot be "
            "searched for them: use streaming=False"
        )
    train = StreamedSamples(stream, columns, classes, config.train_split, source.locations, config.unreadable)
    others = {split: _load_whole(table, columns, source.locations) for split, table in others.items()}
    columns_of = dict.fromkeys(others, columns)
    _check_all_paths(source, others, columns_of, config)
    if not source.classes:
        declared = {name: declared_classes(table.features[columns.label]) for name, table in others.items()}
        same_classes({config.train_split: classes, **{name: names for name, names in declared.items() if names}})
    labels = read_labels(others, columns.label, classes) if others else Labels({}, classes, False)
    make = partial(_make_samples, source, others, labels, columns_of, config)
    is_multi_label = hasattr(feature, "feature")
    return Splits(train, make(config.validation_split), make(config.test_split), classes, is_multi_label)


def _load_whole(table: "Dataset | IterableDataset", columns: Columns, locations: Locations) -> "Dataset":
    """Write a stream to the cache of `datasets`, and return it as a table."""
    from datasets import Dataset

    if isinstance(table, Dataset):
        return table
    rows = partial(embed_remote_images, disable_decoding(table, columns), columns, locations)
    return Dataset.from_generator(rows, features=table.features)
