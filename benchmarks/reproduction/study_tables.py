"""Write the tables and curves of a study: mean ± standard deviation over seeds.

- Predictions are measured on the whole test split, and explanations on its first images (see `reproduce.py`).
- The best mean of a column is bold. The maps of `random` and `centre` may be the best, too.
- Where there are values of the images, means of explanations have their 95 % interval over the images of all seeds
  instead, all means that cannot be told from the best are bold, and another table has the number of every seed.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from softcam_hub.evaluation.report import COLUMNS, UNRANKED, curve_title, markdown
from softcam_hub.evaluation.results import EVIDENCE_COLUMNS
from softcam_hub.evaluation.significance import best_group
from softcam_hub.evaluation.statistics import Array, mean_intervals
from softcam_hub.figures.charts import Points, curves

from .cape_claims import UNTRAINED
from .findings import ALL_LOCATED, LOCALISED, NOT_ALIGNED, SUBSET, Column, Findings, Row, label, mean, spread
from .softcam_claims import LOCALISATION, sweep
from .studies import Study

PREDICTIONS = {
    "accuracy": ("accuracy in %", ".1f"),
    "auc": ("AUC", ".4f"),
    "calibration_error": ("calibration error", ".3f"),
    "confidence": ("confidence in %", ".1f"),
    "teacher_accuracy": ("teacher in %", ".1f"),
    "disagreement": ("disagreement in %", ".1f"),
    "sparseness": ("sparseness (Gini)", ".3f"),
}
EXPLANATIONS = [name for name in COLUMNS if name not in ("borda", "significant_borda", "completeness_error", *UNRANKED)]
POST_HOC_LINES = 2
"""Number of post-hoc methods in a chart, beside native maps and random."""

NO_PENALTY = -3.0
"""Position of λ = 0 in a chart over log λ."""

BY_CLASS = ("localization_precision", "activation_precision")

SWEPT = ("accuracy", "auc", "sparseness")


def predictions(findings: Findings, study: str) -> str:
    """Write a line for each trained run, and for CAPE with the weights of the vanilla classifier."""
    body = []
    for run in findings.runs(study):
        rows = findings.rows(study, "training", run=run)
        seconds = {row["seed"]: row["seconds"] for row in rows}
        cells = [spread(findings.trained(study, run, name), form) for name, (_, form) in PREDICTIONS.items()]
        body.append([f"`{run}` (`{rows[0]['model']}`)", *cells, spread(seconds, ".0f")])
    for name in UNTRAINED:
        columns = {key: findings.column(study, "variant", key, variant=name) for key in PREDICTIONS}
        if columns["accuracy"]:
            cells = [spread(columns[key], form) for key, (_, form) in PREDICTIONS.items()]
            body.append([f"CAPE {name}, not trained", *cells, "-"])
    return markdown(["run", *(title for title, _ in PREDICTIONS.values()), "seconds"], body)


def explanations(findings: Findings, study: str) -> str:
    """Write a line for each explainer and run.

    Post-hoc maps explain the vanilla classifier, and native maps their own run.
    """
    groups: dict[str, list[Row]] = {}
    for row in findings.rows(study, "explanation"):
        groups.setdefault(label(row), []).append(row)
    names = [name for name in EXPLANATIONS if any(name in row for rows in groups.values() for row in rows)]
    columns = {name: _cells(findings, study, groups, name) for name in names}
    table = {name: {one: _column(rows, name) for one, rows in groups.items()} for name in names}
    header = ["maps", *(COLUMNS[name][0] for name in names)]
    shown = markdown(header, [[one, *(columns[name][one] for name in names)] for one in groups])
    if not any(_strata(findings, study, groups, name) for name in names):
        return shown
    if len(findings.seeds(study)) == 1:
        return shown
    every_seed = [[one, *(_each(table[name][one]) for name in names)] for one in groups]
    seeds = ", ".join(map(str, findings.seeds(study)))
    return f"{shown}\nThe same in every seed ({seeds}):\n\n{markdown(header, every_seed)}"


def _cells(findings: Findings, study: str, groups: dict[str, list[Row]], name: str) -> dict[str, str]:
    """Format a measure of all maps, the best in bold."""
    columns = {one: _column(rows, name) for one, rows in groups.items()}
    columns = {one: column for one, column in columns.items() if column}
    strata = _strata(findings, study, {one: groups[one] for one in columns}, name)
    if not strata:
        best = (max if COLUMNS[name][1] else min)(mean(column) for column in columns.values())
        cells = {one: (spread(column), mean(column) == best) for one, column in columns.items()}
    else:
        marked = best_group(strata, COLUMNS[name][1])
        averages, ends = map(mean, columns.values()), mean_intervals(strata)
        texts = [_with_interval(*numbers) for numbers in zip(averages, *ends, strict=True)]
        cells = dict(zip(columns, zip(texts, marked, strict=True), strict=True))
    return dict.fromkeys(groups, "-") | {one: f"**{text}**" if bold else text for one, (text, bold) in cells.items()}


def _strata(findings: Findings, study: str, groups: dict[str, list[Row]], name: str) -> list[Array]:
    """Return a measure of all maps on the images of every seed, (maps, images), or nothing if one has no values."""
    columns = []
    for rows in groups.values():
        maps = {row["seed"]: (row["run"], row["explainer"]) for row in rows if name in row}
        columns.append(findings.strata(study, maps, name))
    whole = columns and all(column is not None and len(column) == len(columns[0]) for column in columns)
    return [np.stack(seed) for seed in zip(*columns, strict=True)] if whole else []


def map_cell(findings: Findings, study: str, run: str, explainer: str, name: str, column: Column) -> str:
    """Format a measure of one map, with its interval where there are values of the images.

    Args:
        findings: Rows of all studies.
        study: Name of the study.
        run: Run that is explained.
        explainer: Name of the explainer.
        name: Name of the measure.
        column: Number of every seed.
    """
    strata = findings.strata(study, dict.fromkeys(column, (run, explainer)), name)
    if strata is None:
        return spread(column)
    low, high = mean_intervals([values[None] for values in strata])[:, 0]
    return _with_interval(mean(column), low, high)


def _with_interval(average: float, low: float, high: float) -> str:
    return f"{average:.1f}" + ("" if math.isnan(low) else f" [{low:.1f}, {high:.1f}]")


def _each(column: Column) -> str:
    """Format the number of every seed."""
    return ", ".join(f"{column[seed]:.1f}" for seed in sorted(column)) or "-"


def alignment(findings: Findings, study: str) -> str:
    """Write the localisation of every map that alignment moves, drawn as squares and where its cells look."""
    squares = findings.drawn_as_squares()
    body = []
    for first in findings.rows(study, NOT_ALIGNED, seed=findings.seeds(study)[0]):
        where = {"run": first["run"], "explainer": first["explainer"]}
        cells = []
        for name in LOCALISATION:
            before, after = (one.column(study, "explanation", name, **where) for one in (squares, findings))
            cells.append(f"{spread(before)} → {spread(after)}")
        body.append([label(first), *cells])
    return markdown(["maps", *LOCALISATION.values()], body)


def by_class(findings: Findings, study: str) -> str:
    """Write top-k precision and activation precision of every map, for each class of images."""
    classes = list(dict.fromkeys(row["class"] for row in findings.rows(study, LOCALISED)))
    seed = findings.seeds(study)[0]
    body = []
    for first in findings.rows(study, LOCALISED, seed=seed, **{"class": ALL_LOCATED}):
        cells = []
        for name in classes:
            where = {"run": first["run"], "explainer": first["explainer"], "class": name}
            means = [mean(findings.column(study, LOCALISED, one, **where)) for one in BY_CLASS]
            cells.append(" / ".join(f"{value:.1f}" for value in means))
        body.append([label(first), *cells])
    return markdown(["maps", *classes], body)


def few_images(findings: Findings, study: str) -> str:
    """Write scores of slow post-hoc methods, and of SoftCAM's maps on the same images."""
    body, header = [], []
    for of in dict.fromkeys(row["of"] for row in findings.rows(study, SUBSET, run="vanilla")):
        rows = findings.rows(study, SUBSET, of=of)
        names = header or [name for name in EXPLANATIONS if any(name in row for row in rows)]
        header = names
        for run in dict.fromkeys(row["run"] for row in rows):
            columns = [findings.column(study, SUBSET, name, run=run, of=of) for name in names]
            count = next(row["images"] for row in rows)
            body.append([of if run == "vanilla" else run, str(count), *(map(spread, columns))])
    return markdown(["maps", "images", *(COLUMNS[name][0] for name in header)], body) if body else ""


def resolution(findings: Findings, studies: dict[str, Study]) -> str:
    """Write accuracy and localisation of CAM for every stride and size of images."""
    body = []
    for name, study in studies.items():
        where = {"run": "vanilla", "explainer": "cam", "class": ALL_LOCATED}
        columns = {one: findings.column(name, LOCALISED, one, **where) for one in ("pointing_game", *LOCALISATION)}
        if not columns["pointing_game"]:
            continue
        size = study.settings["image_size"]
        stride = int(study.settings["model_args"].removeprefix("output_stride=") or 32)
        cells = [spread(findings.trained(name, "vanilla", "accuracy"))]
        cells += [map_cell(findings, name, "vanilla", "cam", one, column) for one, column in columns.items()]
        body.append([f"{size} px", str(stride), f"{size // stride}×{size // stride}", *cells])
    return markdown(["images", "stride", "cells", "accuracy in %", "pointing game ↑", *LOCALISATION.values()], body)


def points(findings: Findings, study: str) -> str:
    """Write the Borda points of post-hoc maps and of the maps of bootstrapped CAPE, as in the CAPE paper."""
    table = findings.table1(study)
    ranked = {one: _column(rows, "borda") for one, rows in table.items()}
    ranked = {one: column for one, column in ranked.items() if column}
    order = sorted(ranked, key=lambda one: -mean(ranked[one]))
    significant = {one: _column(table[one], "significant_borda") for one in order}
    if not ranked:
        return ""
    names = ["borda", *(["significant_borda"] if any(significant.values()) else [])]
    body = [[one, spread(ranked[one]), spread(significant[one])][: len(names) + 1] for one in order]
    return markdown(["maps", *(COLUMNS[name][0] for name in names)], body)


def temperatures(findings: Findings, study: str) -> str:
    """Write a line for each run, the vanilla classifier or CAPE, and choice of temperature."""
    names = ("value", "accuracy", "confidence", "calibration_error", "loss", "completeness_error")
    body = []
    for run in findings.runs(study, "calibration"):
        for way in dict.fromkeys(row["temperature"] for row in findings.rows(study, "calibration", run=run)):
            where = {"run": run, "temperature": way}
            *columns, worst = (findings.column(study, "calibration", name, **where) for name in names)
            error = f"{max(worst.values()):.1e}" if worst else "-"
            body.append([f"`{run}`, {way}", *(spread(one, ".3f") for one in columns), error])
    header = ["value", "accuracy", "confidence", "calibration error", "cross-entropy", "completeness error"]
    return markdown(["temperature", *header], body)


def penalties(findings: Findings, study: str) -> str:
    """Write a line for each λ, with the measures of evidence where the rows have them."""
    runs = sweep(findings, study)
    maps = [*LOCALISATION, *(name for name in EVIDENCE_COLUMNS if findings.native(study, runs[0.0], name))]
    body = [
        [
            f"{l1:g}",
            *(spread(findings.trained(study, run, name), PREDICTIONS[name][1]) for name in SWEPT),
            *(map_cell(findings, study, run, "softcam", name, findings.native(study, run, name)) for name in maps),
        ]
        for l1, run in runs.items()
    ]
    header = ["λ", *(PREDICTIONS[name][0] for name in SWEPT), *(COLUMNS[name][0] for name in maps)]
    return markdown(header, body)


def _column(rows: list[Row], name: str) -> Column:
    return {row["seed"]: row[name] for row in rows if row.get(name) is not None}


def over_k(findings: Findings, studies: list[str], name: str, higher: bool) -> Image.Image:
    """Draw the curves over k of native maps, the best post-hoc maps and random, in a chart for each study."""
    native = ("softcam", "softcam-sparse", "cape (PF)", "mu-cape (PF)", "random")
    panels = []
    for study in studies:
        shown = [*native, *leaders(findings, study, name, higher)]
        groups: dict[str, list[list[float]]] = {}
        for row in findings.rows(study, "explanation"):
            if label(row) in shown and f"{name}_curve" in row:
                groups.setdefault(label(row), []).append(row[f"{name}_curve"])
        lines = {one: _mean_curve(groups[one]) for one in shown if one in groups}
        if lines:  # places alone have no curves of sensitivity
            panels.append((f"{study}\n{curve_title(name)}", lines))
    return curves(panels, "k highest patches")


def leaders(findings: Findings, study: str, name: str, higher: bool) -> list[str]:
    """Return the best post-hoc methods, without those that have the same numbers as another one."""
    different = {
        tuple(column.items()): one for one, column in reversed(findings.post_hoc(study, name).items()) if column
    }
    means = {one: mean(dict(items)) for items, one in different.items()}
    return sorted(means, key=lambda one: -means[one] if higher else means[one])[:POST_HOC_LINES]


def _mean_curve(values: list[list[float]]) -> Points:
    return [(k, sum(column) / len(column)) for k, column in enumerate(zip(*values, strict=True), 1)]


def over_penalty(findings: Findings, studies: list[str]) -> Image.Image:
    """Draw predictions and maps over λ, with a line for each study."""

    def panel(name: str, read: Callable[[str, str, str], Column]) -> dict[str, Points]:
        return {
            study: [(_place(l1), mean(read(study, run, name))) for l1, run in sweep(findings, study).items()]
            for study in studies
        }

    panels = [
        ("accuracy in %", panel("accuracy", findings.trained)),
        ("confidence in %", panel("confidence", findings.trained)),
        ("sparseness of the maps (Gini)", panel("sparseness", findings.trained)),
        ("activation sensitivity in %", panel("activation_sensitivity", findings.native)),
    ]
    return curves(panels, "log10 of the penalty λ1 (leftmost: no penalty)")


def _place(l1: float) -> float:
    """Return the position of a penalty on a logarithmic axis, with 0 left of all others."""
    return math.log10(l1) if l1 else NO_PENALTY
