"""Choose the threshold of `iou_tuned` on other images than those that are scored.

Every explainer has the threshold at which the mean IoU of its own maps was highest in an earlier benchmark of the same
models, on validation images. The threshold is thus no choice of the test images, whose own curve is in `iou_curve`.
"""

import json
from pathlib import Path
from typing import Any

from .folder import ROWS, SETTINGS, with_current_role

Thresholds = dict[tuple[str, str], int]
"""Explainer and role of the explained classifier -> number of the threshold among those of `iou_at`."""


def read_thresholds(folder: Path, settings: dict[str, Any]) -> Thresholds:
    """Return the thresholds that an earlier benchmark chooses, after a check that it fits this one.

    Args:
        folder: Folder of the earlier benchmark.
        settings: Everything that the values of this benchmark follow from.
    """
    try:
        before = with_current_role(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
        rows = [json.loads(line) for line in (folder / ROWS).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"thresholds_from: {folder} holds no finished benchmark ({error}): expected {SETTINGS} and {ROWS}, as "
            "`softcam-hub benchmark --split validation` writes them"
        ) from error
    if not isinstance(before, dict):
        raise ValueError(f"thresholds_from: {folder / SETTINGS} is damaged: run that benchmark again")
    _check_fits(folder, before, settings)
    thresholds = {(row["explainer"], row["explains"]): _best(row["iou_curve"]) for row in rows if row.get("iou_curve")}
    missing = [
        f"{name} ({role})"
        for role, names in settings["pairs"].items()
        for name in names
        if (name, role) not in thresholds
    ]
    if missing:
        raise ValueError(
            f"thresholds_from: {folder} has no curve of {', '.join(missing)}: measure the localisation of the same "
            "explainers there, on images with annotations"
        )
    return thresholds


def recorded_thresholds(rows: list[dict[str, Any]]) -> Thresholds:
    """Return the thresholds that the rows of a finished benchmark name."""
    from ..explanation_scores.thresholds import THRESHOLDS  # with torch

    named = [row for row in rows if "iou_threshold" in row]
    return {(row["explainer"], row["explains"]): THRESHOLDS.index(row["iou_threshold"]) for row in named}


def add_tuned_iou(lines: list[dict[str, Any]], thresholds: Thresholds) -> None:
    """Add to every line the IoU at the threshold of its explainer, None for an image without an annotation."""
    for line in lines:
        number, curve = thresholds[line["explainer"], line["explains"]], line.get("iou_curve")
        line["iou_tuned"] = None if curve is None else curve[number]


def _check_fits(folder: Path, before: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse a benchmark of the images that are scored now, or of other models."""
    same = [before.get("images", {}).get("hash") == settings["images"]["hash"]]
    same.append(all(before.get(name) == settings[name] for name in ("data", "split")))
    if any(same):
        raise ValueError(
            f"thresholds_from: {folder} was measured on the images that are to be scored ({before.get('split')}): "
            "expected validation images, measured with --split validation"
        )
    for name in ("weights", "aligned"):
        if before.get(name) != settings[name]:
            raise ValueError(
                f"thresholds_from: {folder} was measured with {name}={before.get(name)!r}, but now it is "
                f"{settings[name]!r}: expected the same models, with maps drawn in the same way"
            )


def _best(curve: list[float]) -> int:
    """Return the number of the threshold with the highest IoU, the first of equal ones."""
    return max(range(len(curve)), key=lambda number: curve[number])
