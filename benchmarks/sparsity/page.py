"""Derive docs/sparsity.md and its curves from the rows: python -m benchmarks.sparsity.page [--check]"""

import argparse
import statistics
import sys
from pathlib import Path

from benchmarks.timing import Row, read_rows
from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation.report import markdown
from softcam_hub.figures.charts import Panel, curves

from .candidates import CANDIDATES
from .features import STUDIES
from .fine_tune import PLANS
from .rule import CHOICE, RULE, Verdict, choose, judge, ranking, references, shortfall
from .screen import ROWS

DOCUMENT = Path(__file__).parents[2] / "docs" / "sparsity.md"
PICTURE = DOCUMENT.with_name("sparsity.png")

COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "zeros": "zeros",
    "gini": "Gini",
    "gini_positive": "Gini of M⁺",
    "precision": "top-k precision",
    "precision_10": "top 10",
    "mass": "mass inside",
    "cancellation": "cancellation",
}
RATIOS = ("gini", "gini_positive", "cancellation")
"""Columns that are not shown in percent."""

ABOUT = """# What makes maps sparse

The SoftCAM paper promises sparse maps, and its L1 penalty does not deliver them: an L1 on evidence makes it smaller, not
sparser ([Reproduction](reproduction.md)). This page screens other ways, under a rule that was written before the first
row. `python -m benchmarks.sparsity.page` derives the page from `benchmarks/results/sparsity.jsonl`.
"""


def document(rows: list[Row]) -> str:
    """Return the page."""
    parts = [ABOUT, f"## The rule\n\n{RULE}\n\n{CHOICE}\n", outcome(rows), reading(rows), candidates()]
    return "\n".join([*parts, *(table(rows, study) for study in STUDIES), fine_tuning(rows)])


def candidates() -> str:
    """List every candidate with its formula."""
    body = [
        [f"`{name}`", one.formula, ", ".join(f"{value:g}" for value in one.grid) if one.parameter else ""]
        for name, one in CANDIDATES.items()
    ]
    text = (
        "E = W·F is the evidence without the bias and M' = E + b. Where E is set to zero, b stays outside of the map: "
        "the logit is the mean of the map plus b. Maps of the CAPE kind sum to the probability.\n\n"
    )
    return f"## Candidates\n\n{text}{_left(markdown(['candidate', 'map, penalty or saliency', 'values'], body))}\n"


def best_of_each(rows: list[Row]) -> list[tuple[str, float]]:
    """Return every candidate with its best value, references too, in the order of the candidates."""
    best = {candidate: value for _, _, candidate, value in reversed(ranking(rows, tuple(PLANS), everything=True))}
    return [(name, best[name]) for name in CANDIDATES if name in best]


def table(rows: list[Row], study: str) -> str:
    """Render one line for the best setting of every candidate on one study, and one for every post-hoc CAM."""
    shown = [row for row in rows if row["stage"] == "screening" and row["study"] == study]
    if not shown:
        return f"## Screening: {study}\n\nNot run yet.\n"
    dense, cams = references(rows, study, "screening", 0)
    by_setting = {(row["candidate"], row["value"]): row for row in shown}
    body = []
    for setting in best_of_each(rows):
        row = by_setting[setting]
        body.append([_name(*setting), *_cells(row), f"{shortfall(row, dense, cams):.1f}"])
    body += [[row["candidate"], *_cells(row), ""] for row in cams]
    about = (
        f"{dense['images']} validation images, {dense['located']} of them count for localisation; maps of "
        f"{dense['grid']}×{dense['grid']}; {dense['epochs']} epochs, seed {dense['seed']}."
    )
    return f"## Screening: {study}\n\n{about}\n\n{markdown(['setting', *COLUMNS.values(), 'shortfall'], body)}\n"


def _name(candidate: str, value: float) -> str:
    parameter = CANDIDATES[candidate].parameter
    return f"`{candidate}`" + (f", {parameter} = {value:g}" if parameter else "")


def _cells(row: Row) -> list[str]:
    return [_cell(row.get(name), name) for name in COLUMNS]


def _cell(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name in RATIOS else f"{100 * value:.1f}"


def _left(table: str) -> str:
    return table.replace("---:", "---")


def panels(rows: list[Row]) -> list[Panel]:
    """Return accuracy and top-k precision over the Gini coefficient of each study that chooses, a line per candidate."""
    found = []
    for study in PLANS:
        for name in ("accuracy", "precision"):
            lines: dict[str, list[tuple[float, float]]] = {}
            for row in rows:
                if row["stage"] == "screening" and row["study"] == study and "accuracy" in row:
                    lines.setdefault(row["candidate"], []).append((row["gini"], 100 * row[name]))
            found.append((f"{study}: {COLUMNS[name]} in %", {one: sorted(points) for one, points in lines.items()}))
    return found


def fine_tuning(rows: list[Row]) -> str:
    """Render the fine-tuned candidates and the verdict of the rule, or say that they have not been run."""
    title = "## Fine-tuning with three seeds\n\n"
    command = "`python -m benchmarks.sparsity.fine_tune`"
    tuned = [row for row in rows if row["stage"] == "fine-tuning" and "accuracy" in row]
    settings = list(dict.fromkeys((row["candidate"], row["value"]) for row in tuned))
    body = []
    for study in PLANS:
        for setting in settings:
            of = [row for row in tuned if row["study"] == study and (row["candidate"], row["value"]) == setting]
            if of:
                means = {name: statistics.fmean(row[name] for row in of) for name in COLUMNS}
                verdict = judge(rows, study, setting[0]) if setting[0] != "dense" else None
                body.append([study, _name(*setting), str(len(of)), *_cells(means), _verdict(verdict)])
    if not body:
        return f"{title}Not run yet, so that no candidate has passed and none is an option of the package. {command} runs it.\n"
    header = ["study", "setting", "seeds", *COLUMNS.values(), "accuracy kept", "sparse", "better placed"]
    return f"{title}Means over seeds, test images.\n\n{markdown(header, body)}\n"
