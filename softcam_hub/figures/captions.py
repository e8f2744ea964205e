"""Write captions for maps, and check the images, names and masks of a figure."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..models.explanation import Explanation
from ..models.text import format_share
from .drawing import outline

Names = Sequence[str] | Mapping[int, str]
"""Name of every class, by class index."""


def maps_of(image: Image.Image, explanation: Explanation, index: int) -> Tensor:
    """Return the maps (k, H, W) of one image of the batch, on the CPU.

    Args:
        image: Image to draw on; anything but a Pillow image is refused.
        explanation: Explanation of a batch.
        index: Position of the image in the batch.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"expected a Pillow image, got {type(image).__name__}: figures.denormalise makes one of a tensor"
        )
    if not 0 <= index < len(explanation.maps):
        raise IndexError(f"image {index} is not among the {len(explanation.maps)} explained images")
    dtype = torch.promote_types(explanation.maps.dtype, torch.float32)  # half precision is too coarse to draw
    maps = explanation.maps[index].detach().cpu().to(dtype)
    if not maps.isfinite().all():
        raise ValueError(
            f"the maps of image {index} contain NaN or infinity: check the weights of the model and the image"
        )
    return maps


def name_of(names: Names, index: int) -> str:
    """Look up the name of a class."""
    try:
        return str(names[index])
    except (IndexError, KeyError):
        raise ValueError(
            f"class {index} has no name among the {len(names)} names: pass a list with the names of all classes, or "
            "a dictionary with the names of the explained classes"
        ) from None


def outline_annotation(image: Image.Image, mask: Tensor | None) -> Image.Image:
    """Outline an annotation on its image; without an annotation, return the image.

    Args:
        image: Image of any size.
        mask: Annotation (H, W) in the proportions of the image.
    """
    if mask is None:
        return image
    tolerance = 0.02 * image.width + 1
    if mask.ndim != 2 or abs(mask.shape[1] * image.height / mask.shape[0] - image.width) > tolerance:
        raise ValueError(
            f"expected a mask (H, W) in the proportions of the image ({image.height}, {image.width}), "
            f"got {tuple(mask.shape)}: crop and resize the mask like the image"
        )
    return outline(image, mask, width=max(1, round(image.height / 150)))


def caption_of(explanation: Explanation, names: Names, index: int, rank: int) -> str:
    """Write the name of a class and its probability, and the logit if the map averages to it.

    Args:
        explanation: Explanation of a batch.
        names: Name of every class.
        index: Position of the image in the batch.
        rank: Position of the class among the explained classes of the image.
    """
    name = name_of(names, int(explanation.classes[index, rank]))
    numbers = format_share(float(explanation.probabilities[index, rank].detach()))
    if explanation.map_kind.averages_to_logit:
        numbers += f", logit {float(explanation.maps[index, rank].detach().float().mean()):+.2f}"
    return f"{name}\n{numbers}"
