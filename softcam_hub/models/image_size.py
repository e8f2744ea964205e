"""The size at which a network sees images, where it is another one than that of its preprocessing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .alignment import check_sides, sides_of
from .preprocessing import MAX_SIDE

ImageSize = int | tuple[int, int]
"""Side of an image in pixels, or its height and width."""


def at_size(preprocessing: Mapping[str, Any], size: ImageSize | None) -> dict[str, Any]:
    """Return the preprocessing for images of another size, which show the same part of a picture.

    Args:
        preprocessing: Preprocessing of a model, as timm's `create_transform` takes it.
        size: Side, or height and width, of the images; None for that of the preprocessing.
    """
    if size is None:
        return dict(preprocessing)
    sides = check_sides(size)
    if max(sides) > MAX_SIDE:
        raise ValueError(f"a size may be at most {MAX_SIDE} pixels, got {size!r}")
    return {**preprocessing, "input_size": (preprocessing["input_size"][0], *sides)}


def resize(images: Tensor, size: ImageSize | None) -> Tensor:
    """Resize images (B, C, H, W), unless they have the size already."""
    if size is None or images.ndim != 4 or sides_of(images) == (sides := check_sides(size)):
        return images
    larger = F.interpolate(images.float(), sides, mode="bicubic", align_corners=False, antialias=True)
    return larger.to(images.dtype)


@contextmanager
def say_which_size_failed(size: ImageSize | None) -> Iterator[None]:
    """Turn the error of a network that does not take images of a size into a ValueError that says what to do.

    Args:
        size: Side, or height and width, that the user asked for; None for the model's own.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        if size is None:
            raise
        height, width = check_sides(size)
        raise ValueError(
            f"the model cannot compute images of {height}x{width} px ({error}): leave the size out, try a multiple of "
            f"its own, or make the network for that size with img_size=({height}, {width}), which most transformers "
            "of timm take"
        ) from error
