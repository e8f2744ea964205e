"""Average rows of explanations over networks that were trained with several seeds, and tested on the same images.

- A number becomes its mean over the seeds, and a curve or a group of numbers is averaged entry by entry. Other columns
  are kept where all seeds agree.
- The interval of a mean resamples the images, each in all seeds at once. A score that is no mean
  over images has no values of the images: with several seeds there is no interval of its mean, but one in the row of
  every seed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from softcam_hub.evaluation.results import ImageValues
from softcam_hub.evaluation.statistics import Array, join_seeds, mean_intervals

from .timing import Row
from .values import image_values_by_explainer

INTERVAL = "_interval"
SEEDS = "seeds"
"""Column of an averaged row: the rows that it is the average of, in the order of their seeds."""

NO_MEASURES = ("seed", "iou_threshold")
"""Columns of numbers that are settings, whose mean says nothing."""

ROUNDING = 1e-3
"""Largest difference between a number and the mean of the values of the images, relative to the mean of their sizes:
values have four digits."""

ValuesOfSeeds = Mapping[int, ImageValues]


def values_of_seeds(rows: list[Row]) -> ValuesOfSeeds:
    """Return the values of all images for every seed, given rows of `benchmarks.values`."""
    return {seed: image_values_by_explainer([row for row in rows if row["seed"] == seed]) for seed in seeds_of(rows)}


def seeds_of(rows: list[Row]) -> list[int]:
    """Return the seeds of some rows in their order."""
    return sorted({row["seed"] for row in rows})


def average_over_seeds(rows: list[Row], values: ValuesOfSeeds | None = None) -> tuple[list[Row], ImageValues]:
    """Return a row for every explainer and model with means over the seeds, and the mean of every image.

    Args:
        rows: Rows of benchmarks, one for each explainer, model and seed. All need the same seeds.
        values: Values of all images for every seed. A score without them has no interval of its mean over seeds.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["explainer"], row["explains"]), []).append(row)
    found, joined = [], {}
    for key, group in groups.items():
        if seeds_of(group) != seeds_of(rows):
            raise ValueError(
                f"{key[0]} of {key[1]} was measured with the seeds {seeds_of(group)}, and others with {seeds_of(rows)}"
            )
        group.sort(key=lambda row: row["seed"])
        columns = _values_behind(group, [(values or {}).get(row["seed"], {}).get(key, {}) for row in group])
        joined[key] = {
            name: join_seeds([of_seed[None] for of_seed in column])[0][0] for name, column in columns.items()
        }
        found.append(_average(group, columns))
    return found, {key: measures for key, measures in joined.items() if measures}


def _average(group: list[Row], values: Mapping[str, list[Array]]) -> Row:
    """Average the rows of one explainer and model.

    Args:
        group: A row for every seed.
        values: Measure -> values of the images for every seed.
    """
    if len(group) == 1:
        return {**group[0], SEEDS: group}
    found: Row = {SEEDS: group}
    for name in group[0]:
        if not name.endswith(INTERVAL) and name not in NO_MEASURES and all(name in row for row in group):
            mean = _mean([row[name] for row in group])
            found |= {} if mean is None else {name: mean}
    if values:
        strata = [np.stack(of_seed) for of_seed in zip(*values.values(), strict=True)]
        low, high = mean_intervals(strata, same_images=True).tolist()
        ends = zip(values, low, high, strict=True)
        found |= {f"{name}{INTERVAL}": [lower, upper] for name, lower, upper in ends if not np.isnan(lower)}
    return found


def _values_behind(group: list[Row], values: list[Mapping[str, Array]]) -> dict[str, list[Array]]:
    """Return the values of the images for every seed, of the measures whose numbers are the means of these values.

    Args:
        group: A row for every seed.
        values: Measure -> values of the images, for every seed.
    """
    found = {}
    for name in values[0]:
        if all(name in seed for seed in values) and all(name in row for row in group):
            columns = [seed[name] for seed in values]
            pairs = zip(group, columns, strict=True)
            if all(abs(np.nanmean(column) - row[name]) <= ROUNDING * np.nanmean(abs(column)) for row, column in pairs):
                found[name] = columns
    return found


def _mean(values: list[Any]) -> Any:
    """Average numbers, lists or dictionaries of numbers; None for what differs and is none of these."""
    first = values[0]
    if all(value == first for value in values):
        return first
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return float(np.mean(values))
    if all(isinstance(value, list) and len(value) == len(first) for value in values):
        return [_mean(list(column)) for column in zip(*values, strict=True)]
    if all(isinstance(value, dict) and value.keys() == first.keys() for value in values):
        return {name: _mean([value[name] for value in values]) for name in first}
    return None
