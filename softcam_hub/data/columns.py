"""The columns of a table: the names that hold images, labels, masks and boxes."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..models.text import abbreviate
from .config import DataConfig
from .labels import MULTI_LABEL_COLUMN

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

DEFAULTS = {field.name: field.default for field in fields(DataConfig)}


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a split, `None` where there is no such column."""

    image: str
    label: str
    mask: str | None = None
    boxes: str | None = None

    @property
    def images(self) -> list[str]:
        """The columns that hold images: the images themselves and the masks."""
        return [name for name in (self.image, self.mask) if name]

    @property
    def inputs(self) -> list[str]:
        """All columns but the labels."""
        return [name for name in (self.image, self.mask, self.boxes) if name]


def find_columns(data: "Dataset | IterableDataset", split: str, config: DataConfig) -> Columns:
    """Find the columns of a split that a configuration names, or raise ValueError.

    The default names of masks and boxes are optional: a table without them has no ground truth.
    """
    if data.features is None:
        raise ValueError(f"split {split!r} of {config.data!r} does not declare its columns: use streaming=False")
    names = list(data.features)
    label = name_label_column(names, config)
    optional = {}
    for role in ("mask", "boxes"):
        name = getattr(config, f"{role}_column")
        if name in names or name != DEFAULTS[f"{role}_column"]:
            optional[role] = find_column(names, name, role, split)
    image = find_column(names, config.image_column, "image", split)
    return Columns(image, find_column(names, label, "label", split), **optional)


def name_label_column(names: list[str], config: DataConfig) -> str:
    """Return the name of the column of labels, which the table need not have: that of several labels by default.

    Args:
        names: Names of all columns of the table.
        config: Configuration that names the column.
    """
    label = config.label_column
    falls_back = label not in names and label == DEFAULTS["label_column"] and MULTI_LABEL_COLUMN in names
    return MULTI_LABEL_COLUMN if falls_back else label


def find_column(names: list[str], name: str, role: str, split: str) -> str:
    """Return `name`, or raise ValueError if the split has no such column.

    Args:
        names: Names of all columns of the split.
        name: Name to look for.
        role: Content of the column, such as "label". The option `<role>_column` sets its name.
        split: Name of the split in the message.
    """
    if name not in names:
        folders = "; an image folder has labels if it has one folder per class, all at one depth"
        raise ValueError(
            f"split {split!r} has no column {name!r} for the {role}: it has {abbreviate(names, 20)}. "
            f"Name the column with {role}_column{folders if role == 'label' else ''}"
        )
    return name


def disable_decoding(data: Any, columns: Columns) -> Any:
    """Return a data set, or a stream, whose image columns give bytes or paths in place of decoded images."""
    from datasets import Image as ImageFeature, IterableDataset

    if isinstance(data, IterableDataset):
        return data.decode(False)  # after cast_column, below, a stream of files would still decode them
    for name in columns.images:
        if isinstance(data.features[name], ImageFeature):
            data = data.cast_column(name, ImageFeature(decode=False))
    return data
