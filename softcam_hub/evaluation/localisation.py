"""Measure on one batch whether maps lie at the annotation.

Localisation concerns the map of the *true* label (with several labels per image: of the predicted class), and images
with an annotation only.
"""

import torch
from torch import Tensor

from ..explanation_scores.localization import (
    activation_precision,
    activation_sensitivity,
    energy_pointing_game,
    evidence_precision,
    localization_precision,
    pointing_game,
    share_of_positive,
)
from .batch import Batch, for_some


def measure_localisation(batch: Batch, name: str, patch: int | None) -> dict[str, Tensor]:
    """Compute measures of the heat maps of an explainer against the annotation."""
    maps, some = batch.of_label(batch.heats[name]), batch.annotated
    masks = batch.masks[some]
    return {
        "localization_precision": for_some(some, localization_precision, maps[some], masks, patch=patch),
        "activation_precision": for_some(some, activation_precision, maps[some], masks),
        "activation_sensitivity": for_some(some, activation_sensitivity, maps[some], masks),
        "energy_pointing": for_some(some, lambda: energy_pointing_game(maps[some], bounding_boxes(masks))),
        "pointing_game": for_some(some, pointing_game, maps[some], masks),
    }


def measure_evidence(batch: Batch, name: str, patch: int | None) -> dict[str, Tensor]:
    """Compute measures of signed maps in units of the logit, which a heat map no longer has."""
    maps = batch.of_label(batch.maps[name])
    some, positive = batch.annotated, share_of_positive(maps)
    large = batch.enlarge(name, maps)
    return {
        "evidence_precision": for_some(some, evidence_precision, large[some], batch.masks[some], patch=patch),
        "share_of_positive_annotated": positive.masked_fill(~some, torch.nan),
        "share_of_positive_unannotated": positive.masked_fill(some, torch.nan),
    }


def bounding_boxes(masks: Tensor) -> Tensor:
    """Return the smallest box around each mask, (B, 4): left, top, right, bottom."""
    edges = []
    for axis in (1, 2):  # any() over rows leaves the columns that a mask touches, and the other way round
        touched = masks.any(dim=axis).int()
        edges.append((touched.argmax(dim=1), touched.shape[1] - touched.flip(1).argmax(dim=1)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1)
