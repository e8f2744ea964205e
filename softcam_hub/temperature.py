"""Fit CAPE's temperature T' to images that the model has not learnt from.

- CAPE that learnt from a teacher is less confident than it is right (C5 in docs/reproduction.md). Its maps
  add up at any T', but T' also weighs locations against one another, so that a new T' changes some
  predictions.
- T' acts on the evidence alone: every image passes through the network once, and all candidates are tried on
  it.
"""

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models.evaluation_mode import evaluation_mode
from .models.heads import EvidenceHead, at_least_float32
from .models.inputs import warn_of_values
from .models.losses import NO_LABEL, check_labels
from .models.self_explaining import SelfExplaining

logger = logging.getLogger(__name__)

GRID = [step / 8 for step in range(-32, 33)]
"""Candidates for log T'. A parabola through the best one and its neighbours finds the minimum."""


@torch.no_grad()
def fit_temperature(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Set the temperature T' of CAPE to the value with the least cross-entropy on images that it has not seen.

        temperature = softcam_hub.fit_temperature(model, validation_loader)

    CAPE that learnt from a teacher is less confident than it is accurate, until its temperature is fitted. Maps
    still sum to the prediction afterwards, and some predictions change.

    Args:
        model: CAPE model, which is changed in place, or another model whose head has a temperature.
        batches: Pairs of images (B, 3, H, W), normalised as for the model, and labels (B,).

    Returns:
        The temperature T'.
    """
    if not isinstance(model, SelfExplaining) or not model.head_class.has_temperature:
        raise ValueError(f"only CAPE has a temperature to fit, got {type(model).__name__}")
    device, losses, count = next(model.parameters()).device, [], 0
    with evaluation_mode(model):
        for batch in batches:
            images, labels = _check_pair(batch)
            warn_of_values(images, model.preprocessing, stacklevel=4)
            count += int((labels != NO_LABEL).sum())
            _, evidence = model.head(model.forward_features(images.to(device)), kind="evidence")
            losses.append(candidate_losses(model.head, evidence, labels.to(device)).double().cpu())
    if not count:
        raise ValueError(
            "there are no labelled images to fit the temperature to: expected batches of images and labels, and labels "
            f"other than {NO_LABEL}"
        )
    return set_temperature(model.head, torch.cat(losses))


def _check_pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Return a batch as images and labels, or raise TypeError."""
    if isinstance(batch, list | tuple) and len(batch) == 2:
        images, labels = batch
        if isinstance(images, Tensor) and isinstance(labels, Tensor):
            return images, labels
    raise TypeError(f"every batch must be a pair of tensors, images and labels, got {type(batch).__name__}")


@torch.no_grad()
def candidate_losses(head: EvidenceHead, evidence: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy of each image at each T' of the grid, (B, G).

    Args:
        head: Head with a temperature.
        evidence: Evidence M', (B, C, H, W).
        labels: Class indices, (B,).
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"labels must be class indices (B,), got {labels.dtype} {tuple(labels.shape)}: CAPE's "
            "probabilities add up to one"
        )
    labels = check_labels(labels, evidence[:, :, 0, 0])
    present, losses = float(head.log_temperature), []
    for value in GRID:
        logits = head.compose(at_least_float32(evidence) * math.exp(present - value))  # as if T' were another
        losses.append(F.nll_loss(logits, labels, reduction="none"))
    return torch.stack(losses, dim=1)


@torch.no_grad()
def set_temperature(head: EvidenceHead, losses: Tensor) -> float:
    """Set T' to the value with the least mean loss, and return it.

    Args:
        head: Head with a temperature.
        losses: Cross-entropy of each image at each T' of the grid, (N, G).
    """
    mean = losses.double().mean(dim=0)
    if not mean.isfinite().all():
        raise ValueError("the cross-entropy is not finite: check the weights and the images for NaN and infinity")
    best = int(mean.argmin())
    value = GRID[best]
    if best in (0, len(GRID) - 1):
        logger.warning(
            "T' = %.3g is the end of the range that is tried, so that the best value may lie beyond it: check that the "
            "labels belong to the images, and that these are normalised",
            math.exp(value),
        )
    if 0 < best < len(GRID) - 1:
        left, middle, right = mean[best - 1 : best + 2].tolist()
        value += (GRID[1] - GRID[0]) * (left - right) / (2 * (left - 2 * middle + right))
    head.log_temperature.fill_(value)
    return math.exp(value)
