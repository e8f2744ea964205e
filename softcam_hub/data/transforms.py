"""Create the transforms of images and of their masks with timm, from the data config of a model.

- With `crop_scale=1` there is no random crop: training uses the same resize and centre crop as evaluation,
  before the flips and the colour changes.
- A mask goes through the same resize and crop as its image. A lesion that is smaller than a pixel stays
  visible: the pixel that it covers most is kept, however little of the pixel that is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import Compose

from .config import flag

MIN_COVERAGE = 0.25
"""Share of a pixel that a lesion must cover for the pixel to belong to the mask, as in generated masks."""


@dataclass
class AugmentationConfig:
    """Augmentation of training images. The `help` of each field describes it."""

    _argument_group_name: ClassVar[str] = "augmentation"

    augment: bool = flag(True, "Augment training images. Without it they get the evaluation transform.")
    crop_scale: float = flag(0.08, "Smallest share of the image that a random crop shows; 1 for no random crop.")
    hflip: float = flag(0.5, "Probability of a horizontal flip.")
    vflip: float = flag(0.0, "Probability of a vertical flip.")
    color_jitter: float = flag(0.0, "Strength of random changes of brightness, contrast and saturation.")
    auto_augment: str | None = flag(None, "Policy of timm, such as rand-m9-mstd0.5, in place of color_jitter.")
    erase: float = flag(0.0, "Probability of erasing a random rectangle.")
    eval_crop: float | None = flag(None, "Share of the resized side that evaluation crops. The model's own by default.")

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
    """Create the transforms of training and of evaluation, from a PIL image to (3, H, W).

    Args:
        data_config: Result of `timm.data.resolve_model_data_config`.
        augmentation: Augmentation of training images.
    """
    augmentation = augmentation or AugmentationConfig()
    config = _evaluation_config(data_config, augmentation)
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
    """Create the transform from a mask to booleans (H, W), aligned with the transformed evaluation image.

    Args:
        data_config: Result of `timm.data.resolve_model_data_config`.
        augmentation: Same configuration as for `make_transforms`, because `eval_crop` changes the geometry.
    """
    config = _evaluation_config(data_config, augmentation or AugmentationConfig())
    # Where the crop is larger than the image, timm fills the border with the mean: black lies outside the mask.
    geometry = _geometry(create_transform(**{**config, "interpolation": "box", "mean": (0.0, 0.0, 0.0)}))
    return partial(_transform_mask, Compose(geometry))


def _transform_mask(geometry: Compose, mask: Image.Image) -> Tensor:
    """Transform a mask to booleans (H, W).

    Args:
        geometry: Resize and crop of the image, with averages over areas.
        mask: Image that is white where the mask is true.
    """
    resized = geometry(mask.convert("RGB"))
    share = torch.from_numpy(np.asarray(resized.getchannel(0)).astype(np.float32) / 255)
    peaks = F.max_pool2d(share[None], kernel_size=3, stride=1, padding=1)[0]
    return (share >= MIN_COVERAGE) | ((share > 0) & (share == peaks))


def _evaluation_config(data_config: dict[str, Any], augmentation: AugmentationConfig) -> dict[str, Any]:
    """Return the arguments of `create_transform` for evaluation, or raise ValueError."""
    config = dict(data_config)
    if config["input_size"][0] != 3:
        raise ValueError(
            f"images are RGB, but the model's input_size is {config['input_size']}: build it with in_chans=3"
        )
    if augmentation.eval_crop is not None:
        config["crop_pct"] = augmentation.eval_crop
    return config


def _geometry(evaluation: Compose) -> list[Callable[[Image.Image], Image.Image]]:
    """Return resize and crop: the steps before the conversion to a tensor and the normalisation."""
    return evaluation.transforms[:-2]
