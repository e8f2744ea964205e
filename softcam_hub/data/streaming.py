"""A training split as a stream: the samples of `ImageDataset` without downloading the split first.

- A stream has positions in place of indices: the augmentation depends on (seed, epoch, position).
- Every worker reads the whole stream and decodes only its share of it, so that a position means the same for
  any number of workers. The stream is therefore read once per worker: one or two workers suffice for a stream
  that comes over a network.
- Unreadable images keep their position, so that skipping one changes nothing for the others.
- Training reads the stream pass after pass, whatever it calls an epoch. A run that is resumed reads its last
  pass up to where it stopped without decoding the images. Earlier passes are not read again, because their
  number of images is known.
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

from ..models.images import UnreadableImage
from ..models.text import printable
from .columns import Columns, disable_decoding
from .labels import read_cells
from .locations import Locations, path_of
from .samples import Sample, fixed_random_state, label_tensor

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

Row = dict[str, Any]


class StreamedSamples:
    """The samples of a training split of unknown length, in the order in which they arrive.

    Args:
        stream: Stream of undecoded or decoded rows.
        columns: Columns of the stream.
        classes: Class names.
        split: Name of the split in messages.
        locations: Places that paths in the stream lead to.
        unreadable: "stop" to raise an error for an unreadable image, or "skip" to leave such images out.
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
        """Names of the images that this process has skipped so far."""

    def read(self, seed: int, epoch: int, buffer: int) -> Iterator[tuple[int, Row]]:
        """Yield positions and undecoded rows.

        Args:
            seed: Seed of the order.
            epoch: Number of the pass, which changes the order.
            buffer: Number of rows to shuffle among. 0 keeps the order.
        """
        stream = self.stream.shuffle(seed=seed, buffer_size=buffer) if buffer else self.stream
        stream.set_epoch(epoch)
        # Batches of one row, because iter(stream) would divide the rows among the workers: here the workers
        # divide the positions.
        batches = stream.iter(batch_size=1)
        return enumerate({name: cells[0] for name, cells in batch.items()} for batch in batches)

    def image(self, row: Row, position: int) -> Image.Image | None:
        """Read the image of a row as upright RGB; None if it cannot be read and is skipped."""
        source = row[self.columns.image]
        path = path_of(source)
        name = f"position {position} of split {self.split!r}" + (f" ({printable(path)})" if path else "")
        try:
            return self.locations.read_image(source, name)
        except UnreadableImage as error:
            if not self.skips:
                raise
            self.unreadable.append(name)
            logger.warning("%d images left out so far: %s", len(self.unreadable), error)
            return None

    def label(self, row: Row, position: int) -> np.ndarray:
        """Read the label of a row: a class index, or a multi-hot label (C,)."""
        cells = pa.chunked_array([[row[self.columns.label]]])
        try:
            return read_cells(cells, self.stream.features[self.columns.label], self.classes, self.split)[0][0]
        except ValueError as error:
            raise ValueError(f"at position {position} of the stream: {error}") from error


class StreamedImageDataset(IterableDataset):
    """The transformed training samples of one pass over a stream. Call `set_epoch` before each pass.

    Args:
        samples: Undecoded samples of the stream.
        transform: Function from an RGB image to (3, H, W).
        seed: Seed of the order and of the augmentation.
        buffer: Number of undecoded images to shuffle among. 0 keeps the order.
    """

    def __init__(
        self, samples: StreamedSamples, transform: Callable[[Image.Image], Tensor], seed: int = 0, buffer: int = 1000
    ) -> None:
        self.samples, self.transform, self.seed, self.buffer = samples, transform, seed, buffer
        # In shared memory, so that workers that persist from epoch to epoch see the change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass that the next iteration reads."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Sample]:
        epoch = int(self._epoch)
        for position, row in self.read_share(epoch, *_worker()):
            sample = self.sample(epoch, position, row)
            if sample is not None:
                yield sample

    def read_share(self, epoch: int, workers: int, worker: int) -> Iterator[tuple[int, Row]]:
        """Yield the positions and undecoded rows that one of several workers is responsible for."""
        for position, row in self.samples.read(self.seed, epoch, self.buffer):
            if position % workers == worker:
                yield position, row

    def sample(self, epoch: int, position: int, row: Row) -> Sample | None:
        """Decode and transform a row; None for an image that cannot be read and is skipped."""
        image = self.samples.image(row, position)
        if image is None:
            return None
        label = label_tensor(self.samples.label(row, position))
        with fixed_random_state(self.seed, epoch, position):
            return {"pixel_values": self.transform(image), "labels": label, "index": position}


class EndlessImageDataset(IterableDataset):
    """The samples of a stream, pass after pass. Set `batches_seen` to resume after that many batches.

    Args:
        images: Samples of one pass.
        batch_size: Batch size of the loader, which takes one batch of each worker in turn.
    """

    def __init__(self, images: StreamedImageDataset, batch_size: int) -> None:
        self.images, self.batch_size, self.batches_seen = images, batch_size, 0

    def __iter__(self) -> Iterator[Sample]:
        workers, worker = _worker()
        # The new loader starts with its worker 0, which continues as the worker that was next before the stop.
        worker = (worker + self.batches_seen) % workers
        own_batches = len(range(worker, self.batches_seen, workers))
        to_skip, pass_length = own_batches * self.batch_size, None
        for epoch in itertools.count():
            if pass_length is not None and pass_length <= to_skip:
                to_skip -= pass_length  # the run had finished this pass
                continue
            pass_length = 0
            for position, row in self.images.read_share(epoch, workers, worker):
                # Where unreadable images are skipped, only decoding tells whether a row counts.
                if pass_length < to_skip and not self.images.samples.skips:
                    pass_length += 1
                    continue
                sample = self.images.sample(epoch, position, row)
                if sample is not None:
                    pass_length += 1
                    if pass_length > to_skip:
                        yield sample
            if not pass_length:
                raise ValueError(
                    f"split {self.images.samples.split!r} has no image for worker {worker} of {workers}: choose fewer "
                    "workers or processes"
                )
            to_skip = max(0, to_skip - pass_length)


def _worker() -> tuple[int, int]:
    """Return the number of workers that share the stream, and the index of this worker."""
    worker = get_worker_info()
    return (worker.num_workers, worker.id) if worker else (1, 0)
