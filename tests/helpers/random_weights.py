"""Random weights with which the logits of every network depend on the image, and its evidence on the location."""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from conftest import randomise
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from softcam_hub.models.heads import EvidenceHead

SMALL_CLIP = {"width_factor": 0.125, "img_size": 64}
"""Arguments of `resnet50_clip` that leave 600,000 of its parameters, with four heads in its attention pool."""


def make_vanilla(architecture: str, classes: int = 5, **arguments: Any) -> tuple[nn.Module, Tensor]:
    """Return a vanilla classifier of timm in evaluation mode, and two images for it.

    Images are small where the architecture takes any size.

    Args:
        architecture: Name of a timm model.
        classes: Number of classes.
        arguments: Further arguments of `timm.create_model`.
    """
    model = timm.create_model(architecture, num_classes=classes, **arguments).eval()
    channels, height, _ = model.pretrained_cfg["input_size"]
    any_size = not model.pretrained_cfg.get("fixed_input_size") and "halo" not in architecture
    side = arguments.get("img_size", min(height, 128) if any_size else height)
    images = random_images(6, channels, side)
    return randomise_with_statistics(model, images[2:]), images[:2]


def random_images(count: int, channels: int, side: int) -> Tensor:
    """Return noise over coarse patterns: of noise alone, a network may find the same in every image."""
    patterns = torch.randn(count, channels, 3, 3)
    return F.interpolate(patterns, size=side, mode="bicubic") + torch.randn(count, channels, side, side)


@torch.no_grad()
def randomise_with_statistics(model: nn.Module, images: Tensor) -> nn.Module:
    """Randomise a classifier, and give its batch norms the statistics of the features that it has then.

    `randomise` alone makes classifiers whose logits hardly depend on the image. Features die out in a deep network,
    because its batch norms have statistics of other features. Layers that start at zero stay there, and those that
    start small disappear behind biases.

    Args:
        model: Classifier of timm or of this package. Its modes stay as they are.
        images: At least two images, (B, C, H, W), from which statistics are taken.
    """
    for weight in randomise(model).parameters():
        if weight.ndim > 1 and weight.min() == weight.max():  # `randomise` leaves it as it is
            weight.add_(0.2 * torch.randn_like(weight))
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | EvidenceHead):
            matrix = layer.weight.flatten(1)
            layer.weight.mul_((matrix.shape[1] ** -0.5 / matrix.std()).clamp_min(1))  # outputs as large as inputs
    calibrate_batch_norms(model, images)
    return model


def calibrate_batch_norms(model: nn.Module, images: Tensor) -> None:
    """Replace the statistics of all batch norms by those of some images, (B, C, H, W)."""
    momenta = {module: module.momentum for module in model.modules() if isinstance(module, _BatchNorm)}
    if not momenta:
        return
    modes = {module: module.training for module in model.modules()}
    for norm in momenta:
        norm.reset_running_stats()
        norm.momentum = None  # statistics are averages since the reset, here of one batch
    model.train()(images)
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    for module, training in modes.items():
        module.training = training


def check_dependence(logits: Tensor, evidence: Tensor) -> None:
    """Check that logits of two images differ, and that the evidence differs between locations.

    Args:
        logits: Logits, (2, C).
        evidence: Evidence, (2, C, H, W).
    """
    assert (logits[0] - logits[1]).abs().max() > 1e-2 * logits.abs().max(), "the logits hardly depend on the image"
    spread = evidence.std(dim=(2, 3)) / evidence.abs().amax(dim=(2, 3))
    assert (spread.amax(dim=1) > 1e-2).all(), "the evidence of an image hardly depends on the location"
