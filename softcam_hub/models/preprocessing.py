"""Checks of a `pretrained_cfg`, timm's description of a model's images and classes, as read from a config.json.

- timm and transformers use these values unchecked: a side of a million pixels allocates 17 GB, an unknown interpolation
  is a KeyError at the first image, and a NaN in `mean` makes every prediction NaN.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from timm.models import PretrainedCfg

from .scales import check_scales

MAX_SIDE = 8192
"""Longest side of an image, in pixels; no timm model is trained on images beyond 1,500."""

MAX_VALUES = 2**28
"""Most values of one image, which are a gigabyte in float32."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
CROP_MODES = ("center", "squash", "border")

_SIZES = ("input_size", "test_input_size", "min_input_size")


def check_pretrained_cfg(cfg: Mapping[str, Any] | PretrainedCfg | None) -> None:
    """Raise ValueError for the first value of a `pretrained_cfg` that describes no images or classes.

    Missing keys and None stand for timm's defaults. Unknown keys are refused by timm itself.

    Args:
        cfg: A `pretrained_cfg` as a mapping or a `PretrainedCfg`, with `num_classes` and `label_names` if known.
    """
    if cfg is None:
        return
    if isinstance(cfg, PretrainedCfg):
        cfg = {field.name: getattr(cfg, field.name) for field in fields(cfg)}
    if not isinstance(cfg, Mapping):
        raise ValueError(f"pretrained_cfg must map names to values, got {_shown(cfg)}")
    for name in _SIZES:
        _check_size(name, cfg.get(name))
    _check_choice("interpolation", cfg.get("interpolation"), INTERPOLATIONS)
    _check_choice("crop_mode", cfg.get("crop_mode"), CROP_MODES)
    for name in ("crop_pct", "test_crop_pct"):
        _check_crop(name, cfg.get(name), cfg.get("input_size") or (3, 224, 224))
    channels = (cfg.get("input_size") or (3,))[0]
    for name in ("mean", "std"):
        _check_statistic(name, cfg.get(name), channels)
    for name in ("first_conv", "classifier"):
        _check_layers(name, cfg.get(name))
    check_classes(cfg.get("num_classes"), cfg.get("label_names"))


def check_classes(num_classes: Any, label_names: Any) -> None:
    """Raise ValueError unless `num_classes` is a number of classes and `label_names` names each of them."""
    if num_classes is not None and not (_is_whole(num_classes) and num_classes >= 0):
        raise ValueError(f"num_classes must be a whole number, at least 0, got {_shown(num_classes)}")
    if label_names is None:
        return
    if not isinstance(label_names, list | tuple) or not all(isinstance(name, str) for name in label_names):
        raise ValueError(f"label_names must be a list of class names, got {_shown(label_names)}")
    if num_classes is not None and len(label_names) != num_classes:
        raise ValueError(
            f"label_names has {len(label_names)} names, but num_classes is {num_classes}: name every class once, or "
            "leave label_names out"
        )


def check_same_labels(label_names: Any, id2label: Any) -> None:
    """Raise ValueError where the class names that timm reads are not those that transformers reads.

    Args:
        label_names: Names of all classes in their order, or None.
        id2label: Class index -> name, with indices as text, or None.
    """
    if not label_names or not isinstance(id2label, Mapping):
        return
    theirs = {str(index): name for index, name in id2label.items()}
    if theirs != {str(index): name for index, name in enumerate(label_names)}:
        raise ValueError(
            f"label_names {list(label_names)[:10]} contradict id2label, which names {list(theirs.values())[:10]}: "
            "change both alike"
        )


def check_model_args(model_args: Any) -> None:
    """Raise ValueError for arguments of an architecture that are impossible: `img_size`, `in_chans` and `scales`."""
    if model_args is None:
        return
    if not isinstance(model_args, Mapping):
        raise ValueError(f"model_args must map names to values, got {_shown(model_args)}")
    size, channels = model_args.get("img_size"), model_args.get("in_chans")
    if channels is not None and not (_is_whole(channels) and channels >= 1):
        raise ValueError(f"in_chans must be a whole number, at least 1, got {_shown(channels)}")
    check_scales(model_args.get("scales", 1))
    if size is not None:
        sides = (size, size) if _is_whole(size) else size
        if not isinstance(sides, list | tuple) or len(sides) != 2:
            raise ValueError(f"img_size must be a side in pixels, or (height, width), got {_shown(size)}")
        _check_size("img_size", (3 if channels is None else channels, *sides))


def _check_size(name: str, size: Any) -> None:
    """Refuse a size that is not (channels, height, width), or an image that no machine holds."""
    if size is None:
        return
    if not isinstance(size, list | tuple) or len(size) != 3 or not all(_is_whole(n) and n >= 1 for n in size):
        raise ValueError(f"{name} must be (channels, height, width), three whole numbers from 1, got {_shown(size)}")
    if max(size[1:]) > MAX_SIDE or math.prod(size) > MAX_VALUES:
        raise ValueError(
            f"{name} asks for images of {size[1]} x {size[2]} pixels with {size[0]} channels: expected sides up to "
            f"{MAX_SIDE} pixels and at most {MAX_VALUES:,} values"
        )


def _check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise ValueError(f"unknown {name} {_shown(value)}: expected one of {', '.join(known)}")


def _check_crop(name: str, share: Any, size: tuple[int, int, int]) -> None:
    """Refuse a value that is not a share of the resized image, or too small for the resized image to fit in memory."""
    if share is None:
        return
    if not _is_number(share) or not 0 < share <= 2:
        raise ValueError(f"{name} is a share of the resized image, above 0 and usually at most 1, got {_shown(share)}")
    if max(size[1:]) / share > 2 * MAX_SIDE:
        raise ValueError(
            f"{name}={share} would resize images to {max(size[1:]) / share:.0f} pixels before a centre of "
            f"{size[1]} x {size[2]} is cropped: expected a share near 1, such as 0.875"
        )


def _check_statistic(name: str, values: Any, channels: int) -> None:
    """Refuse a mean or standard deviation by which images cannot be normalised."""
    if values is None:
        return
    if not isinstance(values, list | tuple) or not values or not all(_is_number(value) for value in values):
        raise ValueError(f"{name} must be a list of finite numbers, one for each channel, got {_shown(values)}")
    if len(values) not in (1, 3, channels):  # timm keeps the three of RGB when it changes the number of channels
        raise ValueError(f"{name} has {len(values)} values for images with {channels} channels: expected {channels}")
    if name == "std" and min(values) <= 0:
        raise ValueError(f"std divides the images and must be above 0, got {_shown(values)}")


def _check_layers(name: str, layers: Any) -> None:
    names = [layers] if isinstance(layers, str) else layers or []
    if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
        raise ValueError(f"{name} must name a layer, or be a list of names, got {_shown(layers)}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    """Write a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
