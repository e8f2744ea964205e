"""Transforms of images and of their masks, through timm, from the model's own data config.

- The smallest share that a random crop shows is `crop_scale`; with 1 there is no random crop, and training sees the
  same resize and centre crop as evaluation, before the flips and the colour changes.
- A mask goes through the same resize and crop as its image, and a lesion that is smaller than a pixel stays: its
  largest pixel is kept, however little of it the lesion covers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import Compose

from .config import flag

COVERED = 0.25
"""A pixel belongs to the mask if at least this share of it does; as in the generated masks."""


@dataclass
class AugmentationConfig:
    """How training images are varied; each field's `help` says what it does."""

    _argument_group_name: ClassVar[str] = "augmentation"

    augment: bool = flag(True, "vary training images; without it they get the evaluation transform")
    crop_scale: float = flag(0.08, "smallest share of the image that a random crop shows; 1 for no random crop")
    hflip: float = flag(0.5, "probability of a horizontal flip")
    vflip: float = flag(0.0, "probability of a vertical flip")
    color_jitter: float = flag(0.0, "strength of random changes of brightness, contrast and saturation")
    auto_augment: str | None = flag(None, "timm's auto-augmentation policy, such as rand-m9-mstd0.5 (no colour jitter)")
    erase: float = flag(0.0, "probability of erasing a random rectangle")
    eval_crop: float | None = flag(None, "share of the resized side that evaluation crops; by default the model's own")

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability and must be in [0, 1], got {getattr(self, name)}")
        for name in ("crop_scale", "eval_crop"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} is a share and must be in (0, 1], got {value}")
        if self.color_jitter < 0:
            raise ValueError(f"color_jitter must not be negative, got {self.color_jitter}")


def make_transforms(
    data_config: dict[str, Any], augmentation: AugmentationConfig | None = None
) -> tuple[Compose, Compose]:
    """The transforms of training and of evaluation, PIL image -> (3, H, W).

    Args:
        data_config: of `timm.data.resolve_model_data_config`.
        augmentation: how training images are varied.
    """
    augmentation = augmentation or AugmentationConfig()
    config = _evaluation(data_config, augmentation)
    evaluation = create_transform(**config)
    if not augmentation.augment:
        return evaluation, evaluation
    train = create_transform(
        **{name: config[name] for name in ("input_size", "interpolation", "mean", "std")},
        is_training=True,
        scale=(augmentation.crop_scale, 1.0),
        hflip=augmentation.hflip,
        vflip=augmentation.vflip,
        color_jitter=augmentation.color_jitter or None,
        auto_augment=augmentation.auto_augment,
        re_prob=augmentation.erase,
    )
    if augmentation.crop_scale == 1:
        train = Compose(_geometry(evaluation) + train.transforms[1:])
    return train, evaluation


def mask_transform(
    data_config: dict[str, Any], augmentation: AugmentationConfig | None = None
) -> Callable[[Image.Image], Tensor]:
    """Mask -> (H, W) booleans, aligned with what the evaluation transform makes of its image.

    Args:
        data_config: of `timm.data.resolve_model_data_config`.
        augmentation: the one that `make_transforms` got: `eval_crop` changes the geometry.
    """
    config = _evaluation(data_config, augmentation or AugmentationConfig())
    # border mode fills with the mean: black, which is outside the mask
    geometry = _geometry(create_transform(**{**config, "interpolation": "box", "mean": (0.0, 0.0, 0.0)}))
    return MaskTransform(Compose(geometry))


class MaskTransform:
    """Mask -> (H, W) booleans.

    Args:
        geometry: the image's resize and crop, averaging over areas.
    """

    def __init__(self, geometry: Compose) -> None:
        self.geometry = geometry

    def __call__(self, mask: Image.Image) -> Tensor:
        shown = self.geometry(mask.convert("RGB"))
        share = torch.from_numpy(np.asarray(shown.getchannel(0)).astype(np.float32) / 255)
        peaks = F.max_pool2d(share[None], kernel_size=3, stride=1, padding=1)[0]
        return (share >= COVERED) | ((share > 0) & (share == peaks))


def _evaluation(data_config: dict[str, Any], augmentation: AugmentationConfig) -> dict[str, Any]:
    """Arguments of `create_transform`, checked."""
    config = dict(data_config)
    if config["input_size"][0] != 3:
        raise ValueError(
            f"images are RGB, but the model's input_size is {config['input_size']}: build it with in_chans=3"
        )
    if augmentation.eval_crop is not None:
        config["crop_pct"] = augmentation.eval_crop
    return config


def _geometry(evaluation: Compose) -> list[Callable[[Image.Image], Image.Image]]:
    """Resize and crop: what comes before the conversion to a tensor and the normalisation."""
    return evaluation.transforms[:-2]
