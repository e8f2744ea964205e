"""Values of every image behind the tables, from which differences and their intervals can be computed later.

`benchmarks/results/values/NAME.jsonl.gz` has an object for every explainer and model. Each measure is a list of
numbers in the order of the images, with null where an image has none. Of a curve over k the mean is kept.
"""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softcam_hub.evaluation.causal import LOGIT, ODDS, PART_EVIDENCE, PROBABILITY
from softcam_hub.evaluation.config import AGREEMENT
from softcam_hub.evaluation.lines import lists_of
from softcam_hub.evaluation.results import ImageValues, image_values

from .timing import Row, merge

VALUES = Path(__file__).parent / "results" / "values"
CONFIDENCES = ("confidence", "kept", "removed")
"""Measures with all digits of single precision: whether one is larger than another may show in the last one only."""

HISTOGRAMS = ("iou_curve", "pixel_histogram", "box_ious", "mass_histogram")
CELLS = "mass_histogram"
"""Histogram that is kept: the cells of each map that touch the annotation, and all of its cells, by their mass."""

LISTS = (PART_EVIDENCE, ODDS, LOGIT, PROBABILITY, AGREEMENT)
"""Columns of lists whose mean says nothing about an image: histograms, values of parts, correlations of pairs."""

NO_MEASURES = ("index", "explainer", "explains", "label", "predicted", "annotated", *HISTOGRAMS, *LISTS)
"""Columns of a line that say what was measured, and lists; the others are measures. Labels are kept beside these."""


def values_by_explainer(lines: list[Row]) -> list[Row]:
    """Return a row for every explainer and model, given the lines of a benchmark's values.jsonl.

    Args:
        lines: A line for every explainer and image, in the order of the images.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for line in lines:
        groups.setdefault((line["explainer"], line["explains"]), []).append(line)
    rows = []
    for (explainer, explains), group in groups.items():
        measures = [name for name in group[0] if name not in NO_MEASURES]
        values = {name: [_number(line[name], 9 if name in CONFIDENCES else 4) for line in group] for name in measures}
        labels = [line["label"] for line in group]
        cells = {CELLS: [_count_cells(line[CELLS]) for line in group]} if CELLS in group[0] else {}
        rows.append({"explainer": explainer, "explains": explains, "label": labels, **values, **cells})
    return rows


def image_values_by_explainer(rows: list[Row]) -> ImageValues:
    """Compute the measures of all images for every explainer and model, given rows of values of one benchmark."""
    return {(row["explainer"], row["explains"]): image_values(lists_of(row)) for row in rows}


def _count_cells(histogram: list[float] | None) -> list[int] | None:
    """Return the two thirds of a histogram of masses that are numbers of cells; the rest are sums of masses."""
    return None if histogram is None else [int(count) for count in histogram[: 2 * len(histogram) // 3]]


def _number(value: Any, digits: int) -> float | None:
    """Return a number, or the mean of a curve, with some digits."""
    return None if value is None else float(f"{np.mean(value):.{digits}g}")


def replace_values(new: list[Row], name: str, key: Sequence[str]) -> None:
    """Write rows in place of earlier rows that have the same values in the columns of `key`, sorted by these."""
    text = "".join(json.dumps(row) + "\n" for row in merge(read_values(name), new, key))
    VALUES.mkdir(parents=True, exist_ok=True)
    (VALUES / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))  # equal rows give equal files


def read_values(name: str) -> list[Row]:
    """Return the rows of a file; none if it does not exist."""
    file = VALUES / f"{name}.jsonl.gz"
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()] if file.exists() else []
