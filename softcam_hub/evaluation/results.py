"""From values per image to one row per explainer: means in percent, as the papers print them.

- The scores and their names are those of the `evaluate` module. A mean is over the images that have the value: those
  with an annotation for localisation.
- A curve over k is the mean of the images' curves; the number of the same name is the mean over k.
"""

import platform
from importlib.metadata import version
from typing import Any

import timm
import torch

from .shards import Line

CURVES = ("localization_precision", "topk_sensitivity")
PERCENT = ("confidence", "energy_pointing", "grid_pointing", "insertion", "deletion")
PLAIN = ("completeness_error", "gini", "road", "single_deletion", "max_sensitivity")

Row = dict[str, Any]


def make_rows(lines: list[Line], facts: Row) -> list[Row]:
    """A row per explainer, with what is true of all of them.

    Args:
        lines: of all images and explainers.
        facts: models, data, settings and versions.
    """
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["explainer"], line["explains"]), []).append(line)
    return [
        {"explainer": name, "explains": role, **_means(sorted(group, key=lambda line: line["index"])), **facts}
        for (name, role), group in groups.items()
    ]


def _means(lines: list[Line]) -> Row:
    from ..explanation_scores.explanation_scores import COLUMNS, scores  # brings evaluate, which takes seconds

    found: Row = {"images": len(lines), "annotated": sum(line["annotated"] for line in lines)}
    if not isinstance(lines[0]["label"], list):
        found["accuracy"] = 100 * _mean([line["predicted"] == line["label"] for line in lines])
    curves = {name: [line[name] for line in lines if _has(line, name)] for name in CURVES}
    columns = {name: torch.tensor([_number(line, name) for line in lines], dtype=torch.float64) for name in COLUMNS}
    found |= scores(columns)
    for names, factor in ((PERCENT, 100), (PLAIN, 1)):
        for name in names:
            values = [line[name] for line in lines if _has(line, name)]
            if values:
                found[name] = factor * _mean(values)
    if curves["topk_sensitivity"]:
        found["topk_sensitivity"] = 100 * _mean([_mean(curve) for curve in curves["topk_sensitivity"]])
    return found | {
        f"{name}_curve": [100 * _mean(values) for values in zip(*found_curves, strict=True)]
        for name, found_curves in curves.items()
        if found_curves
    }


def _has(line: Line, name: str) -> bool:
    return line.get(name) is not None


def _number(line: Line, name: str) -> float:
    """One value of an image, of a curve its mean, and NaN where there is none."""
    value = line.get(name)
    if value is None:
        return torch.nan
    return _mean(value) if isinstance(value, list) else value


def _mean(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())


def versions(device: torch.device) -> dict[str, str]:
    """What the numbers were computed with."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    numbers = {"torch": torch.__version__, "timm": timm.__version__, "softcam_hub": version("softcam-hub")}
    return {**numbers, "device": where}
