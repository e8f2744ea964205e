"""A training split as a stream: samples as `ImageDataset` gives them, without downloading the split first.

- A stream has positions in place of indices: the augmentation is drawn from (seed, epoch, position).
- Every worker reads the whole stream and decodes only its share of it, so that a position means the same for any number
  of workers. It costs the reading once per worker: one or two workers do for a stream that comes over a network.
- Unreadable images keep their position, so that skipping one changes nothing for the others.
- Training reads pass after pass, whatever it calls an epoch. A run that goes on reads its last pass up to where it
  stopped without decoding it; what came before is known from the number of images in a pass, and not read again.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .labels import read_cells
from .locations import Locations, path_of
from .samples import Columns, Sample, UnreadableImage, as_label, disable_decoding, fixed_random_state, read_image
from .text import printable

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


class StreamedSamples:
    """A training split of unknown length, in the order in which it comes.

    Args:
        stream: of rows.
        columns: of the stream.
        classes: names.
        split: name, for messages.
        locations: Places that paths in the stream lead to.
        unreadable: "stop", or "skip" to go past what cannot be read.
    """

    def __init__(
        self,
        stream: "datasets.IterableDataset",
        columns: Columns,
        classes: list[str],
        split: str = "train",
        locations: Locations = Locations(),  # noqa: B008, immutable
        unreadable: str = "stop",
    ) -> None:
        self.stream, self.columns, self.classes = disable_decoding(stream, columns), columns, classes
        self.split, self.locations, self.skips = split, locations, unreadable == "skip"
        self.unreadable: list[str] = []
        """Names of what was skipped so far in this process."""

    def read(self, seed: int, epoch: int, buffer: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Positions and undecoded rows, shuffled within a buffer (0: in order)."""
        stream = self.stream.shuffle(seed=seed, buffer_size=buffer) if buffer else self.stream
        stream.set_epoch(epoch)
        # in batches of one, because iter(stream) divides the stream among workers, who divide its positions here
        rows = ({name: cells[0] for name, cells in batch.items()} for batch in stream.iter(batch_size=1))
        return enumerate(rows)

    def image(self, row: dict[str, Any], position: int) -> Image.Image | None:
        """The image, RGB and upright; `None` if it cannot be read and is to be skipped."""
        path = path_of(row[self.columns.image])
        name = f"position {position} of split {self.split!r}" + (f" ({printable(path)})" if path else "")
        try:
            return read_image(row[self.columns.image], self.locations, name)
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


class StreamedImageDataset(IterableDataset):
    """Training samples of a stream; call `set_epoch` before each epoch.

    Args:
        samples: The stream.
        transform: image -> (3, H, W).
        seed: of the order and of the augmentation.
        buffer: how many undecoded images to shuffle among; 0 keeps the order.
    """

    def __init__(
        self, samples: StreamedSamples, transform: Callable[[Image.Image], Tensor], seed: int = 0, buffer: int = 1000
    ) -> None:
        self.samples, self.transform, self.seed, self.buffer = samples, transform, seed, buffer
        # shared, so that workers that live on from epoch to epoch see it change
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Sample]:
        epoch, (share, number) = int(self._epoch), _worker()
        samples = (self.sample(epoch, *row) for row in self.own(epoch, share, number))
        return (sample for sample in samples if sample is not None)

    def own(self, epoch: int, share: int, number: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Positions and undecoded rows of worker `number` of `share`."""
        return (row for row in self.samples.read(self.seed, epoch, self.buffer) if row[0] % share == number)

    def sample(self, epoch: int, position: int, row: dict[str, Any]) -> Sample | None:
        """`None` for an image that cannot be read and is to be skipped."""
        image = self.samples.image(row, position)
        if image is None:
            return None
        label = as_label(self.samples.label(row, position))
        with fixed_random_state(self.seed, epoch, position):
            return {"pixel_values": self.transform(image), "labels": label, "index": position}


class EndlessImageDataset(IterableDataset):
    """The samples of a stream, pass after pass; with `seen` it goes on after that many batches of a loader.

    Args:
        images: one pass.
        batch_size: of the loader, whose workers give their batches in turn.
    """

    def __init__(self, images: StreamedImageDataset, batch_size: int) -> None:
        self.images, self.batch_size, self.seen = images, batch_size, 0

    def __iter__(self) -> Iterator[Sample]:
        share, number = _worker()
        number = (number + self.seen) % share  # the worker whose turn it was comes first
        skip, given = len(range(number, self.seen, share)) * self.batch_size, None
        for epoch in itertools.count():
            if given is not None and given <= skip:
                skip -= given
                continue
            given = 0
            for position, row in self.images.own(epoch, share, number):
                if given < skip and not self.images.samples.skips:
                    given += 1
                    continue
                sample = self.images.sample(epoch, position, row)
                given += sample is not None
                if sample is not None and given > skip:
                    yield sample
            if not given:
                raise ValueError(f"split {self.images.samples.split!r} has no image for worker {number} of {share}")
            skip = max(0, skip - given)


def _worker() -> tuple[int, int]:
    """How many workers share the stream, and which one this is."""
    worker = get_worker_info()
    return (worker.num_workers, worker.id) if worker else (1, 0)
