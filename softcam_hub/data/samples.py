"""One split: undecoded images, labels, and masks if there are any.

- Masks and boxes are meant on the upright image.
- A mask is true where any colour channel is not zero, so that class-index masks work; save masks losslessly.
- An image that cannot be read (missing, empty, truncated, no image, a decompression bomb) raises `UnreadableImage`, or
  is left out with `unreadable="skip"`: then every image is decoded once in the beginning.
"""

import hashlib
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from .boxes import draw_boxes, read_boxes
from .decoding import UndecodableImage, decode, to_rgb
from .labels import abbreviate
from .locations import Locations, embedded, is_address, path_of
from .text import printable

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)


class UnreadableImage(ValueError):
    """An image or mask that cannot be decoded, by name.

    What a loader's worker raises comes back from torch with the worker's traceback as its message, whose last lines are
    the sentence.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence.rpartition(f"{__name__}.UnreadableImage: ")[2].rstrip())


@dataclass(frozen=True)
class Columns:
    """The columns of a split: names, and `None` for what is not there."""

    image: str
    label: str
    mask: str | None = None
    boxes: str | None = None

    def of_images(self) -> list[str]:
        return [name for name in (self.image, self.mask) if name]

    def to_decode(self) -> list[str]:
        return [name for name in (self.image, self.mask, self.boxes) if name]


class Samples:
    """The images, labels and masks of one split, decoded one at a time when asked for.

    Args:
        data: of one split; its images are not decoded before they are asked for.
        labels: (N,) class indices or (N, C) multi-hot.
        columns: of `data`.
        split: name, for messages.
        locations: Places that paths in `data` lead to.
        unreadable: "stop", or "skip" to leave out now what cannot be read.
        row_numbers: (n,) the rows of `data` that these are; all of them by default.
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
        self._data = disable_decoding(data, columns).select_columns(columns.to_decode())
        self._fingerprints: dict[bool, str] = {}
        if unreadable == "skip":
            self._skip_unreadable()

    def __len__(self) -> int:
        return len(self.row_numbers)

    @property
    def has_masks(self) -> bool:
        return bool(self.columns.mask or self.columns.boxes)

    def image(self, index: int) -> Image.Image:
        """The image, RGB and upright."""
        row = self._row(index)
        return read_image(row[self.columns.image], self.locations, self._name(row, index))

    def mask(self, index: int) -> Image.Image | None:
        """The ground truth as "L", 255 where it is, or `None` if this image has none."""
        return self.image_and_mask(index)[1]

    def image_and_mask(self, index: int) -> tuple[Image.Image, Image.Image | None]:
        """Both of one size, from one look at the row."""
        row = self._row(index)
        name = self._name(row, index)
        image = read_image(row[self.columns.image], self.locations, name)
        return image, find_mask(row, self.columns, image.size, self.locations, name)

    def name(self, index: int) -> str:
        """What to call an image in a message: its row in the split that was read, and its path if it has one."""
        return self._name(self._row(index), index)

    def _name(self, row: dict[str, Any], index: int) -> str:
        path = path_of(row[self.columns.image])
        return f"row {self.row_numbers[index]} of split {self.split!r}" + (f" ({printable(path)})" if path else "")

    def check_boxes(self) -> None:
        """Refuse what is no box before any is needed; whether boxes fit their images is known only later."""
        if self.columns.boxes:
            boxes = self._data[self.columns.boxes][:]
            for index, row in enumerate(self.row_numbers.tolist()):
                if boxes[row] is not None:
                    read_boxes(boxes[row], self.name(index))

    def fingerprint(self, with_masks: bool = False) -> str:
        """Hash of what the images are, in their order: of embedded bytes, or of path, size and time of change.

        Args:
            with_masks: whether it is of masks and boxes too.
        """
        if with_masks not in self._fingerprints:
            columns = self.columns.to_decode() if with_masks else [self.columns.image]
            digest = hashlib.sha256()
            for row in self._data.select_columns(columns).select(self.row_numbers):
                for name, value in row.items():
                    known = (
                        repr(value).encode() if name == self.columns.boxes else _identity(value, self.locations.root)
                    )
                    digest.update(known)
            self._fingerprints[with_masks] = digest.hexdigest()
        return self._fingerprints[with_masks]

    def _row(self, index: int) -> dict[str, Any]:
        return self._data[int(self.row_numbers[index])]

    def _skip_unreadable(self) -> None:
        with ThreadPool() as pool:
            problems = pool.map(self._problem, range(len(self)), chunksize=16)
        self.unreadable = [problem for problem in problems if problem]
        if not self.unreadable:
            return
        counts = f"{len(self.unreadable)} of the {len(self)} images of split {self.split!r}"
        if len(self.unreadable) == len(self):
            raise UnreadableImage(f"{counts} cannot be read, so that none is left: {abbreviate(self.unreadable, 3)}")
        logger.warning("%s cannot be read and are left out: %s", counts, abbreviate(self.unreadable, 3))
        kept = np.array([problem is None for problem in problems])
        self.row_numbers, self.labels = self.row_numbers[kept], self.labels[kept]

    def _problem(self, index: int) -> str | None:
        try:
            self.image_and_mask(index)
        except UnreadableImage:
            return self.name(index)
        return None


def disable_decoding(data: Any, columns: Columns) -> Any:
    """`data`, or a stream of it, whose image features give bytes or paths."""
    from datasets import Image as ImageFeature
    from datasets import IterableDataset

    if isinstance(data, IterableDataset):
        return data.decode(False)  # cast_column, below, does not keep a stream of files from decoding them
    for name in columns.of_images():
        if isinstance(data.features[name], ImageFeature):
            data = data.cast_column(name, ImageFeature(decode=False))
    return data


def embed(stream: "IterableDataset", columns: Columns, locations: Locations) -> Iterator[dict[str, Any]]:
    """Yield the rows of an undecoded stream, with the content of images at addresses in them."""
    for position, row in enumerate(stream):
        content = {}
        for column in columns.of_images():
            path = path_of(row[column])
            if embedded(row[column]) is None and path and is_address(path):
                with locations.open(row[column], f"position {position} ({printable(path)})") as file:
                    content[column] = {"bytes": file.read(), "path": None}
        yield row | content


def read_image(source: Any, locations: Locations, name: str) -> Image.Image:
    """Read an image of a row, RGB and upright.

    Args:
        source: Path, address, bytes, or a dictionary of "path" and "bytes".
        locations: Places that paths lead to.
        name: Name of the image in messages.
    """
    with _named(name):
        return to_rgb(_decode(source, locations, name))


def _decode(source: Any, locations: Locations, name: str) -> Image.Image:
    with locations.open(source, name) as file:
        return decode(file)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Add the name of the image to the reason why it cannot be read, and advice for a data set."""
    try:
        yield
    except UndecodableImage as error:
        raise unreadable(name, error) from error


def unreadable(name: str, reason: object) -> UnreadableImage:
    """Say which image of a data set cannot be read, and what to do about it."""
    return UnreadableImage(
        f"{name} cannot be read: {reason}. Repair or remove it, or leave such images out with unreadable='skip'"
    )


def find_mask(
    row: dict[str, Any], columns: Columns, size: tuple[int, int], locations: Locations, name: str
) -> Image.Image | None:
    """The mask of a row from its mask column or drawn from its boxes, for an image of `size` (width, height)."""
    if columns.mask and row[columns.mask] is not None:
        with _named(f"the mask of {name}"):
            pixels = np.asarray(_without_alpha(_decode(row[columns.mask], locations, f"the mask of {name}")))
        pixels = pixels.any(axis=2) if pixels.ndim == 3 else pixels != 0
    elif columns.boxes and row[columns.boxes] is not None:
        pixels = draw_boxes(row[columns.boxes], size, name)
    else:
        return None
    if pixels.shape != size[::-1]:
        raise ValueError(
            f"the mask of {name} is {pixels.shape[1]}×{pixels.shape[0]} pixels but its image {size[0]}×{size[1]}: "
            "expected one size (of the upright image)"
        )
    return Image.fromarray(pixels.astype(np.uint8) * 255)


def _without_alpha(image: Image.Image) -> Image.Image:
    return image.convert({"RGBA": "RGB", "LA": "L", "PA": "P"}.get(image.mode, image.mode))


def _identity(source: Any, root: Path) -> bytes:
    """32 bytes that change when the image does."""
    content = embedded(source)
    if content is None:
        path = root / (path_of(source) or "")
        known = path.stat() if path.is_file() else None
        content = repr((str(path), known.st_size, known.st_mtime_ns) if known else str(path)).encode()
    return hashlib.sha256(content).digest()


Sample = dict[str, Any]
Transform = Callable[[Image.Image], Tensor]


@contextmanager
def fixed_random_state(*numbers: int) -> Iterator[None]:
    """Random numbers of torch (CPU), `random` and NumPy follow from `numbers` inside the `with`; as before after it."""
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    seeds = np.random.SeedSequence(numbers).generate_state(3)
    # not torch.manual_seed, which would reseed every accelerator too
    torch.default_generator.manual_seed(int(seeds[0]))
    random.seed(int(seeds[1]))
    np.random.seed(seeds[2])
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def as_label(label: np.ndarray) -> Tensor:
    """() int64, or multi-hot (C,) float32."""
    return torch.as_tensor(label, dtype=torch.float32 if np.ndim(label) else torch.int64)


class ImageDataset(TorchDataset):
    """The samples of a split: `images[index]` in evaluation, `images[epoch, index]` in training.

    Args:
        samples: Undecoded samples of one split.
        transform: image -> (3, H, W).
        seed: of the augmentation; `None` in evaluation.
        masks: transform of masks, mask -> (H, W) booleans (`mask_transform`); each sample then has a "mask", which is
            false everywhere for an image without ground truth.
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
        sample = {"labels": as_label(self.samples.labels[index]), "index": int(index)}
        if self.masks:
            image, mask = self.samples.image_and_mask(index)
            return {
                "pixel_values": self.transform(image),
                **sample,
                "mask": self.masks(mask or Image.new("L", image.size)),
            }
        image = self.samples.image(index)
        if epoch is None:
            return {"pixel_values": self.transform(image), **sample}
        if self.seed is None:
            raise ValueError(f"image {index} was asked for in epoch {epoch}, for which ImageDataset needs a seed")
        with fixed_random_state(self.seed, epoch, index):
            return {"pixel_values": self.transform(image), **sample}
