"""Average the values of all images into one row per explainer, in percent as in the papers.

- The scores and their names are those of the `evaluate` module. A mean is taken over the images that have the
  value, which for localisation are those with an annotation.
- A curve over k is the mean of the images' curves; the number of the same name is the mean over k.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import timm
import torch

from .shards import Line

CURVES = ("localization_precision", "topk_sensitivity")
EVIDENCE_COLUMNS = ("evidence_precision", "share_of_positive_annotated", "share_of_positive_unannotated")
PERCENT = (
    "confidence",
    "energy_pointing",
    "pointing_game",
    "grid_pointing",
    "insertion",
    "deletion",
    *EVIDENCE_COLUMNS,
)
PLAIN = ("completeness_error", "gini", "road", "single_deletion", "idsds", "max_sensitivity")

Row = dict[str, Any]


def make_rows(lines: list[Line], common: Row, own: Mapping[tuple[str, str], Row]) -> list[Row]:
    """Make a row per explainer.

    Args:
        lines: Values of all images and explainers.
        common: Models, data, settings and versions, which every row repeats.
        own: Further columns by the name and the role of an explainer.
    """
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["explainer"], line["explains"]), []).append(line)
    return [
        {
            "explainer": name,
            "explains": role,
            **_means(sorted(group, key=lambda line: line["index"])),
            **common,
            **own[name, role],
        }
        for (name, role), group in groups.items()
    ]


def _means(lines: list[Line]) -> Row:
    """Average the values of one explainer over its images."""
    from ..explanation_scores.explanation_scores import COLUMNS, scores  # importing evaluate takes seconds

    row: Row = {"images": len(lines), "annotated": sum(line["annotated"] for line in lines)}
    if not isinstance(lines[0]["label"], list):
        row["accuracy"] = 100 * _mean([line["predicted"] == line["label"] for line in lines])
    columns = {name: torch.tensor([_number(line, name) for line in lines], dtype=torch.float64) for name in COLUMNS}
    row |= scores(columns)
    for name in (*PERCENT, *PLAIN):
        values = _present(lines, name)
        if values:
            row[name] = (100 if name in PERCENT else 1) * _mean(values)
        if name == "evidence_precision" and values:  # without their number, the mean would hide images without a score
            row["evidence_precision_images"] = len(values)
    for name in CURVES:
        curves = _present(lines, name)
        if curves:
            row[f"{name}_curve"] = [100 * _mean(values) for values in zip(*curves, strict=True)]
            if name == "topk_sensitivity":  # the only curve that is no score of the evaluate module
                row[name] = 100 * _mean([_mean(curve) for curve in curves])
    return row


def _present(lines: list[Line], name: str) -> list[Any]:
    """Return the values of the images that have one."""
    return [line[name] for line in lines if line.get(name) is not None]


def _number(line: Line, name: str) -> float:
    """Reduce a measure to one number per image: curves to their mean, missing values to NaN."""
    value = line.get(name)
    if value is None:
        return torch.nan
    return _mean(value) if isinstance(value, list) else value


def _mean(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())


def versions(device: torch.device) -> dict[str, str]:
    """Return the versions and the device that the numbers are computed with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    numbers = {"torch": torch.__version__, "timm": timm.__version__, "softcam_hub": version("softcam-hub")}
    return {**numbers, "device": name}
