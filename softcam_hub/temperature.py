"""CAPE's temperature T', fitted to images that it has not learnt from.

- CAPE that learnt from a teacher is less sure than it is right (C5 in docs/reproduction.md). Its maps add up at any T',
  but T' also weighs locations against one another, so that another one changes some predictions.
- T' acts on the evidence alone: every image passes through the network once, and all candidates are tried on it.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models.evaluation_mode import evaluation_mode
from .models.heads import at_least_float32
from .models.losses import check_labels
from .models.self_explaining import SelfExplaining

GRID = [step / 8 for step in range(-32, 33)]
"""Candidates for log T'; between them a parabola tells the minimum."""


@torch.no_grad()
def fit_temperature(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Set T' to where the cross-entropy is least, and return it.

        softcam_hub.fit_temperature(model, validation_loader)

    Args:
        model: of the CAPE family.
        batches: images (B, 3, H, W) as the model takes them, and labels (B,).
    """
    if not isinstance(model, SelfExplaining) or not model.head_class.has_temperature:
        raise ValueError(f"only CAPE has a temperature to fit, got {type(model).__name__}")
    device, losses = next(model.parameters()).device, []
    with evaluation_mode(model):
        for batch in batches:
            images, labels = _pair(batch)
            _, evidence = model.head(model.forward_features(images.to(device)), kind="evidence")
            losses.append(candidate_losses(model.head, evidence, labels.to(device)).double().cpu())
    if not losses:
        raise ValueError("there are no batches to fit the temperature to")
    return set_temperature(model.head, torch.cat(losses))


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    pair = batch if isinstance(batch, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(one, Tensor) for one in pair):
        raise TypeError(f"every batch must be a pair of tensors, images and labels, got {type(batch).__name__}")
    return pair


@torch.no_grad()
def candidate_losses(head: nn.Module, evidence: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image at each T' of the grid, (B, G)."""
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"labels must be class indices (B,), got {labels.dtype} {tuple(labels.shape)}: CAPE's probabilities add up "
            "to one"
        )
    labels = check_labels(labels, evidence[:, :, 0, 0])
    learnt = float(head.log_temperature)
    at = [head.compose(at_least_float32(evidence) * math.exp(learnt - value)) for value in GRID]
    return torch.stack([F.nll_loss(logits, labels, reduction="none") for logits in at], dim=1)


@torch.no_grad()
def set_temperature(head: nn.Module, losses: Tensor) -> float:
    """T' where the mean of `losses` (N, G) is least."""
    mean = losses.double().mean(dim=0)
    if not mean.isfinite().all():
        raise ValueError("the cross-entropy is not finite: are weights or images?")
    best = int(mean.argmin())
    value = GRID[best]
    if 0 < best < len(GRID) - 1:
        left, middle, right = mean[best - 1 : best + 2].tolist()
        value += (GRID[1] - GRID[0]) * (left - right) / (2 * (left - 2 * middle + right))
    head.log_temperature.fill_(value)
    return math.exp(value)
