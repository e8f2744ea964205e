"""Measure on one batch whether maps lie at the annotation.

- Localisation concerns the map of the *true* label (with several labels per image: of the predicted class), and images
  with an annotation only.
- Evidence and calibration also concern images without an annotation, and there the map of the most probable class
  that is *not* a label of the image: what a healthy image is most likely to be taken for.
- A measure that is no mean over images has a histogram or a curve for every image here, see `localisation_rows.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..explanation_scores.boxes import annotation_boxes, box_ious
from ..explanation_scores.calibration import cell_masses, largest_evidence, mass_histograms, mean_evidence
from ..explanation_scores.localization import (
    activation_precision,
    activation_sensitivity,
    energy_pointing_game,
    evidence_precision,
    hit_rate,
    localization_precision,
    pointing_game,
    share_of_positive,
)
from ..explanation_scores.thresholds import iou_at, iou_otsu, pixel_histograms
from ..models.alignment import sides_of
from .batch import Batch, for_some
from .config import BOXES, CALIBRATION, PXAP


def measure_localisation(batch: Batch, name: str, patch: int | None) -> dict[str, Tensor]:
    """Compute measures of the heat maps of an explainer against the annotation, and the evidence of its maps."""
    maps, some = batch.of_label(batch.heats[name]), batch.annotated
    masks = batch.masks[some]
    place, some_class = suspected(batch)
    own = batch.maps[name][some_class, place[some_class]]
    return {
        "localization_precision": for_some(some, localization_precision, maps[some], masks, patch=patch),
        "activation_precision": for_some(some, activation_precision, maps[some], masks),
        "activation_sensitivity": for_some(some, activation_sensitivity, maps[some], masks),
        "energy_pointing": for_some(some, lambda: energy_pointing_game(maps[some], bounding_boxes(masks))),
        "pointing_game": for_some(some, pointing_game, maps[some], masks),
        "hit_rate": for_some(some, hit_rate, maps[some], masks),
        "iou_otsu": for_some(some, iou_otsu, maps[some], masks),
        "iou_curve": for_some(some, iou_at, maps[some], masks),
        "annotated_area": for_some(some, lambda: masks.float().mean(dim=(1, 2))),
        "mean_evidence": for_some(some_class, mean_evidence, own),
        "largest_evidence": for_some(some_class, largest_evidence, own),
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


def _histogram_of_pixels(batch: Batch, name: str) -> dict[str, Tensor]:
    """Count the pixels of heat maps by their value, on the annotation and beside it, (B, 2·101)."""
    maps, some = batch.of_label(batch.heats[name]), batch.annotated
    return {"pixel_histogram": for_some(some, lambda: pixel_histograms(maps[some], batch.masks[some]).flatten(1))}


def _ious_of_boxes(batch: Batch, name: str) -> dict[str, Tensor]:
    """Compare boxes around the parts of heat maps with those of the annotation, (B, thresholds)."""
    maps, some = batch.of_label(batch.heats[name]), batch.annotated
    return {"box_ious": for_some(some, lambda: box_ious(maps[some], annotation_boxes(batch.masks[some])))}


def _histogram_of_masses(batch: Batch, name: str) -> dict[str, Tensor]:
    """Count the cells of maps by their mass, and those among them that touch the annotation, (B, 3·bins)."""
    place, some = suspected(batch)
    maps, classes = batch.maps[name][some, place[some]], batch.classes[some, place[some]]
    probabilities = batch.probabilities[some, classes]
    touched = touched_cells(batch, name, sides_of(maps))[some]
    return {
        "mass_histogram": for_some(some, lambda: mass_histograms(cell_masses(maps, probabilities), touched).flatten(1))
    }


REGIONS: dict[str, Callable[[Batch, str], dict[str, Tensor]]] = {
    PXAP: _histogram_of_pixels,
    BOXES: _ious_of_boxes,
    CALIBRATION: _histogram_of_masses,
}
"""Optional measure -> function that computes its part of a line from the maps of an explainer."""


def suspected(batch: Batch) -> tuple[Tensor, Tensor]:
    """Choose the class of each image whose map should show the annotation, or nothing.

    On an annotated image this is the class whose map is localised. On any other image it is the most probable class
    that is not a label of the image, among the two most probable ones.

    Returns:
        Place of the class among `batch.classes`, (B,), and whether there is such a class, (B,).
    """
    several = batch.labels.ndim == 2
    given = batch.labels.gather(1, batch.top) > 0 if several else batch.top == batch.labels[:, None]
    localised = 0 if several else batch.classes.shape[1] - 1  # as in `Batch.of_label`
    place = (~given).int().argmax(dim=1).masked_fill(batch.annotated, localised)
    return place, batch.annotated | (~given).any(dim=1)


def touched_cells(batch: Batch, name: str, cells: tuple[int, int]) -> Tensor:
    """Tell which cells of a map touch the annotation, where the cells look, (B, h, w).

    A pixel belongs to the nearest cell.

    Args:
        batch: Images with masks.
        name: Name of an explainer.
        cells: Height and width of its maps.
    """
    grid = batch.classifier.grid(name, batch.size, cells)
    rows, columns = (grid.weights(axis, batch.size[axis], nearest=True) for axis in (0, 1))  # (H, h) and (W, w)
    masks = batch.masks.float()
    return rows.to(masks).T @ masks @ columns.to(masks) > 0


def bounding_boxes(masks: Tensor) -> Tensor:
    """Return the smallest box around each mask, (B, 4): left, top, right, bottom."""
    edges = []
    for axis in (1, 2):  # any() over rows leaves the columns that a mask touches, and the other way round
        touched = masks.any(dim=axis).int()
        edges.append((touched.argmax(dim=1), touched.shape[1] - touched.flip(1).argmax(dim=1)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1)
