"""Turn the localisation of all images into what a row says of it: what is no mean over images, and what is in groups.

- `iou_curve` is the mean IoU at each threshold. `iou_tuned` has the threshold that other images chose, see `tuning.py`.
- `pxap` and `max_box_accuracy` follow from sums over images, which are resampled for their intervals.
  `max_box_accuracies` are the parts of the latter, for an IoU of 0.3, 0.5 and 0.7.
- `by_size` has the scores of the third of the annotated images with the smallest, middle and largest annotations. The
  area of an image is that of all its annotations together. Equal areas are in one group, so that groups may differ.
- `evidence` has the mean and the largest evidence in the unit of the map, on images with an annotation and on those
  without one, of which `false_alarms` makes a score without unit.
- `reliability` has, for every bin of mass, the number of cells, their mean mass, and the share that is annotated.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..explanation_scores.boxes import box_hits, max_box_accuracies
from ..explanation_scores.calibration import MASS_BORDERS, false_alarms, reliability
from ..explanation_scores.thresholds import pixel_average_precision
from .statistics import bootstrap_of_sums

Row = dict[str, Any]

SIZES = ("small", "medium", "large")
BY_SIZE = ("hit_rate", "iou_otsu", "iou_tuned", "activation_precision")
"""Measures that a row also has for small, medium and large annotations."""


def summarise_localisation(lines: Sequence[Row]) -> Row:
    """Return the part of a row that concerns localisation, apart from means over images.

    Args:
        lines: Values of one explainer, a line for each image.
    """
    row: Row = {}
    curves = _column(lines, "iou_curve")
    if len(curves):
        row["iou_curve"] = (100 * curves.mean(dim=0)).tolist()
    histograms = _column(lines, "pixel_histogram")
    if len(histograms):
        row |= _of_sums("pxap", histograms.unflatten(1, (2, -1)), pixel_average_precision)
    ious = _column(lines, "box_ious")
    if len(ious):
        hits = box_hits(ious)
        row |= _of_sums("max_box_accuracy", hits, lambda sums: max_box_accuracies(sums).mean(dim=-1))
        row["max_box_accuracies"] = (100 * max_box_accuracies(hits.sum(dim=0))).tolist()
    masses = _column(lines, "mass_histogram")
    if len(masses):
        row["reliability"] = _reliability(masses)
    return row | _evidence(lines) | _by_size(lines)


def _column(lines: Sequence[Row], name: str) -> Tensor:
    """Return the values of the images that have one, (n,) or (n, k)."""
    return torch.tensor([line[name] for line in lines if line.get(name) is not None], dtype=torch.float64)


def _of_sums(name: str, images: Tensor, function: Callable[[Tensor], Tensor]) -> Row:
    """Return the percent of a score that follows from sums over images, and its interval.

    Args:
        name: Name of the score.
        images: Histograms or counts of each image, which are added up, (images, ...).
        function: Function of sums (n, ...) that returns scores (n,).
    """
    found = bootstrap_of_sums([images.numpy()], lambda sums: 100 * function(torch.from_numpy(sums)).numpy())
    low, high = found.interval().tolist()
    interval = {} if math.isnan(low) else {f"{name}_interval": [low, high]}
    return {name: float(found.estimate), **interval}


def _reliability(histograms: Tensor) -> Row:
    """Describe the bins of mass, None in place of a number that an empty bin does not have."""
    sums = histograms.sum(dim=0).unflatten(0, (3, -1))
    shares, masses = (100 * reliability(sums)).tolist(), (sums[2] / sums[1]).tolist()
    cells = [int(count) for count in sums[1].tolist()]
    known = [count > 0 for count in cells]
    return {
        "borders": list(MASS_BORDERS),
        "cells": cells,
        "mass": [value if present else None for value, present in zip(masses, known, strict=True)],
        "annotated": [value if present else None for value, present in zip(shares, known, strict=True)],
    }


def _evidence(lines: Sequence[Row]) -> Row:
    """Describe the evidence on images with and without an annotation."""
    lines = [line for line in lines if line.get("largest_evidence") is not None]
    if not lines:
        return {}
    found: Row = {}
    for group, annotated in (("annotated", True), ("unannotated", False)):
        some = [line for line in lines if line["annotated"] is annotated]
        means = {name: _mean(some, f"{name}_evidence") for name in ("mean", "largest") if some}
        found[group] = {"images": len(some), **means}
    alarms = false_alarms(_column(lines, "largest_evidence"), torch.tensor([line["annotated"] for line in lines]))
    return {"evidence": found} | ({} if alarms.isnan() else {"false_alarms": 100 * float(alarms)})


def _by_size(lines: Sequence[Row]) -> Row:
    """Average the measures of the images with small, medium and large annotations."""
    lines = [line for line in lines if line.get("annotated_area") is not None]
    if not lines:
        return {}
    areas = _column(lines, "annotated_area")
    limits = areas.quantile(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    group_of = torch.bucketize(areas, limits).tolist()  # an area at a limit belongs to the group below
    found: Row = {"limits": (100 * limits).tolist()}
    for number, size in enumerate(SIZES):
        some = [line for line, group in zip(lines, group_of, strict=True) if group == number]
        names = [name for name in BY_SIZE if any(line.get(name) is not None for line in some)]
        found[size] = {"images": len(some), **{name: 100 * _mean(some, name) for name in names}}
    return {"by_size": found}


def _mean(lines: Sequence[Row], name: str) -> float:
    return float(_column(lines, name).mean())
