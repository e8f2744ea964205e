"""Image processors of transformers, and transforms and weights of torchvision, in timm's words."""

import warnings
from typing import Any

from PIL.Image import Resampling
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

SQUARE_FROM = 384
"""Size from which the image processor of ConvNeXt changes the aspect ratio instead of cropping."""


def read_preprocessing(preprocessing: Any, size: tuple[int, int, int]) -> dict[str, Any]:
    """Return how images are prepared, as fields of a `pretrained_cfg`.

    Args:
        preprocessing: Image processor of transformers, or transforms or weights of torchvision; None for ImageNet's
            mean and standard deviation, which a warning says.
        size: (channels, height, width) of the images where `preprocessing` does not give it.
    """
    if preprocessing is None:
        warnings.warn(
            f"images are prepared at {size[1]} x {size[2]} px with ImageNet's mean and standard deviation: give "
            "convert() the image processor of the model, or torchvision's weights, as preprocessing=... if it was "
            "trained otherwise",
            stacklevel=5,
        )
        normalized = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        return {**normalized, "input_size": size, "interpolation": "bilinear", "crop_pct": 0.875}
    if hasattr(preprocessing, "meta") and callable(getattr(preprocessing, "transforms", None)):  # torchvision's weights
        names = preprocessing.meta.get("categories")
        return {**_read_transforms(preprocessing.transforms()), "label_names": names and list(names)}
    if hasattr(preprocessing, "image_mean"):
        return _read_processor(preprocessing, size)
    if hasattr(preprocessing, "crop_size") and hasattr(preprocessing, "resize_size"):
        return _read_transforms(preprocessing)
    raise TypeError(
        "preprocessing must be an image processor of transformers, or transforms or weights of torchvision, got "
        f"{type(preprocessing).__name__}"
    )


def _read_transforms(transforms: Any) -> dict[str, Any]:
    """Return what torchvision's transforms for classification do."""
    (crop,), (resized,) = transforms.crop_size, transforms.resize_size
    return {
        "input_size": (3, crop, crop),
        "crop_pct": crop / resized,
        "interpolation": transforms.interpolation.value,
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
    }


def _read_processor(processor: Any, size: tuple[int, int, int]) -> dict[str, Any]:
    """Return what an image processor of transformers does."""
    factor = getattr(processor, "rescale_factor", 1 / 255)
    if not getattr(processor, "do_rescale", True) or abs(255 * factor - 1) > 1e-3:
        raise ValueError(f"images must be scaled to 0..1 first, and this image processor scales them by {factor:g}")
    normalized = getattr(processor, "do_normalize", True)
    return {
        **_read_geometry(processor, size),
        "interpolation": Resampling(int(processor.resample)).name.lower(),
        "mean": tuple(processor.image_mean) if normalized else (0.0,) * size[0],
        "std": tuple(processor.image_std) if normalized else (1.0,) * size[0],
    }


def _read_geometry(processor: Any, size: tuple[int, int, int]) -> dict[str, Any]:
    """Return the size of the images of an image processor, and how they come to it: by a crop, or as they are."""
    resized, crop = dict(processor.size), getattr(processor, "crop_size", None)
    shortest = resized.get("shortest_edge")
    if shortest is None:  # height and width, whatever the aspect ratio of an image
        return {"input_size": (size[0], resized["height"], resized["width"]), "crop_pct": 1.0, "crop_mode": "squash"}
    share = getattr(processor, "crop_pct", None)
    if share is not None:  # ConvNeXt
        mode = {"crop_pct": share} if shortest < SQUARE_FROM else {"crop_pct": 1.0, "crop_mode": "squash"}
        return {"input_size": (size[0], shortest, shortest), **mode}
    if getattr(processor, "do_center_crop", False) and crop:
        height, width = dict(crop)["height"], dict(crop)["width"]
        return {"input_size": (size[0], height, width), "crop_pct": min(height, width) / shortest}
    return {"input_size": (size[0], shortest, shortest), "crop_pct": 1.0}
