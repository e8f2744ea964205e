"""Render the tables of explanations on generated lesions, whose rows `benchmarks.reproduction.explanations` writes.

Numbers are means over the seeds. Intervals and bold numbers resample the images, which are the same in all seeds, and
the tables of intervals have the number of every seed.
"""

from collections.abc import Iterable

import numpy as np

from softcam_hub.evaluation.localisation_report import format_bins
from softcam_hub.evaluation.localisation_rows import SIZES
from softcam_hub.evaluation.report import (
    CAUSAL_COLUMNS,
    COLUMNS,
    GROUPS,
    format_interval,
    format_score,
    markdown,
    scores_table,
)
from softcam_hub.evaluation.results import ImageValues
from softcam_hub.evaluation.statistics import Array, bootstrap_of_sums, mean_intervals
from softcam_hub.explainers.methods import list_explainers

from .agreement import agreement_table, average_agreement
from .averages import INTERVAL, ROUNDING, SEEDS, average_over_seeds, seeds_of, values_of_seeds
from .lesions_table import format_scores, name_seeds
from .speed.tables import three_digits
from .timing import Row
from .values import CELLS, read_values

SUMMARY = {
    "energy_pointing": "energy in box ↑",
    "activation_precision": "activation precision ↑",
    "adcc": "ADCC ↑",
}

CHOICE = {"energy_pointing": "energy in box ↑", "activation_sensitivity": "activation sensitivity ↑", "adcc": "ADCC ↑"}
"""Measures in the table of methods, beside their cost."""

PLACE = (
    *("localization_precision", "activation_precision", "activation_sensitivity", "energy_pointing", "pointing_game"),
    *("hit_rate", "iou_otsu", "iou_tuned", "pxap", "max_box_accuracy", "false_alarms"),
)
CAUSAL = (*CAUSAL_COLUMNS, "idle_share", "background_share")
SECTIONS: dict[str, tuple[str, ...]] = {
    "What the prediction says about the map": tuple(name for name in COLUMNS if name not in (*PLACE, *CAUSAL)),
    "Where the lesions are": PLACE,
    "What the removal of parts says": CAUSAL,
}
"""Title of a table of explanations -> its columns."""

SUMMARISED = (
    ("cam", "lesions-vanilla"),
    ("score-cam", "lesions-vanilla"),
    ("softcam", "lesions-softcam"),
    ("cape", "lesions-cape"),
    ("cape", "lesions-cape-pf"),
    ("mu-cape", "lesions-cape-pf"),
)
"""Explainers and the models that they explain, in the table of README."""


def summary_table(models: list[Row], explanations: list[Row]) -> str:
    """Render one line per map: accuracy of its model, and the measures that tell the heads apart."""
    accuracies: dict[str, list[float]] = {}
    for model in models:
        accuracies.setdefault(model["recipe"], []).append(model["test_accuracy"])
    averaged = {(row["explainer"], row["explains"]): row for row in with_intervals(explanations)[0]}
    body = []
    for explainer, model in SUMMARISED:
        row = averaged[explainer, model]
        error = row.get("completeness_error")
        body.append(
            [
                f"`{explainer}` of `{model}`",
                format_scores(accuracies[model], "test_accuracy"),
                "-" if error is None else f"{error:.0e}",
                *(with_interval(row, name) for name in SUMMARY),
            ]
        )
    shown = {model for _, model in SUMMARISED}
    return (
        "Networks of 0.4 million parameters on generated lesions: accuracy on 600 test images, "
        f"{name_seeds([row for row in models if row['recipe'] in shown])}; maps on 200 of these images, "
        f"{_seeds_of_maps(explanations)}. The completeness error is the difference between the sum (CAPE) or mean "
        "(SoftCAM) of a map and the prediction. Post-hoc maps explain the vanilla classifier. "
        f"Measures are in percent{_brackets(averaged.values())}.\n\n"
    ) + markdown(["map", "accuracy", "completeness error ↓", *SUMMARY.values()], body)


def explanations_table(rows: list[Row]) -> str:
    """Render the CAPE paper's Table 1 on lesions with every explainer, tables of further scores, and all intervals."""
    averaged, values = with_intervals(rows)
    values = values if len(values) == len(averaged) else {}  # all can be compared, or none
    several, parts = len(seeds_of(rows)) > 1, []
    for title, names in SECTIONS.items():
        if not any(name in row for row in averaged for name in names):
            continue
        shown = [{name: value for name, value in row.items() if _belongs(name, names)} for row in averaged]
        parts.append(f"**{title}**\n\n{scores_table(shown, values).rstrip()}")
        of_seeds = seeds_table(averaged, names)
        if of_seeds:
            what = "The number of every seed, and the" if several else "The number, and the"
            parts.append(f"{what} 95 % interval by a bootstrap over the images:\n\n{of_seeds.rstrip()}")
    intervals = (
        " A single interval is that of the mean over the seeds; a score that is no mean over images (PxAP, "
        "MaxBoxAccV2, false alarms, correlations over all parts) has one in every seed."
    )
    parts.append(
        f"{rows[0]['images']} test images, {rows[0]['annotated']} of them with lesions; {_seeds_of_maps(rows)}; "
        f"{_where_run(rows)}. Measures are in percent, except "
        "for BC, completeness error, Gini and correlations. BC is the Borda count of AD, IC, ADD, ADCC and mIoU among "
        "all explainers except random and centre. Localisation measures the map of the true label, causal scores that "
        "of the predicted class. Top-k is the mean over the 1 to 30 highest of 256 patches. The threshold of the tuned "
        "IoU is the best one on the annotated ones of 100 validation images."
        f"{intervals if several else ''}{f' {GROUPS}' if values else ''}"
    )
    return "\n\n".join(parts)


def _where_run(rows: list[Row]) -> str:
    """Name the versions and the machines of all rows."""
    return "; ".join(sorted({f"torch {row['torch']}, timm {row['timm']}, {row['device']}" for row in rows}))


def _belongs(column: str, names: tuple[str, ...]) -> bool:
    """Tell whether a column of a row is of a section: its scores, and what is no score; intervals have their table."""
    return column in names if column in COLUMNS else not column.endswith(INTERVAL)


def seeds_table(averaged: list[Row], names: tuple[str, ...]) -> str:
    """Render the score of every seed with intervals, or return an empty text where no score has an interval."""
    shown = [
        name
        for name in names
        if any(f"{name}{INTERVAL}" in one for row in averaged for one in (row, *row[SEEDS]))
        and any(name in row for row in averaged)
    ]
    body = [[row["explainer"], row["explains"], *(_every_seed(row, name) for name in shown)] for row in averaged]
    header = ["explainer", "explains", *(COLUMNS[name][0] for name in shown)]
    return markdown(header, body) if shown else ""


def _every_seed(row: Row, name: str) -> str:
    """Format the score of every seed, and its interval: that of the mean, or else one for every seed."""
    if name not in row:
        return "-"
    ends = row.get(f"{name}{INTERVAL}")
    if ends:
        return f"{', '.join(format_score(one[name], name) for one in row[SEEDS])} {format_interval(ends, name)}"
    return ", ".join(with_interval(one, name) for one in row[SEEDS])


def sizes_table(rows: list[Row]) -> str:
    """Render one line per explainer: localisation of small, medium and large lesions."""
    averaged, values = with_intervals(rows)
    areas = {(row["explainer"], row["explains"]): row["annotated_area"] for row in read_values("explanations")}
    names, body = ("hit_rate", "activation_precision"), []
    for row in averaged:
        key = row["explainer"], row["explains"]
        group_of = _groups_by_size(areas.get(key, []), row["by_size"]["limits"])
        cells = []
        for name in names:
            known = values.get(key, {}).get(name)
            for number, size in enumerate(SIZES):
                chosen, group = group_of == number, row["by_size"][size]
                cell = format_score(group[name], name)
                if known is not None and chosen.sum() == group["images"]:
                    low, high = mean_intervals([known[None, chosen]])[:, 0]
                    cell += "" if np.isnan(low) else f" {format_interval((low, high), name)}"
                cells.append(cell)
        body.append([row["explainer"], row["explains"], *cells])
    by_size = averaged[0]["by_size"]
    limits, groups = by_size["limits"], [by_size[size]["images"] for size in SIZES]
    header = ["explainer", "explains", *(f"{COLUMNS[name][0][:-2]}, {size}" for name in names for size in SIZES)]
    return (
        f"Percent, {_seeds_of_maps(rows)}, with 95 % intervals over the images, for images with small lesions (up to "
        f"{limits[0]:.1f} % of the image, {groups[0]} images), medium ones (up to {limits[1]:.1f} %, {groups[1]}) and "
        f"large ones ({groups[2]}).\n\n"
    ) + markdown(header, body)


def _groups_by_size(areas: list[float | None], limits: list[float]) -> Array:
    """Return the number of the group of every image by the share of its lesions, -1 without lesions.

    Args:
        areas: Share of every image that is annotated.
        limits: Limits between the groups in percent; an area at a limit belongs to the group below.
    """
    known = np.array(areas, dtype=float)  # None becomes NaN
    return np.where(np.isnan(known), -1, np.digitize(100 * known, np.array(limits) * (1 + ROUNDING), right=True))


def reliability_table(rows: list[Row]) -> str:
    """Render one line per map: the share of cells that touch a lesion, by the mass of the cell."""
    histograms: dict[tuple[str, str], list[Array]] = {}
    for of_images in read_values("explanations"):
        key = of_images["explainer"], of_images["explains"]
        histograms.setdefault(key, []).append(np.array(of_images[CELLS], dtype=float))
    bins = format_bins(rows[0]["reliability"])
    body = []
    for key in SUMMARISED:
        counts = np.sum(histograms[key], axis=0).reshape(-1, 2, len(bins))  # the images are the same in all seeds
        found = bootstrap_of_sums([counts], lambda sums: 100 * sums[:, 0] / sums[:, 1])
        numbers = zip(found.estimate, *found.interval(), counts[:, 1].sum(axis=0), strict=True)
        cells = [f"{share:.1f} [{low:.1f}, {high:.1f}] ({count:.0f})" for share, low, high, count in numbers]
        body.append([*key, *(cell if "nan" not in cell else "-" for cell in cells)])
    return (
        "Percent of the cells of a bin that touch a lesion, with the 95 % interval over the images, and the number of "
        f"cells; {_cells_of(rows)}. The mass of a cell is its share of the map times the probability of the class.\n\n"
    ) + markdown(["map", "explains", *bins], body)


def _cells_of(rows: list[Row]) -> str:
    """Say in words whose cells were counted."""
    seeds = seeds_of(rows)
    return f"cells of the runs of the seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else _seeds_of_maps(rows)


def lesions_agreement_table(rows: list[Row]) -> str:
    """Render a line for every explainer, with its correlation with some of the others on generated lesions."""
    images = f"200 generated test images and the runs of seed {', '.join(map(str, seeds_of(rows)))}"
    return agreement_table(average_agreement(in_order(rows)), images)


def methods_table(costs: list[Row], explanations: list[Row]) -> str:
    """Render one line per post-hoc method: its cost, and its maps of the vanilla classifier on lesions."""
    ours = {row["method"]: row for row in costs if row["side"] == "ours" and row["batch"] == 1}
    averaged, _ = with_intervals(explanations)
    body = []
    for row in averaged:
        cost = ours.get(row["explainer"])
        if cost is not None and row["explains"] == "lesions-vanilla":
            numbers = [with_interval(row, name) for name in CHOICE]
            body.append([f"`{row['explainer']}`", three_digits(cost["ratio"]), f"`{cost['model']}`", *numbers])
    return (
        "Cost of a map of one image in forward passes, and measures in percent of the maps of `lesions-vanilla` "
        f"(200 generated images; {_seeds_of_maps(explanations)}; all measures are in [Scores](scores.md))"
        f"{_brackets(averaged)}.\n\n"
    ) + markdown(["method", "forward passes", "of", *CHOICE.values()], body)


def with_intervals(rows: list[Row]) -> tuple[list[Row], ImageValues]:
    """Average rows over their seeds, in order; return means with their intervals, and the mean of every image."""
    return average_over_seeds(in_order(rows), values_of_seeds(read_values("explanations")))


def in_order(rows: list[Row]) -> list[Row]:
    """Sort rows by the models, and by the explainers as the package lists them."""
    names = list_explainers()
    return sorted(rows, key=lambda row: (row["explains"], names.index(row["explainer"])))


def _seeds_of_maps(rows: list[Row]) -> str:
    """Say in words which networks stand behind the means."""
    seeds = seeds_of(rows)
    if len(seeds) == 1:
        return f"one run of each model, seed {seeds[0]}"
    return f"means over the runs of the seeds {', '.join(map(str, seeds))}"


def _brackets(rows: Iterable[Row]) -> str:
    """Explain the brackets of `with_interval`, where there are any."""
    shown = any(name.endswith(INTERVAL) for row in rows for name in row)
    return ", with 95 % intervals over the images in brackets" if shown else ""


def with_interval(row: Row, name: str) -> str:
    """Format a score, with its interval where the row has one."""
    ends = row.get(f"{name}{INTERVAL}")
    return format_score(row[name], name) + (f" {format_interval(ends, name)}" if ends else "")
