"""Image processors of transformers, and transforms and weights of torchvision, in timm's words.

What timm's transforms cannot do is refused: images that are prepared in another way give other predictions.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from PIL.Image import Resampling
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

SQUARE_FROM = 384
"""Size from which the image processor of ConvNeXt changes the aspect ratio instead of cropping."""

_OTHER_RULES = ("Levit", "PoolFormer")
"""Image processors that resize by rules of their own."""


def assume_preprocessing(channels: int, height: int, width: int) -> dict[str, Any]:
    """Return ImageNet's preprocessing for images of a size, and warn that it is assumed."""
    warnings.warn(
        f"images are prepared at {height} x {width} px with ImageNet's mean and standard deviation: give convert() the "
        "image processor of the model, or torchvision's weights, as preprocessing=... if it was trained otherwise",
        stacklevel=5,
    )
    mean, std = (
        values if channels == 3 else (sum(values) / 3,) * channels
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    size = (channels, height, width)
    return {"mean": mean, "std": std, "input_size": size, "interpolation": "bilinear", "crop_pct": 0.875}


def read_preprocessing(preprocessing: Any) -> dict[str, Any]:
    """Return how images are prepared, as fields of a `pretrained_cfg`, for images of three channels.

    Args:
        preprocessing: Image processor of transformers, or transforms or weights of torchvision.
    """
    if hasattr(preprocessing, "meta") and callable(getattr(preprocessing, "transforms", None)):  # torchvision's weights
        names = preprocessing.meta.get("categories")
        return {**read_preprocessing(preprocessing.transforms()), "label_names": names and list(names)}
    if hasattr(preprocessing, "image_mean") and hasattr(preprocessing, "size"):
        return _read_processor(preprocessing)
    if hasattr(preprocessing, "crop_size") and hasattr(preprocessing, "resize_size"):
        return _read_transforms(preprocessing)
    raise TypeError(
        "preprocessing must be an image processor of transformers, or weights of a classifier of torchvision, such as "
        f"ResNet18_Weights.IMAGENET1K_V1, or their transforms(), got {type(preprocessing).__name__}"
    )


def _read_transforms(transforms: Any) -> dict[str, Any]:
    """Return what torchvision's transforms for classification do."""
    crop, resized = _one_side(transforms.crop_size), _one_side(transforms.resize_size)
    return {
        "input_size": (3, crop, crop),
        "crop_pct": crop / resized,
        "interpolation": transforms.interpolation.value,
        "mean": _as_tuple(transforms.mean),
        "std": _as_tuple(transforms.std),
    }


def _one_side(size: int | Sequence[Any]) -> int:
    """Return the side of a square."""
    if isinstance(size, int):
        return size
    sides = {_one_side(side) for side in size}  # torchvision nests what it was given in a list
    if len(sides) != 1:
        raise ValueError(f"preprocessing must resize and crop to squares, got {tuple(size)}")
    return sides.pop()


def _as_tuple(values: float | Sequence[float]) -> tuple[float, ...]:
    return (float(values),) if isinstance(values, int | float) else tuple(values)


def _read_processor(processor: Any) -> dict[str, Any]:
    """Return what an image processor of transformers does, or refuse what timm's transforms cannot do."""
    kind = type(processor).__name__
    if not getattr(processor, "do_rescale", True) or abs(255 * (processor.rescale_factor or 0) - 1) > 1e-3:
        raise ValueError(f"{kind} must scale pixels to 0..1: expected do_rescale=True and rescale_factor=1/255")
    refused = {
        "do_resize=False": not getattr(processor, "do_resize", True),
        "a limit of the longest edge": bool(dict(processor.size).get("longest_edge")),
        "channels in the order BGR": getattr(processor, "do_flip_channel_order", None),
        "rescale_offset=True": getattr(processor, "rescale_offset", None),
        "a rule of its own for sizes": kind.startswith(_OTHER_RULES),
        "no resample": processor.resample is None,
    }
    for setting, is_set in refused.items():
        if is_set:
            raise ValueError(
                f"{kind} has {setting}, which timm's transforms cannot do: convert without preprocessing, "
                "and prepare the images yourself"
            )
    normalized = getattr(processor, "do_normalize", True)
    mean = _as_tuple(processor.image_mean) if normalized else (0.0,)
    std = _as_tuple(processor.image_std) if normalized else (1.0,)
    if getattr(processor, "include_top", None):  # EfficientNet divides by the deviation once more
        again = _as_tuple(processor.image_std)
        mean = tuple(value for value in mean) * (len(again) if len(mean) < len(again) else 1)
        std = tuple(a * b for a, b in zip(std * (len(again) if len(std) < len(again) else 1), again, strict=True))
    interpolation = Resampling(int(processor.resample)).name.lower()
    return {**_read_geometry(processor), "interpolation": interpolation, "mean": mean, "std": std}


def _read_geometry(processor: Any) -> dict[str, Any]:
    """Return the size of the images of an image processor, and how they come to it: by a crop, or as they are."""
    resized, crop = dict(processor.size), dict(getattr(processor, "crop_size", None) or {})
    shortest, cropped = resized.get("shortest_edge"), bool(getattr(processor, "do_center_crop", False) and crop)
    if cropped:
        side = _one_side((crop["height"], crop["width"]))
        before = _one_side((resized["height"], resized["width"])) if shortest is None else shortest
        mode = "squash" if shortest is None else "center"
        return {"input_size": (3, side, side), "crop_pct": side / before, "crop_mode": mode}
    if shortest is None:  # height and width, whatever the aspect ratio of an image
        return {"input_size": (3, resized["height"], resized["width"]), "crop_pct": 1.0, "crop_mode": "squash"}
    share = getattr(processor, "crop_pct", None)
    if share is not None:  # ConvNeXt
        squashed = shortest >= SQUARE_FROM
        mode = "squash" if squashed else "center"
        return {"input_size": (3, shortest, shortest), "crop_pct": 1.0 if squashed else share, "crop_mode": mode}
    raise ValueError(f"{type(processor).__name__} resizes the shortest edge and does not crop: expected one size")
