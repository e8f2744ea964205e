"""Average the values of all images into one row per explainer, in percent as in the papers.

- The scores and their names are those of the `evaluate` module. A mean is taken over the images that have the
  value, which for localisation are those with an annotation.
- A curve over k is the mean of the images' curves; the number of the same name is the mean over k.
- `NAME_interval` is the 95 % bootstrap interval of `NAME` over images, where images have different values.
"""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from ..explanation_scores.faithfulness import adcc, average_drop
from .causal import PART_EVIDENCE
from .causal_summary import correlate_all_parts
from .lines import Columns, Line, columns_of, group_lines
from .localisation_rows import summarise_localisation
from .statistics import Array, bootstrap_of_sums, mean_intervals

CURVES = ("localization_precision", "topk_sensitivity")
EVIDENCE_COLUMNS = ("evidence_precision", "share_of_positive_annotated", "share_of_positive_unannotated")
CAUSAL_CORRELATIONS = ("causal_rank", "causal_linear", "causal_rank_logit", "causal_linear_logit")
PERCENT = (
    "confidence",
    "energy_pointing",
    "pointing_game",
    "iou_tuned",
    "grid_pointing",
    "insertion",
    "deletion",
    *EVIDENCE_COLUMNS,
    "background_share",
)
PLAIN = ("completeness_error", "gini", "road", "single_deletion", "idsds", "max_sensitivity", *CAUSAL_CORRELATIONS)

Row = dict[str, Any]
ImageValues = Mapping[tuple[str, str], Mapping[str, Array]]
"""Explainer and role of the explained model -> measure -> values (images,) in the unit of a row, with NaN for none."""


def make_rows(lines: list[Line], common: Row, own: Mapping[tuple[str, str], Row]) -> list[Row]:
    """Make a row per explainer.

    Args:
        lines: Values of all images and explainers.
        common: Models, data, settings and versions, which every row repeats.
        own: Further columns by the name and the role of an explainer.
    """
    rows = []
    for (name, role), group in group_lines(lines).items():
        measured = _means(group) | summarise_localisation(group)
        rows.append({"explainer": name, "explains": role, **measured, **common, **own[name, role]})
    return rows


def values_of_explainers(lines: Sequence[Line]) -> ImageValues:
    """Compute the measures of all images for every explainer and role."""
    return {key: image_values(columns_of(group)) for key, group in group_lines(lines).items()}


def _means(lines: list[Line]) -> Row:
    """Average the values of one explainer over its images, with the 95 % interval of each mean."""
    from ..explanation_scores.explanation_scores import scores  # importing evaluate takes seconds

    columns = columns_of(lines)
    values = image_values(columns)
    row: Row = {"images": len(lines), "annotated": sum(line["annotated"] for line in lines)}
    inputs = _score_inputs(columns)
    row |= scores(inputs) | _interval_of_mean_adcc(inputs)
    for name in (*PERCENT, *PLAIN, *CURVES):
        if name in values and name not in row:
            row[name] = float(np.nanmean(values[name]))
        if name in ("evidence_precision", "causal_rank") and name in values:  # some images have no score
            row[f"{name}_images"] = int((~np.isnan(values[name])).sum())
    if PART_EVIDENCE in columns:
        row |= correlate_all_parts(lines)
    for name in CURVES:
        curves = _present(lines, name)
        if curves:
            row[f"{name}_curve"] = [100 * _mean(values) for values in zip(*curves, strict=True)]
    if not isinstance(lines[0]["label"], list):
        values["accuracy"] = np.array([100.0 * (line["predicted"] == line["label"]) for line in lines])
        row["accuracy"] = float(values["accuracy"].mean())
    return row | _intervals(values)


def image_values(columns: Columns) -> dict[str, Array]:
    """Compute all measures that are means over images, (images,) each, in the unit of a row.

    An image without a value has NaN. A measure that no image has is left out.

    Args:
        columns: Entries of all images by their names in a line: numbers, curves over k, or None.
    """
    from ..explanation_scores.explanation_scores import scores_of_images

    values = {name: 100 * column.numpy() for name, column in scores_of_images(_score_inputs(columns)).items()}
    for name in (*PERCENT, *PLAIN, *CURVES):
        if name in columns and name not in values:
            values[name] = (1 if name in PLAIN else 100) * np.array([_number(value) for value in columns[name]])
    return {name: column for name, column in values.items() if not np.isnan(column).all()}


def _score_inputs(columns: Columns) -> dict[str, Tensor]:
    """Return the inputs of the `evaluate` module's scores, (images,) each."""
    from ..explanation_scores.explanation_scores import COLUMNS

    missing = [None] * len(next(iter(columns.values())))
    numbers = {name: [_number(value) for value in columns.get(name, missing)] for name in COLUMNS}
    return {name: torch.tensor(column, dtype=torch.float64) for name, column in numbers.items()}


def _interval_of_mean_adcc(inputs: dict[str, Tensor]) -> Row:
    """Return the 95 % interval of the ADCC of means over images; nothing where images have no ADCC, or all the same."""
    from ..explanation_scores.explanation_scores import ADCC_PARTS, select_complete

    coherencies, complexities, *confidences = select_complete(inputs, ADCC_PARTS)
    if len(coherencies) == 0:
        return {}
    parts = torch.stack([coherencies, complexities, average_drop(*confidences), torch.ones_like(coherencies)], dim=1)

    def of_sums(sums: Array) -> Array:
        first, second, third, images = torch.from_numpy(sums).unbind(dim=1)
        return 100 * adcc(first / images, second / images, third / images).numpy()

    low, high = bootstrap_of_sums([parts.double().numpy()], of_sums).interval().tolist()
    return {"adcc_of_means_interval": [low, high]} if low < high else {}


def _intervals(values: dict[str, Array]) -> Row:
    """Return the 95 % interval of each mean, except where one image has the measure, or all the same value."""
    if not values:
        return {}
    low, high = mean_intervals([np.stack(list(values.values()))])
    found = zip(values, low.tolist(), high.tolist(), strict=True)
    return {f"{name}_interval": [lower, upper] for name, lower, upper in found if not np.isnan(lower)}


def _present(lines: list[Line], name: str) -> list[Any]:
    """Return the values of the images that have one."""
    return [line[name] for line in lines if line.get(name) is not None]


def _number(value: Any) -> float:
    """Reduce the entry of an image to one number: curves to their mean, missing ones to NaN."""
    if value is None:
        return np.nan
    return _mean(value) if isinstance(value, list) else value


def _mean(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())


def versions(device: torch.device) -> dict[str, str]:
    """Return the versions and the device that the numbers are computed with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    numbers = {"torch": torch.__version__, "timm": timm.__version__, "softcam_hub": version("softcam-hub")}
    return {**numbers, "device": name}
