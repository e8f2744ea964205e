"""Create the transforms of images and of their masks with timm, from the data config of a model.

- By default the network sees whole images: small defects lie anywhere, also near the border. ImageNet's
  habits, a centre crop in evaluation and random crops down to 8 % of the image in training, are settings.
- With `crop_scale=1` there is no random crop: training uses the same resize as evaluation, before the flips and the
  colour changes.
- `delete_cells` is the augmentation of IDSDS (Hesse et al., NeurIPS 2024): it comes last, after the normalisation, and
  deletes as the measure does. As in the authors' code, half of the images stay whole.
- A mask goes through the same resize and crop as its image. A lesion that is smaller than a pixel stays
  visible: the pixel that it covers most is kept, however little of the pixel that is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import Compose, RandomResizedCrop

from ..explanation_scores.idsds import GRID_SIDE
from ..explanation_scores.maps import grid_cells
from .config import AugmentationConfig

MIN_COVERAGE = 0.25
"""Share of a pixel that a lesion must cover for the pixel to belong to the mask, as in generated masks."""

SHARE_WITH_DELETED_CELL = 0.5
"""Share of the training images from which `delete_cells` deletes a cell, as published."""


class DeleteCell:
    """Set one random cell of a 4x4 grid of a normalised image (C, H, W) to 0, in half of the images."""

    def __call__(self, image: Tensor) -> Tensor:
        is_chosen, cell = torch.rand(()) < SHARE_WITH_DELETED_CELL, torch.randint(GRID_SIDE**2, ())
        if not is_chosen:
            return image
        return image.masked_fill(grid_cells(image.shape[-2:], GRID_SIDE) == cell, 0.0)


class RandomPart:
    """Random crop that keeps the shape of the image up to a third, so that the whole of a long image can be seen.

    timm's random crop has sides of 3:4 to 4:3 whatever the image, which cuts off a third of an image of 2:1.

    Args:
        smallest: Smallest share of the image that is kept.
    """

    def __init__(self, smallest: float) -> None:
        self.smallest = smallest

    def __call__(self, image: Image.Image) -> Image.Image:
        shape = image.width / image.height
        top, left, height, width = RandomResizedCrop.get_params(
            image, [self.smallest, 1.0], [shape * 3 / 4, shape * 4 / 3]
        )
        return image.crop((left, top, left + width, top + height))


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
    try:
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
    except AssertionError as error:
        raise ValueError(
            f"auto_augment={augmentation.auto_augment!r} is no policy of timm: expected one such as rand-m9-mstd0.5, "
            f"augmix-m5-w4 or 3a ({error})"
        ) from error
    crop, *changes = train.transforms  # flips, colours, the normalisation, and erased rectangles
    if augmentation.delete_cells:
        changes.append(DeleteCell())
    if augmentation.crop_scale == 1:
        return Compose([*_geometry(evaluation), *changes]), evaluation
    if config["crop_mode"] == "center" or augmentation.resize == "model":
        return Compose([crop, *changes]), evaluation
    return Compose([RandomPart(augmentation.crop_scale), *_geometry(evaluation), *changes]), evaluation


def mask_transform(
    data_config: dict[str, Any], augmentation: AugmentationConfig | None = None
) -> Callable[[Image.Image], Tensor]:
    """Create the transform from a mask to booleans (H, W), aligned with the transformed evaluation image.

    Args:
        data_config: Result of `timm.data.resolve_model_data_config`.
        augmentation: Same configuration as for `make_transforms`, because `resize` and `eval_crop` change the geometry.
    """
    config = _evaluation_config(data_config, augmentation or AugmentationConfig())
    # Where the crop is larger than the image, timm fills the border with the mean: black lies outside the mask.
    geometry = _geometry(create_transform(**{**config, "interpolation": "box", "mean": (0.0, 0.0, 0.0)}))
    return partial(_transform_mask, Compose(geometry))


def region_transform(data_config: dict[str, Any]) -> Callable[[np.ndarray], Tensor]:
    """Create the transform from numbers (H, W) of regions, below 256, to those of the transformed evaluation image.

    Every pixel gets the number of the nearest one. Where the crop is larger than the image, the border is 0.

    Args:
        data_config: Result of `timm.data.resolve_model_data_config`.
    """
    config = _evaluation_config(data_config, AugmentationConfig())
    geometry = _geometry(create_transform(**{**config, "interpolation": "nearest", "mean": (0.0, 0.0, 0.0)}))
    return partial(_transform_regions, Compose(geometry))


def _transform_regions(geometry: Compose, regions: np.ndarray) -> Tensor:
    picture = Image.fromarray(regions.astype(np.uint8)).convert("RGB")
    return torch.from_numpy(np.array(geometry(picture).getchannel(0)).astype(np.int64))


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
    config = {**data_config, **augmentation.crop}
    if config["input_size"][0] != 3:
        raise ValueError(
            f"images are RGB, but the model's input_size is {config['input_size']}: build it with in_chans=3"
        )
    return config


def _geometry(evaluation: Compose) -> list[Callable[[Image.Image], Image.Image]]:
    """Return resize and crop: the steps before the conversion to a tensor and the normalisation."""
    return evaluation.transforms[:-2]
