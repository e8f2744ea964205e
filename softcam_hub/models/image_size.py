"""The size at which a network sees images, where it is another one than that of its preprocessing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .alignment import check_sides, sides_of
from .preprocessing import MAX_SIDE

ImageSize = int | tuple[int, int]
"""Side of an image in pixels, or its height and width."""


def at_size(preprocessing: Mapping[str, Any], size: ImageSize | None) -> dict[str, Any]:
    """Return the preprocessing for images of another size.

    Square images show the same part of a picture as before. Where the model crops, a size of another form shows the
    middle of the picture in this form.

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


def resize(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """Resize images (B, C, H, W), which stay within the range of their values."""
    if sides_of(images) == sides or not images.numel():
        return images
    resized = F.interpolate(images.float(), sides, mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp(images.min(), images.max()).to(images.dtype)


def check_takes_size(network: nn.Module, fixed: bool, size: ImageSize | None, own: tuple[int, int]) -> None:
    """Refuse a size for a network of one size: some compute something for other sizes, and it is wrong.

    Args:
        network: timm network, without or with a classifier.
        fixed: Whether timm describes the network as one of fixed size.
        size: Side, or height and width, that the user asks for; None for the network's own.
        own: Height and width that the network was made for.
    """
    if size is None or not fixed or check_sides(size) == own or getattr(network, "dynamic_img_size", False):
        return
    height, width = check_sides(size)
    raise ValueError(
        f"the network takes images of {own[0]}x{own[1]} px only, and not of {height}x{width} px. Most networks of this "
        "kind can be made for another size with the same weights: "
        f"timm.create_model('local-dir:FOLDER', pretrained=True, img_size=({height}, {width}))"
    )


@contextmanager
def say_which_size_failed(size: ImageSize | None) -> Iterator[None]:
    """Turn the error of a network that cannot compute images of a size into a ValueError that names the size.

    Args:
        size: Side, or height and width, that the user asked for; None for the model's own.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # timm's networks raise AssertionError, RuntimeError, IndexError and others
        if size is None:
            raise
        height, width = check_sides(size)
        raise ValueError(
            f"the model cannot compute images of {height}x{width} px ({error}): leave the size out, or try a "
            "multiple of 32 pixels"
        ) from error
