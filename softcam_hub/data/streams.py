"""A training split as a stream: samples as `Images` gives them, without downloading the split first.

- A stream has positions in place of indices: the augmentation is drawn from (seed, epoch, position).
- Every worker reads the whole stream and decodes only its share of it, so that a position means the same for any number
  of workers. It costs the reading once per worker: one or two workers do for a stream that comes over a network.
- Unreadable images keep their position, so that skipping one changes nothing for the others.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .images import Sample, as_label, drawn_from
from .labels import read_cells
from .rows import Columns, UnreadableImage, decode_image, undecoded

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


class StreamedRows:
    """A training split of unknown length, in the order in which it comes.

    Args:
        stream: of rows.
        columns: of the stream.
        classes: names.
        split: name, for messages.
        root: what relative paths are relative to.
        unreadable: "stop", or "skip" to go past what cannot be read.
    """

    def __init__(
        self,
        stream: "datasets.IterableDataset",
        columns: Columns,
        classes: list[str],
        split: str = "train",
        root: Path = Path(),
        unreadable: str = "stop",
    ) -> None:
        self.stream, self.columns, self.classes = undecoded(stream, columns), columns, classes
        self.split, self.root, self.skips = split, root, unreadable == "skip"
        self.unreadable: list[str] = []
        """Names of what was skipped so far in this process."""

    def rows(self, seed: int, epoch: int, buffer: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Positions and undecoded rows, shuffled within a buffer (0: in order)."""
        stream = self.stream.shuffle(seed=seed, buffer_size=buffer) if buffer else self.stream
        stream.set_epoch(epoch)
        # in batches of one, because iter(stream) divides the stream among workers, who divide its positions here
        rows = ({name: cells[0] for name, cells in batch.items()} for batch in stream.iter(batch_size=1))
        return enumerate(rows)

    def image(self, row: dict[str, Any], position: int) -> Image.Image | None:
        """The image, RGB and upright; `None` if it cannot be read and is to be skipped."""
        name = f"position {position} of split {self.split!r}"
        try:
            return decode_image(row[self.columns.image], self.root, name)
        except UnreadableImage as error:
            if not self.skips:
                raise
            self.unreadable.append(name)
            logger.warning("%d images left out so far: %s", len(self.unreadable), error)
            return None

    def label(self, row: dict[str, Any], position: int) -> np.ndarray:
        """The class index, or multi-hot (C,)."""
        cells = pa.chunked_array([[row[self.columns.label]]])
        try:
            return read_cells(cells, self.stream.features[self.columns.label], self.classes, self.split)[0][0]
        except ValueError as error:
            raise ValueError(f"at position {position} of the stream: {error}") from error


class StreamedImages(IterableDataset):
    """Training samples of a stream; call `set_epoch` before each epoch.

    Args:
        rows: the stream.
        transform: image -> (3, H, W).
        seed: of the order and of the augmentation.
        buffer: how many undecoded images to shuffle among; 0 keeps the order.
    """

    def __init__(
        self, rows: StreamedRows, transform: Callable[[Image.Image], Tensor], seed: int = 0, buffer: int = 1000
    ) -> None:
        self.rows, self.transform, self.seed, self.buffer = rows, transform, seed, buffer
        # shared, so that workers that live on from epoch to epoch see it change
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Sample]:
        epoch, worker = int(self._epoch), get_worker_info()
        share, number = (worker.num_workers, worker.id) if worker else (1, 0)
        for position, row in self.rows.rows(self.seed, epoch, self.buffer):
            if position % share != number:
                continue
            image = self.rows.image(row, position)
            if image is None:
                continue
            label = as_label(self.rows.label(row, position))
            with drawn_from(self.seed, epoch, position):
                pixels = self.transform(image)
            yield {"pixel_values": pixels, "labels": label, "index": position}
