"""Samples of one split: undecoded images with labels and masks, and the dataset of transformed samples.

- An image that cannot be read (missing, empty, truncated, not an image, a decompression bomb) raises
  `UnreadableImage`. With `unreadable="skip"` all images are decoded once in the beginning, and such images
  are left out.
- In training a sample is requested as `(epoch, index)`, and its augmentation depends on (seed, epoch, index)
  alone: it is the same for any number of workers and processes, for any batch size, and after a resume.
- Augmentation draws random numbers from torch, `random` and NumPy, as timm does. The states of all three are
  restored afterwards, so that dropout in the same process does not change.
"""

import hashlib
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..models.images import UnreadableImage
from ..models.text import abbreviate, printable
from .columns import Columns, disable_decoding
from .locations import Locations, embedded_bytes, path_of
from .masks import read_boxes, read_mask

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

Sample = dict[str, Any]
Transform = Callable[[Image.Image], Tensor]


class Samples:
    """The images, labels and masks of one split. An image is decoded each time it is requested.

    Args:
        data: Table of one split.
        labels: Class indices (N,) or multi-hot labels (N, C) of all rows of `data`.
        columns: Columns of `data`.
        split: Name of the split in messages.
        locations: Places that paths in `data` lead to.
        unreadable: "stop" to raise an error for an unreadable image, or "skip" to leave such images out now.
        row_numbers: Rows (n,) of `data` that belong to these samples. All rows by default.
    """

    def __init__(
        self,
        data: "Dataset",
        labels: np.ndarray,
        columns: Columns,
        split: str = "train",
        locations: Locations = Locations(),  # noqa: B008, immutable
        unreadable: str = "stop",
        row_numbers: np.ndarray | None = None,
    ) -> None:
        self.columns, self.split, self.locations = columns, split, locations
        self.row_numbers = np.arange(len(data)) if row_numbers is None else row_numbers
        self.labels = labels[self.row_numbers]
        self.unreadable: list[str] = []
        """Names of the images that were left out."""
        self._data = disable_decoding(data, columns).select_columns(columns.inputs)
        if unreadable == "skip":
            self._skip_unreadable()

    def __len__(self) -> int:
        return len(self.row_numbers)

    @property
    def has_masks(self) -> bool:
        """Whether the split has a column of masks or boxes."""
        return bool(self.columns.mask or self.columns.boxes)

    def image(self, index: int) -> Image.Image:
        """Read an image as upright RGB."""
        row, name = self._read_row(index)
        return self.locations.read_image(row[self.columns.image], name)

    def mask(self, index: int) -> Image.Image | None:
        """Read the mask of an image in mode "L" with 255 inside; None for an image without ground truth."""
        return self.image_and_mask(index)[1]

    def image_and_mask(self, index: int) -> tuple[Image.Image, Image.Image | None]:
        """Read an image and its mask, which have the same size."""
        row, name = self._read_row(index)
        image = self.locations.read_image(row[self.columns.image], name)
        return image, read_mask(row, self.columns, image.size, self.locations, name)

    def name(self, index: int) -> str:
        """Return the name of an image in messages: its row in the table, and its path if it has one."""
        return self._read_row(index)[1]

    def check_boxes(self) -> None:
        """Raise ValueError for invalid boxes. Whether they fit their images is checked with each image."""
        if self.columns.boxes:
            boxes = self._data[self.columns.boxes][:]
            for index, row in enumerate(self.row_numbers.tolist()):
                if boxes[row] is not None:
                    read_boxes(boxes[row], self.name(index))

    def fingerprint(self, with_masks: bool = False) -> str:
        """Return a hash of the images in their order: of embedded bytes, or of path, size and time of change.

        Args:
            with_masks: Include masks and boxes.
        """
        columns = self.columns.inputs if with_masks else [self.columns.image]
        digest = hashlib.sha256()
        for row in self._data.select_columns(columns).select(self.row_numbers):
            for name, value in row.items():
                is_boxes = name == self.columns.boxes
                digest.update(repr(value).encode() if is_boxes else _hash_image(value, self.locations.root))
        return digest.hexdigest()

    def _read_row(self, index: int) -> tuple[dict[str, Any], str]:
        """Read an undecoded row, and return it with the name of its image in messages."""
        row = self._data[int(self.row_numbers[index])]
        path = path_of(row[self.columns.image])
        return row, f"row {self.row_numbers[index]} of split {self.split!r}" + (f" ({printable(path)})" if path else "")

    def _skip_unreadable(self) -> None:
        """Read every image once, and leave out those that cannot be read."""
        with ThreadPool() as pool:
            is_readable = np.array(pool.map(self._is_readable, range(len(self)), chunksize=16), dtype=bool)
        self.unreadable = [self.name(index) for index in np.flatnonzero(~is_readable)]
        if not self.unreadable:
            return
        counts = f"{len(self.unreadable)} of the {len(self)} images of split {self.split!r}"
        if len(self.unreadable) == len(self):
            raise UnreadableImage(f"{counts} cannot be read, so that none is left: {abbreviate(self.unreadable, 3)}")
        logger.warning("%s cannot be read and are left out: %s", counts, abbreviate(self.unreadable, 3))
        self.row_numbers, self.labels = self.row_numbers[is_readable], self.labels[is_readable]

    def _is_readable(self, index: int) -> bool:
        try:
            self.image_and_mask(index)
        except UnreadableImage:
            return False
        return True


def _hash_image(source: Any, root: Path) -> bytes:
    """Return 32 bytes that change when the image does."""
    content = embedded_bytes(source)
    if content is None:
        path = root / (path_of(source) or "")
        stat = path.stat() if path.is_file() else None
        content = repr((str(path), stat.st_size, stat.st_mtime_ns) if stat else str(path)).encode()
    return hashlib.sha256(content).digest()


class ImageDataset(TorchDataset):
    """The transformed samples of a split: `dataset[index]` to evaluate, `dataset[epoch, index]` to train.

    A sample is a dictionary of "pixel_values" (3, H, W), "labels", "index" and, on request, "mask" (H, W).

    Args:
        samples: Undecoded samples of one split.
        transform: Function from an RGB image to (3, H, W).
        seed: Seed of the augmentation, or None in evaluation.
        masks: Function from a mask to booleans (H, W), such as `mask_transform`, or None to leave masks out.
            An image without ground truth gets a mask that is false everywhere.
    """

    def __init__(
        self,
        samples: Samples,
        transform: Transform,
        seed: int | None = None,
        masks: Callable[[Image.Image], Tensor] | None = None,
    ) -> None:
        if masks and not samples.has_masks:
            raise ValueError(f"split {samples.split!r} has neither masks nor boxes: leave masks out")
        if masks and seed is not None:
            raise ValueError("masks follow the evaluation transform, not the augmentation: leave masks or seed out")
        self.samples, self.transform, self.seed, self.masks = samples, transform, seed, masks

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple | list) else (None, key)
        if not 0 <= index < len(self):
            raise IndexError(f"there is no image {index}: split {self.samples.split!r} has {len(self)}")
        sample = {"labels": label_tensor(self.samples.labels[index]), "index": int(index)}
        if self.masks:
            image, mask = self.samples.image_and_mask(index)
            sample["mask"] = self.masks(mask or Image.new("L", image.size))
        else:
            image = self.samples.image(index)
        if epoch is None:
            return {"pixel_values": self.transform(image), **sample}
        if self.seed is None:
            raise ValueError(f"image {index} was requested for epoch {epoch}, for which the dataset needs a seed")
        with fixed_random_state(self.seed, epoch, index):
            return {"pixel_values": self.transform(image), **sample}


def label_tensor(label: np.ndarray) -> Tensor:
    """Return a class index as int64 (), or a multi-hot label as float32 (C,), as torch's losses expect."""
    return torch.as_tensor(label, dtype=torch.float32 if np.ndim(label) else torch.int64)


@contextmanager
def fixed_random_state(*numbers: int) -> Iterator[None]:
    """Seed torch (CPU), `random` and NumPy inside the `with` block, and restore their states after it."""
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    seeds = np.random.SeedSequence(numbers).generate_state(3)
    # torch.manual_seed would reseed every accelerator too.
    torch.default_generator.manual_seed(int(seeds[0]))
    random.seed(int(seeds[1]))
    np.random.seed(seeds[2])
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
