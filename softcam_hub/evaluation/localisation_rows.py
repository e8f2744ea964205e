"""Turn the localisation of all images into what a row says of it: what is no mean over images, and what is in groups.

- `iou_curve` is the mean IoU at each threshold. `iou_tuned` has the threshold that other images chose, see `tuning.py`.
- `pxap` and `max_box_accuracy` follow from sums over images (`SUMS`), which are resampled for their intervals.
  `max_box_accuracies` are the parts of the latter, for an IoU of 0.3, 0.5 and 0.7.
- `by_size` has the scores of the third of the annotated images with the smallest, middle and largest annotations. The
  area of an image is that of all its annotations together. Equal areas are in one group, so that groups may differ.
- `evidence` has the mean and the largest evidence in the unit of the map, on images with an annotation and on those
  without one, of which `false_alarms` makes a score without unit. Its value is that of the `evaluate` module.
- `reliability` has, for every bin of mass, the number of cells, their mean mass, and the share that is annotated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..explanation_scores.boxes import box_hits, max_box_accuracies
from ..explanation_scores.calibration import MASS_BORDERS, reliability
from ..explanation_scores.thresholds import pixel_average_precision
from .statistics import Array, bootstrap_of_counts, bootstrap_of_sums

Row = dict[str, Any]

SIZES = ("small", "medium", "large")
BY_SIZE = ("hit_rate", "iou_otsu", "iou_tuned", "activation_precision")
"""Measures that a row also has for small, medium and large annotations."""


@dataclass(frozen=True)
class ScoreOfSums:
    """A score that follows from sums over images, in percent.

    Args:
        column: Name in a line of what an image has.
        prepare: Function of the entries of all images (images, k) that returns what is added up, (images, ...).
        share: Function of sums (n, ...) that returns the score (n,) in [0, 1].
    """

    column: str
    prepare: Callable[[Tensor], Tensor]
    share: Callable[[Tensor], Tensor]

    def images_of(self, entries: Sequence[list[float] | None]) -> Array:
        """Return what is added up, (images, ...), with NaN for an image without an entry."""
        known = [entry for entry in entries if entry is not None]
        nothing = [math.nan] * len(known[0]) if known else []
        filled = [nothing if entry is None else entry for entry in entries]
        return self.prepare(torch.tensor(filled, dtype=torch.float64)).numpy()

    def score(self, sums: Array) -> Array:
        """Compute the score of sums (n, ...), (n,)."""
        return 100 * self.share(torch.from_numpy(sums)).numpy()


SUMS = {
    "pxap": ScoreOfSums("pixel_histogram", lambda entries: entries.unflatten(1, (2, -1)), pixel_average_precision),
    "max_box_accuracy": ScoreOfSums("box_ious", box_hits, lambda sums: max_box_accuracies(sums).mean(dim=-1)),
}
"""Name in a row -> scores that are no means over images."""


def summarise_localisation(lines: Sequence[Row]) -> Row:
    """Return the part of a row that concerns localisation, apart from means over images.

    Args:
        lines: Values of one explainer, a line for each image.
    """
    row: Row = {}
    curves = _column(lines, "iou_curve")
    if len(curves):
        row["iou_curve"] = (100 * curves.mean(dim=0)).tolist()
    for name, score in SUMS.items():
        entries = [line[score.column] for line in lines if line.get(score.column) is not None]
        if entries:
            row |= _of_sums(name, score, score.images_of(entries))
    ious = _column(lines, "box_ious")
    if len(ious):
        row["max_box_accuracies"] = (100 * max_box_accuracies(box_hits(ious).sum(dim=0))).tolist()
    masses = _column(lines, "mass_histogram")
    if len(masses):
        row["reliability"] = _reliability(masses)
    return row | _evidence(lines) | _by_size(lines)


def _column(lines: Sequence[Row], name: str) -> Tensor:
    """Return the values of the images that have one, (n,) or (n, k)."""
    return torch.tensor([line[name] for line in lines if line.get(name) is not None], dtype=torch.float64)


def _of_sums(name: str, score: ScoreOfSums, images: Array) -> Row:
    """Return a score that follows from sums over images (images, ...), and its interval where images differ."""
    found = bootstrap_of_sums([images], score.score)
    low, high = found.without_bias().interval().clip(0, 100).tolist()
    return {name: float(found.estimate), **({f"{name}_interval": [low, high]} if low < high else {})}


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
    return {"evidence": found} | _interval_of_false_alarms(lines)


def _interval_of_false_alarms(lines: Sequence[Row]) -> Row:
    """Return the 95 % interval in percent; nothing where one kind of images is missing, or resamples are alike."""
    largest, annotated = (np.array([line[name] for line in lines]) for name in ("largest_evidence", "annotated"))
    low, high = (100 * bootstrap_of_counts(len(lines), count_false_alarms(largest, annotated)).interval()).tolist()
    return {"false_alarms_interval": [low, high]} if low < high else {}


def count_false_alarms(largest: Array, annotated: Array) -> Callable[[Array], Array]:
    """Return the function (n, images) -> (n,) by which false alarms follow from how often every image is drawn.

    Args:
        largest: Largest evidence of each image, (images,).
        annotated: Booleans, (images,), true for images with an annotation.
    """
    order = np.argsort(largest)
    values, diseased = largest[order], annotated[order]

    def shares(counts: Array) -> Array:
        """Compute `explanation_scores.calibration.false_alarms` of every resample."""
        counts = counts[:, order]
        below, healthy = np.cumsum(counts * diseased, axis=1), counts * ~diseased
        total = below[:, -1:]
        middle = [(below >= rank).argmax(axis=1) for rank in ((total + 1) // 2, total // 2 + 1)]
        median = (values[middle[0]] + values[middle[1]])[:, None] / 2
        above = (healthy * ((values > median) + (values == median) / 2)).sum(axis=1)
        return np.where(total[:, 0] > 0, above / healthy.sum(axis=1), np.nan)

    return shares


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
