"""Read images from whatever holds them, as batches: loaders, data sets, folders, lists, tensors, pictures.

- Items are images or batches of images, with or without labels, which are left out. So one rule serves all sources.
- The model's own preprocessing turns pictures into inputs, as it does for `explain`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..models.images import FORMAT_NAMES, find_images_in
from ..models.inputs import PIXELS, ImageInput
from ..models.text import printable
from .columns import DEFAULTS

IMAGE = str(DEFAULTS["image_column"])
"""Key of the image in the rows of a data set."""


def read_batches(
    images: ImageInput | Iterable[Any], as_batch: Callable[[Any], Tensor], batch_size: int
) -> Iterator[Tensor]:
    """Yield batches of images (B, C, H, W), all of one size.

    Args:
        images: Images or batches, as `softcam_hub.post_fit` takes them.
        as_batch: Function that turns an image in any form into a batch, such as the `as_batch` of a model.
        batch_size: Number of images in a batch; the last batch may have fewer, and batches that come so may have more.
    """
    waiting: list[Tensor] = []
    side: tuple[int, ...] | None = None
    for item in _items(images):
        batch = as_batch(_without_labels(item))
        side = side or tuple(batch.shape[2:])
        if tuple(batch.shape[2:]) != side:
            raise ValueError(
                f"images must have one size, got {side[0]}x{side[1]} and {batch.shape[2]}x{batch.shape[3]}: resize the "
                "tensors, or pass pictures, which the model's own preprocessing resizes"
            )
        if len(batch):
            waiting.append(batch)
        if sum(map(len, waiting)) >= batch_size:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _items(images: Any) -> Iterable[Any]:
    """Return the images or batches of a source, one after another."""
    if isinstance(images, str | os.PathLike) and os.path.isdir(images):
        files = sorted(find_images_in(Path(images)))
        if not files:
            raise FileNotFoundError(
                f"there is no image in folder {printable(images)}: expected files of the formats {FORMAT_NAMES}"
            )
        return files
    if isinstance(images, str | bytes | os.PathLike | Image.Image | Mapping):
        return [images]
    if isinstance(images, Tensor | np.ndarray):
        return images if images.ndim == 4 else [images]
    if not hasattr(images, "__iter__") and hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return (images[index] for index in range(len(images)))  # a data set of torch
    if not isinstance(images, Iterable):
        raise TypeError(f"expected images, or a loader, data set, folder or list of them, got {type(images).__name__}")
    return images


def _without_labels(item: Any) -> Any:
    """Return the image or batch of an item that may hold labels too."""
    if isinstance(item, Mapping) and PIXELS not in item and IMAGE in item:
        return item[IMAGE]
    if isinstance(item, tuple) and item:
        return item[0]
    return item[0] if isinstance(item, list) and item and _is_pair(*item) else item


def _is_pair(first: Any, *others: Any) -> bool:
    """Tell whether a list holds a batch, or an image and numbers, as loaders make them; others hold images."""
    if not isinstance(first, Tensor):
        return False
    numbers = [isinstance(other, int) or (isinstance(other, Tensor) and other.ndim < 2) for other in others]
    return first.ndim == 4 or (first.ndim == 3 and bool(numbers) and all(numbers))
