"""Derive the tables of README and of the pages in `docs/` from the rows in `benchmarks/results/`.

python -m benchmarks.tables            # write the tables between their markers
python -m benchmarks.tables --check    # exit 1 where a page differs from the rows
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation.report import table1

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
COLUMNS = {
    "softcam logits": "SoftCAM, logits only",
    "softcam explained": "SoftCAM, all maps",
    "cape explained": "CAPE, all maps",
    "control": "vanilla again (control)",
}

LESIONS = {
    "test_accuracy": "accuracy",
    "test_auc": "AUC",
    "test_teacher_accuracy": "teacher",
    "test_disagreement": "disagreement",
    "test_calibration_error": "calibration error",
    "test_sparseness": "map sparseness (Gini)",
    "seconds": "seconds",
}

SIDES = ("ours", "captum", "pytorch-grad-cam", "torchcam")

SUMMARY = {
    "energy_pointing": "share of the map on lesions ↑",
    "activation_precision": "activation precision ↑",
    "adcc": "ADCC ↑",
}

Row = dict[str, Any]

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


def markdown(header: list[str], body: list[list[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body))


def with_quartiles(row: Row, name: str, form: str) -> str:
    low, high = row[f"{name}_quartiles"]
    return f"{row[name]:{form}} ({low:{form}} to {high:{form}})"


def where(row: Row) -> str:
    return f"torch {row['torch']}, timm {row['timm']}, {row['machine']}, torch threads: {row['threads']}"


def heads_table(rows: list[Row]) -> str:
    formula = [row for row in rows if row["comparison"] == "cape formula"]
    return "\n\n".join([models_table([row for row in rows if row["comparison"] in COLUMNS]), formula_table(formula)])


def models_table(rows: list[Row]) -> str:
    """One line per model and batch: the vanilla forward, and what each variant takes of it."""
    cases: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row["model"], row["batch"]), {})[row["comparison"]] = row
    body = [
        [
            f"`{model}` at {found['control']['image_size']} px, batch {batch}",
            f"{1000 * found['control']['b_seconds']:.0f} ms",
            *(with_quartiles(found[comparison], "ratio", ".3f") for comparison in COLUMNS),
        ]
        for (model, batch), found in cases.items()
    ]
    pairs = sorted({row["pairs"] for row in rows})
    return (
        "Time of one forward, as a multiple of the vanilla timm forward with the same (random) weights: median of "
        f"{pairs[0]} to {pairs[-1]} interleaved pairs, quartiles in brackets. The control is a copy of the vanilla "
        f"model: what it differs from 1 by is noise. {where(rows[0])}.\n\n"
    ) + markdown(["model", "vanilla", *COLUMNS.values()], body)


def formula_table(rows: list[Row]) -> str:
    """One line per evidence shape and pass: the authors' formula beside ours."""
    return (
        "CAPE from evidence to log-probabilities (the 1x1 evidence layer is on neither side): `CAPEHead` beside the "
        "authors' formula, which forms a (B, C, HW, HW) tensor. Peak memory is what a fresh process rises by.\n\n"
    ) + markdown(
        ["evidence", "authors' formula", "`CAPEHead`", "time ratio", "CPU time ratio", "memory, theirs", "ours"],
        [formula_line(row) for row in rows],
    )


def formula_line(row: Row) -> list[str]:
    shape = "×".join(str(size) for size in (row["batch"], row["classes"], *row["map_size"]))
    label = f"{shape}, {row['pass']}"
    if "not_run" in row:
        return [label, row["not_run"], *["-"] * 5]
    return [
        label,
        *(f"{three_digits(1000 * row[f'{side}_seconds'])} ms" for side in "ab"),
        with_quartiles(row, "ratio", ".0f"),
        with_quartiles(row, "cpu_ratio", ".0f"),
        *(mebibytes(row[f"{side}_peak_mib"]) for side in "ab"),
    ]


def mebibytes(value: float | None) -> str:
    return "not measured" if value is None else f"{three_digits(value)} MiB"


def three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def import_table(rows: list[Row]) -> str:
    row = rows[0]
    cells = [f"{row['b_seconds']:.2f} s", f"{row['a_seconds']:.2f} s", with_quartiles(row, "added_seconds", ".2f")]
    return (
        f"Seconds to import, in fresh processes: medians of {row['pairs']} interleaved pairs, and the median of the "
        f"differences with quartiles. Python {row['python']}, {where(row)}.\n\n"
    ) + markdown(["", "without `softcam_hub`", "with it", "added"], [[f"`{row['b']}`", *cells]])


def lesions_table(rows: list[Row]) -> str:
    """One line per recipe: scores on the test split, and what the run took."""
    body = [[f"`{row['recipe']}`", f"`{row['model']}`", *(_score(row, name) for name in LESIONS)] for row in rows]
    trained = [row for row in rows if "torch" in row]
    where_run = sorted({f"{row['device']}, torch {row['torch']}, threads: {row['threads']}" for row in trained})
    return (
        "Scores on 600 generated test images of four classes (200 for the demo), one run each with seed 0; the floor "
        "is a linear model on the mean colour. *Teacher* is the vanilla head that CAPE learnt from. Seconds are of "
        f"{'; '.join(where_run)}, on a machine that did other work too.\n\n"
    ) + markdown(["recipe", "model", *LESIONS.values()], body)


def summary_table(models: list[Row], explanations: list[Row]) -> str:
    """Render one line per map: accuracy of its model, and the measures that tell the heads apart."""
    accuracies = {row["recipe"]: row["test_accuracy"] for row in models}
    rows = {(row["explainer"], row["explains"]): row for row in explanations}
    body = []
    for explainer, model in SUMMARISED:
        row = rows[explainer, model]
        error = row.get("completeness_error")
        numbers = [f"{row[name]:.1f}" for name in SUMMARY]
        body.append(
            [
                f"`{explainer}` of `{model}`",
                f"{100 * accuracies[model]:.1f} %",
                "-" if error is None else f"{error:.0e}",
                *numbers,
            ]
        )
    return (
        "Networks of 0.4 million parameters on generated lesions, one run each with seed 0: accuracy on 600 test "
        "images, maps on 200. The completeness error is the difference between the sum (CAPE) or mean (SoftCAM) of a "
        "map and the prediction. Post-hoc maps explain the vanilla classifier. Measures are in percent.\n\n"
    ) + markdown(["map", "accuracy", "completeness error ↓", *SUMMARY.values()], body)


def training_table(rows: list[Row]) -> str:
    """One line per setting: an epoch of post-fitting with and without the cache."""
    body = [
        [
            f"`{row['model']}` at {row['image_size']} px, {row['images']} images, {row['classes']} classes",
            *(f"{row[f'{side}_seconds']:.2f} s" for side in ("uncached", "cached")),
            f"{row['ratio']:.0f} ({row['ratio_quartiles'][0]:.0f} to {row['ratio_quartiles'][1]:.0f})",
        ]
        for row in rows
    ]
    return (
        "An epoch of post-fitting with the features of the frozen backbone computed anew, and read from the cache: "
        f"medians of {rows[0]['pairs']} interleaved pairs, quartiles in brackets. {where(rows[0])}.\n\n"
    ) + markdown(["model", "computed anew", "cached", "ratio"], body)


def explanations_table(rows: list[Row]) -> str:
    """The CAPE paper's Table 1 on lesions, every explainer among all others."""
    row = rows[0]
    table, _, _ = table1(rows).partition("\n\n")
    return table + (
        f"\n\n{row['images']} test images, {row['annotated']} of them with lesions; one run of each model, seed 0; "
        f"torch {row['torch']}, timm {row['timm']}, {row['device']}. Percent, but for BC, completeness error and Gini. "
        "BC is the Borda count of AD, IC, ADD, ADCC and mIoU among all but the floors. Localisation is of the map of "
        "the true label; top-k means the mean over the 1 to 30 highest of 256 patches."
    )


def explainers_table(rows: list[Row]) -> str:
    """One line per method and batch: what it costs with us and with each peer, in forward passes."""
    cases: dict[tuple[str, int, str], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row["model"], row["batch"], row["method"]), {})[row["side"]] = row
    body = []
    for (model, batch, method), found in cases.items():
        ratios = [with_quartiles(found[side], "ratio", ".3g") if side in found else "-" for side in SIDES]
        memory = ["-" if side not in found else mebibytes(found[side]["peak_mib"]) for side in SIDES[:3:2]]
        body.append([f"{method}, `{model}`, batch {batch}", *ratios, *memory])
    row, pairs = rows[0], [row["pairs"] for row in rows]
    return (
        f"Maps of one class per image as a multiple of one forward of the same batch at {row['image_size']} px "
        f"(random weights): medians of {min(pairs)} (the dearest) to {max(pairs)} interleaved pairs, quartiles in "
        "brackets. Memory is what a fresh process rises by. "
        f"{where(row)}.\n\n"
    ) + markdown(["method", *SIDES, "memory, ours", f"memory, {SIDES[2]}"], body)


def peer_table(rows: list[Row]) -> str:
    """One line per peer: Table 1 of 64 images with it, and with us."""
    body = [
        [
            f"{row['peer']}: {', '.join(row['methods'])}",
            *(f"{row[f'{side}_seconds']:.1f} s" for side in "ab"),
            with_quartiles(row, "ratio", ".2f"),
        ]
        for row in rows
    ]
    row = rows[0]
    return (
        f"AD, IC, ADD, ADCC and mIoU of {row['images']} images at {row['image_size']} px, `{row['model']}` with random "
        f"weights, batch {row['batch']}: medians of {row['pairs']} interleaved pairs, quartiles in brackets. "
        f"{where(row)}.\n\n"
    ) + markdown(["peer and its methods", "with the peer", "`softcam-hub benchmark`", "ratio"], body)


def kills_table(rows: list[Row]) -> str:
    """One line per command and setting: kills, and what came of them."""
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
        f"{kills} kills; output identical in {same} of {len(rows)} cases; lost files: {lost}. Seconds include the "
        "undisturbed run and all reruns, on a machine that did other work too.\n\n"
    ) + markdown(["command", "processes", "kills", "identical", "lost files", "seconds"], body)


def _score(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return "-"
    return f"{value:.0f}" if name == "seconds" else f"{100 * value:.1f} %" if "accuracy" in name else f"{value:.3f}"


README_TABLES: dict[str, Table] = {"summary": (summary_table, ("lesions", "explanations"))}
SCORES_TABLES: dict[str, Table] = {
    "lesions": (lesions_table, ("lesions",)),
    "explanations": (explanations_table, ("explanations",)),
}
SPEED_TABLES: dict[str, Table] = {
    "explainers": (explainers_table, ("explainers",)),
    "peer_table": (peer_table, ("peer_table",)),
    "heads": (heads_table, ("heads",)),
    "training": (training_table, ("training",)),
    "import": (import_table, ("import",)),
}
OUTPUTS_TABLES: dict[str, Table] = {"kills": (kills_table, ("kills",))}

PAGES: dict[Path, dict[str, Table]] = {
    ROOT / "README.md": README_TABLES,
    ROOT / "docs" / "scores.md": SCORES_TABLES,
    ROOT / "docs" / "speed.md": SPEED_TABLES,
    ROOT / "docs" / "outputs.md": OUTPUTS_TABLES,
}
"""Page -> name between its markers -> table."""


def read_rows(name: str) -> list[Row]:
    path = RESULTS / f"{name}.jsonl"
    if not path.exists():
        sys.exit(
            f"benchmarks/results/{path.name} does not exist: run `make {name if name == 'kills' else 'bench'}` first"
        )
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def filled(page: str, text: str, name: str, table: str) -> str:
    """`text` with `table` between the markers of `name`."""
    pattern = re.compile(rf"(<!-- table: {name} -->\n)(?:(?!<!-- table).)*?(<!-- /table -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        sys.exit(f"{page} needs `<!-- table: {name} -->` and `<!-- /table -->` once, each on its own line")
    return pattern.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 where a page differs from the rows")
    check = parser.parse_args().check
    for page, tables in PAGES.items():
        if not page.exists():
            sys.exit(f"{page.name} does not exist: write it first, with a pair of markers for each table")
        old = new = page.read_text(encoding="utf-8")
        for name, (render, files) in tables.items():
            new = filled(page.name, new, name, render(*(read_rows(file) for file in files)))
        if check and new != old:
            sys.exit(f"{page.name} differs from the rows in benchmarks/results: run `python -m benchmarks.tables`")
        if new != old:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
