"""What a figure is asked to show: its maps and names, checked, and what is written about them."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..models.explanation import Explanation
from .drawing import Scale, outline
from .numbers import format_share

Names = Sequence[str] | Mapping[int, str]
"""Class index -> name."""

SIGNED = ("softcam", "cam")
"""Kinds of maps in which a location may speak against the class."""


def maps_of(image: Image.Image, explanation: Explanation, index: int) -> Tensor:
    """The maps (k, H, W) of one image of the batch, on the CPU."""
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"expected a PIL image, got {type(image).__name__}: figures.denormalise() makes one of a tensor"
        )
    if not 0 <= index < len(explanation.maps):
        raise IndexError(f"image {index} is not among the {len(explanation.maps)} explained images")
    maps = explanation.maps[index].detach().cpu().to(torch.promote_types(explanation.maps.dtype, torch.float32))
    if not maps.isfinite().all():
        raise ValueError(f"the maps of image {index} hold NaN or infinity: check the model's weights and the image")
    return maps


def check_probabilities(explanation: Explanation, what: str) -> None:
    if explanation.kind != "cape":
        raise ValueError(
            f"{what} probabilities, and only 'cape' maps hold any: this explanation is {explanation.kind!r}; "
            "use a cape_* model with kind='cape', or per_class()"
        )


def name_of(names: Names, index: int) -> str:
    try:
        return str(names[index])
    except (IndexError, KeyError):
        wanted = "pass a list of all classes' names, or a dict of those explained"
        raise ValueError(f"class {index} has no name among the {len(names)} given: {wanted}") from None


def outline_annotation(image: Image.Image, mask: Tensor | None) -> Image.Image:
    """The image with the annotation (H, W) outlined, where there is any."""
    if mask is None:
        return image
    if mask.ndim != 2 or abs(mask.shape[1] * image.height / mask.shape[0] - image.width) > 0.02 * image.width + 1:
        raise ValueError(
            f"expected a mask (H, W) in the proportions of the image ({image.height}, {image.width}), "
            f"got {tuple(mask.shape)}: crop and resize it as the image was"
        )
    return outline(image, mask, width=max(1, round(image.height / 150)))


def scale_of(maps: Tensor, kind: str) -> Scale:
    """The scale that holds all values of maps of a kind."""
    return Scale.of(maps, diverging=kind in SIGNED, percent=kind == "cape")


def caption_of(explanation: Explanation, names: Names, index: int, rank: int) -> str:
    """The class, what the model gives it, and for `softcam` the logit that its map averages to."""
    name = name_of(names, int(explanation.classes[index, rank]))
    given = format_share(float(explanation.probabilities[index, rank].detach()))
    if explanation.kind == "softcam":
        given += f", logit {float(explanation.maps[index, rank].detach().float().mean()):+.2f}"
    return f"{name}\n{given}"


def meaning_of(kind: str) -> str:
    """A sentence on what the values of a kind of map are."""
    sentences = {
        "cape": "The cells of a map add up to the probability of its class.",
        "softcam": "Orange speaks for the class and blue against it; the mean of a map is the class's logit.",
        "cam": "Orange speaks for the class and blue against it.",
    }
    return sentences.get(kind, "The brighter, the more the location matters to the class.")
