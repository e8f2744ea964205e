"""Derive the tables of README and of the pages in `docs/` from the rows in `benchmarks/results/`.

python -m benchmarks.tables            # write the tables between their markers
python -m benchmarks.tables --check    # exit 1 where a page differs from the rows
"""

import argparse
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.agreement import agreement_table
from benchmarks.alignment.tables import checks_table, gains_table, real_weights_table, steel_table
from benchmarks.causal.tables import causal_speed_table, causal_table
from benchmarks.fine.tables import fine_table
from benchmarks.hidden_layers import hidden_layers_table
from benchmarks.idsds import idsds_table
from benchmarks.image_sizes import image_sizes_table
from benchmarks.measures.tables import measures_table
from benchmarks.patch_shares import patch_shares_table
from benchmarks.recipes import recipes_table
from benchmarks.runtimes import runtimes_table
from benchmarks.speed.tables import (
    alignment_speed_table,
    explainers_table,
    heads_table,
    import_table,
    memory_table,
    peer_table,
    threads_table,
    three_digits,
    training_table,
)
from benchmarks.timing import Row, read_rows
from benchmarks.values import image_values_by_explainer, read_values
from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation.localisation_rows import SIZES
from softcam_hub.evaluation.report import (
    CAUSAL_COLUMNS,
    COLUMNS,
    GROUPS,
    format_interval,
    interval_table,
    markdown,
    table1,
)
from softcam_hub.evaluation.statistics import bootstrap_means

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]

LESIONS = {
    "test_accuracy": "accuracy",
    "test_auc": "AUC",
    "test_teacher_accuracy": "teacher",
    "test_disagreement": "disagreement",
    "test_calibration_error": "calibration error",
    "test_sparseness": "map sparseness (Gini)",
    "seconds": "seconds",
}

SUMMARY = {
    "energy_pointing": "energy in box ↑",
    "activation_precision": "activation precision ↑",
    "adcc": "ADCC ↑",
}

CHOICE = {"energy_pointing": "energy in box ↑", "activation_sensitivity": "activation sensitivity ↑", "adcc": "ADCC ↑"}
"""Measures in the table of methods, beside their cost."""

PLACE = (
    *("localization_precision", "activation_precision", "activation_sensitivity", "energy_pointing", "pointing_game"),
    *("hit_rate", "iou_otsu", "pxap", "max_box_accuracy", "false_alarms"),
)
CAUSAL = (*CAUSAL_COLUMNS, "idle_share", "background_share")
SECTIONS: dict[str, tuple[str, ...]] = {
    "What the prediction says about the map": tuple(name for name in COLUMNS if name not in (*PLACE, *CAUSAL)),
    "Where the lesions are": PLACE,
    "What the removal of parts says": CAUSAL,
}
"""Title of a table of explanations -> its columns."""

Table = tuple[Callable[..., str], tuple[str, ...]]
"""Function that renders a table, and the files of rows that it takes."""

SUMMARISED = (
    ("cam", "lesions-vanilla"),
    ("score-cam", "lesions-vanilla"),
    ("softcam", "lesions-softcam"),
    ("cape", "lesions-cape"),
    ("cape", "lesions-cape-pf"),
    ("mu-cape", "lesions-cape-pf"),
)
"""Explainers and the models that they explain, in the table of README."""


def lesions_table(rows: list[Row]) -> str:
    """Render one line per recipe: mean and spread over seeds of the scores on the test split, and of the seconds."""
    body = []
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        of = [row for row in rows if row["recipe"] == recipe]
        scores = [_score([row[name] for row in of if name in row], name) for name in LESIONS]
        body.append([f"`{recipe}`", f"`{of[0]['model']}`", *scores])
    trained = [row for row in rows if "torch" in row]
    where_run = sorted({f"{row['device']}, torch {row['torch']}, threads: {row['threads']}" for row in trained})
    return (
        f"Scores on 600 generated test images of four classes (200 for the demo); {_seeds_in_words(trained)}. *Mean "
        "colour* is a linear model on the mean colour of an image. *Teacher* is the vanilla head that CAPE learnt "
        f"from. Seconds were measured on a machine that did other work too: {'; '.join(where_run)}.\n\n"
    ) + markdown(["recipe", "model", *LESIONS.values()], body)


def _seeds_in_words(rows: list[Row]) -> str:
    """Say which runs stand behind the numbers, and name the recipes with fewer seeds than the others."""
    seeds: dict[str, list[int]] = {}
    for row in rows:
        seeds.setdefault(row["recipe"], []).append(row["seed"])
    most = sorted(max(seeds.values(), key=len))
    if len(most) == 1:
        return f"one run each with seed {most[0]}"
    fewer = [f"`{recipe}` ({', '.join(map(str, sorted(of)))})" for recipe, of in seeds.items() if len(of) < len(most)]
    text = f"means over the seeds {', '.join(map(str, most))} with the standard deviation between them"
    return f"{text}; fewer seeds: {', '.join(fewer)}" if fewer else text


def summary_table(models: list[Row], explanations: list[Row]) -> str:
    """Render one line per map: accuracy of its model, and the measures that tell the heads apart."""
    accuracies: dict[str, list[float]] = {}
    for model in models:
        accuracies.setdefault(model["recipe"], []).append(model["test_accuracy"])
    rows = {(row["explainer"], row["explains"]): row for row in explanations}
    shown = {model for _, model in SUMMARISED}
    body = []
    for explainer, model in SUMMARISED:
        row = rows[explainer, model]
        error = row.get("completeness_error")
        numbers = [with_interval(row, name) for name in SUMMARY]
        body.append(
            [
                f"`{explainer}` of `{model}`",
                _score(accuracies[model], "test_accuracy"),
                "-" if error is None else f"{error:.0e}",
                *numbers,
            ]
        )
    return (
        "Networks of 0.4 million parameters on generated lesions: accuracy on 600 test images, "
        f"{_seeds_in_words([row for row in models if row['recipe'] in shown])}; maps of seed 0 on 200 of them. "
        "The completeness error is the difference between the sum (CAPE) or mean (SoftCAM) of a map and the "
        "prediction. Post-hoc maps explain the vanilla classifier. "
        f"Measures are in percent{_brackets(explanations)}.\n\n"
    ) + markdown(["map", "accuracy", "completeness error ↓", *SUMMARY.values()], body)


def explanations_table(rows: list[Row]) -> str:
    """Render the CAPE paper's Table 1 on lesions with every explainer, tables of further scores, and all intervals."""
    row, values = rows[0], image_values_by_explainer(read_values("explanations"))
    whole = all((row["explainer"], row["explains"]) in values for row in rows)
    marks, parts = f" {GROUPS}" if whole else "", []
    for title, names in SECTIONS.items():
        if not any(name in row for row in rows for name in names):
            continue
        shown = [{name: value for name, value in row.items() if _belongs(name, names)} for row in rows]
        table, _, _ = table1(shown, values if whole else None).partition("\n\n")
        intervals = interval_table(shown)
        parts.append(f"**{title}**\n\n{table}")
        if intervals:
            parts.append(f"95 % intervals of these means, by a bootstrap over the images:\n\n{intervals.rstrip()}")
    parts.append(
        f"{row['images']} test images, {row['annotated']} of them with lesions; one run of each model, "
        f"seed 0; torch {row['torch']}, timm {row['timm']}, {row['device']}. Measures are in percent, except "
        f"for BC, completeness error, Gini and correlations. BC is the Borda count of AD, IC, ADD, ADCC and mIoU among "
        "all explainers except random and centre. Localisation measures the map of the true label, causal scores that "
        f"of the predicted class. Top-k is the mean over the 1 to 30 highest of 256 patches.{marks}"
    )
    return "\n\n".join(parts)


def _belongs(column: str, names: tuple[str, ...]) -> bool:
    """Tell whether a column of a row is of a section: its scores with their intervals, and what is no score."""
    score = column.removesuffix("_interval")
    return score in names if score in COLUMNS else True


def alignment_table(rows: list[Row]) -> str:
    """Render one line per explainer of the shipped model: how well its map points, aligned and not."""
    body = []
    for row in rows:
        if row["aligned"]:
            key = ("explainer", "explains")
            before = next(one for one in rows if not one["aligned"] and all(one[name] == row[name] for name in key))
            scores = [_gain(before, row, name) for name in ("pointing_game", "activation_precision")]
            body.append([f"`{row['explainer']}`", row["explains"], *scores])
    row = rows[0]
    down, right = row["map_offset"]
    return (
        f"Percent, for the true class on {row['images']} diseased test images of `lesions`, drawn as squares → "
        "aligned, and the mean gain on the same images with its 95 % interval. The shipped model looks "
        f"{down:+.2f} cells down and {right:+.2f} right of where its cells are drawn as squares.\n\n"
    ) + markdown(["map", "explains", "pointing game", "activation precision"], body)


def _gain(habit: Row, aligned: Row, name: str) -> str:
    """Say a score before and after, and the interval of the difference over the images."""
    text = f"{100 * habit[name]:.1f} → {100 * aligned[name]:.1f}"
    differences = 100 * (np.array(aligned["values"][name]) - np.array(habit["values"][name]))
    if not differences.any():  # maps that do not move
        return text
    found = bootstrap_means([differences[None]])
    low, high = (float(end[0]) for end in found.interval())
    return f"{text} ({found.estimate[0]:+.1f} [{low:+.1f}, {high:+.1f}])"


def sizes_table(rows: list[Row]) -> str:
    """Render one line per explainer: localisation of small, medium and large lesions."""
    names = ("hit_rate", "activation_precision")
    body = []
    for row in rows:
        groups = [row["by_size"][size] for size in SIZES]
        cells = [f"{group[name]:.1f}" for name in names for group in groups]
        body.append([row["explainer"], row["explains"], *cells])
    limits, groups = rows[0]["by_size"]["limits"], [rows[0]["by_size"][size]["images"] for size in SIZES]
    header = ["explainer", "explains", *(f"{COLUMNS[name][0][:-2]}, {size}" for name in names for size in SIZES)]
    return (
        f"Percent, for images with small lesions (up to {limits[0]:.1f} % of the image, {groups[0]} images), medium "
        f"ones (up to {limits[1]:.1f} %, {groups[1]}) and large ones ({groups[2]}).\n\n"
    ) + markdown(header, body)


def methods_table(costs: list[Row], explanations: list[Row]) -> str:
    """Render one line per post-hoc method: its cost, and its maps of the vanilla classifier on lesions."""
    ours = {row["method"]: row for row in costs if row["side"] == "ours" and row["batch"] == 1}
    body = []
    for row in explanations:
        cost = ours.get(row["explainer"])
        if cost is not None and row["explains"] == "lesions-vanilla":
            numbers = [with_interval(row, name) for name in CHOICE]
            body.append([f"`{row['explainer']}`", three_digits(cost["ratio"]), f"`{cost['model']}`", *numbers])
    return (
        "Cost of a map of one image in forward passes, and measures in percent of the maps of `lesions-vanilla` "
        f"(one network, 200 generated images; all measures are in [Scores](scores.md)){_brackets(explanations)}.\n\n"
    ) + markdown(["method", "forward passes", "of", *CHOICE.values()], body)


def kills_table(rows: list[Row]) -> str:
    """Render one line per command and setting: the number of kills, and whether the output was whole."""
    body = [
        [
            f"{row['command']}: {row['configuration']}",
            *(str(row[name]) for name in ("processes", "kills")),
            "yes" if row["identical"] else "no",
            *(str(row[name]) for name in ("lost_files", "seconds")),
        ]
        for row in rows
    ]
    kills, same = sum(row["kills"] for row in rows), sum(row["identical"] for row in rows)
    lost = sum(row["lost_files"] for row in rows)
    return (
        f"{kills} kills; output identical in {same} of {len(rows)} cases; lost files: {lost}. Seconds include "
        f"the undisturbed run and all reruns, on a machine that did other work too.\n\n"
    ) + markdown(["command", "processes", "kills", "identical", "lost files", "seconds"], body)


def notebooks_table(rows: list[Row]) -> str:
    """Render one line per tutorial: the commands and cells that a reader runs, and how long they take."""
    body = [[f"[{row['notebook']}](notebooks/{row['notebook']}.ipynb)"] for row in rows]
    for line, row in zip(body, rows, strict=True):
        line += [str(row["commands"]), str(row["cells"]), f"{row['seconds'] / 60:.1f}"]
    machines = sorted({f"{row['cores']} cores, torch {row['torch']}" for row in rows})
    return f"One run of each on {'; '.join(machines)}, without a GPU.\n\n" + markdown(
        ["tutorial", "commands", "cells", "minutes"], body
    )


def _brackets(rows: list[Row]) -> str:
    """Explain the brackets of `with_interval`, where there are any."""
    shown = any(name.endswith("_interval") for row in rows for name in row)
    return ", with 95 % intervals over the images in brackets" if shown else ""


def with_interval(row: Row, name: str) -> str:
    """Format a score in percent, with its interval where the row has one."""
    ends = row.get(f"{name}_interval")
    return f"{row[name]:.1f}" + (f" {format_interval(ends, name)}" if ends else "")


def _score(values: list[float], name: str) -> str:
    """Return the mean of some runs, with its spread where there are several."""
    if not values:
        return "-"
    mean, scale = statistics.fmean(values), 100 if "accuracy" in name else 1
    digits = 0 if name == "seconds" else 1 if scale == 100 else 3
    spread = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * mean:.{digits}f}{spread}{' %' if scale == 100 else ''}"


README_TABLES: dict[str, Table] = {"summary": (summary_table, ("lesions", "explanations"))}
SCORES_TABLES: dict[str, Table] = {
    "lesions": (lesions_table, ("lesions",)),
    "sizes": (sizes_table, ("explanations",)),
    "explanations": (explanations_table, ("explanations",)),
    "alignment": (alignment_table, ("alignment",)),
    "causal": (causal_table, ("causal",)),
    "causal_speed": (causal_speed_table, ("causal_speed",)),
    "measures": (measures_table, ("measures",)),
    "idsds": (idsds_table, ("idsds",)),
    "agreement": (agreement_table, ("agreement_steel",)),
}
SPEED_TABLES: dict[str, Table] = {
    "explainers": (explainers_table, ("explainers",)),
    "peer_table": (peer_table, ("peer_table",)),
    "heads": (heads_table, ("heads",)),
    "alignment_speed": (alignment_speed_table, ("alignment_speed",)),
    "training": (training_table, ("training",)),
    "threads": (threads_table, ("threads",)),
    "memory": (memory_table, ("memory",)),
    "import": (import_table, ("import",)),
    "notebooks": (notebooks_table, ("notebooks",)),
}
FAQ_TABLES: dict[str, Table] = {"methods": (methods_table, ("explainers", "explanations"))}
OUTPUTS_TABLES: dict[str, Table] = {"kills": (kills_table, ("kills",))}
EXPLAINERS_TABLES: dict[str, Table] = {"patch_shares": (patch_shares_table, ("patch_shares",))}
MODELS_TABLES: dict[str, Table] = {
    "hidden_layers": (hidden_layers_table, ("hidden_layers",)),
    "image_sizes": (image_sizes_table, ("image_sizes",)),
    "fine": (fine_table, ("fine",)),
    "runtimes": (runtimes_table, ("runtimes",)),
}
ALIGNMENT_TABLES: dict[str, Table] = {
    "checks": (checks_table, ("alignment_checks",)),
    "real_weights": (real_weights_table, ("alignment_real_weights",)),
    "gains": (gains_table, ("reproduction",)),
    "steel": (steel_table, ("alignment_steel",)),
}

FIRST_DATA_SET_TABLES: dict[str, Table] = {"recipes": (recipes_table, ("recipes",))}

PAGES: dict[Path, dict[str, Table]] = {
    ROOT / "README.md": README_TABLES,
    ROOT / "docs" / "scores.md": SCORES_TABLES,
    ROOT / "docs" / "speed.md": SPEED_TABLES,
    ROOT / "docs" / "outputs.md": OUTPUTS_TABLES,
    ROOT / "docs" / "faq.md": FAQ_TABLES,
    ROOT / "docs" / "models.md": MODELS_TABLES,
    ROOT / "docs" / "explainers.md": EXPLAINERS_TABLES,
    ROOT / "docs" / "alignment.md": ALIGNMENT_TABLES,
    ROOT / "docs" / "first_data_set.md": FIRST_DATA_SET_TABLES,
}
"""Page -> name between its markers -> table."""


def read_results(name: str) -> list[Row]:
    """Read a file of `benchmarks/results/`, or end the program with the command that writes it."""
    rows = read_rows(RESULTS / f"{name}.jsonl")
    if not rows:
        target = name if name in ("kills", "notebooks") else "bench"
        sys.exit(f"benchmarks/results/{name}.jsonl does not exist or is empty: run `make {target}` first")
    return rows


def filled(page: str, text: str, name: str, table: str) -> str:
    """Return `text` with `table` between the markers of `name`."""
    pattern = re.compile(rf"(<!-- table: {name} -->\n)(?:(?!<!-- table).)*?(<!-- /table -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        sys.exit(f"{page} needs `<!-- table: {name} -->` and `<!-- /table -->` once, each on its own line")
    return pattern.sub(lambda markers: f"{markers[1]}\n{table.rstrip()}\n\n{markers[2]}", text)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 where a page differs from the rows")
    check = parser.parse_args().check
    for page, tables in PAGES.items():
        if not page.exists():
            sys.exit(f"{page.name} does not exist: write it first, with a pair of markers for each table")
        old = new = page.read_text(encoding="utf-8")
        for name, (render, files) in tables.items():
            new = filled(page.name, new, name, render(*(read_results(file) for file in files)))
        if check and new != old:
            sys.exit(f"{page.name} differs from the rows in benchmarks/results: run `python -m benchmarks.tables`")
        if new != old:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
