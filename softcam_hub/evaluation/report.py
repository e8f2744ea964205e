"""Write rows for readers: the CAPE paper's Table 1 as Markdown, and curves over k as a picture.

- The best value of a column is bold, `random` and `centre` among the candidates: where maps that know nothing
  of the model win, the measure or the maps are in doubt, and the table should show it.
- Explainers earn Borda points among each other; `random` and `centre` take no part. Scores are ranked as they
  are printed: methods with the same maps (CAM and Grad-CAM on a pooled linear head) differ by rounding noise,
  and share a rank.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from ..explainers.methods import UNINFORMED
from ..explanation_scores.faithfulness import borda_count
from ..figures.charts import curves
from ..files import draft_of
from ..models.heads import native_kinds
from .models import ROLES
from .results import CURVES, EVIDENCE_COLUMNS, Row

BORDA = ("average_drop", "increase_in_confidence", "average_drop_in_deletion", "adcc", "miou")
"""Measures that earn Borda points."""

COLUMNS: dict[str, tuple[str, bool]] = {
    "average_drop": ("AD ↓", False),
    "increase_in_confidence": ("IC ↑", True),
    "average_drop_in_deletion": ("ADD ↑", True),
    "adcc": ("ADCC ↑", True),
    "miou": ("mIoU ↓", False),
    "borda": ("BC ↑", True),
    "localization_precision": ("top-k precision ↑", True),
    "activation_precision": ("activation precision ↑", True),
    "activation_sensitivity": ("activation sensitivity ↑", True),
    "energy_pointing": ("energy in box ↑", True),
    "pointing_game": ("pointing game ↑", True),
    "topk_sensitivity": ("top-k sensitivity ↓", False),
    "completeness_error": ("completeness error ↓", False),
    "insertion": ("insertion ↑", True),
    "deletion": ("deletion ↓", False),
    "road": ("ROAD ↑", True),
    "single_deletion": ("single deletion ↑", True),
    "idsds": ("IDSDS ↑", True),
    "max_sensitivity": ("max-sensitivity ↓", False),
    "grid_pointing": ("grid pointing ↑", True),
    "gini": ("Gini", True),
    "evidence_precision": ("precision above 1", True),
    "share_of_positive_annotated": ("positive cells, annotated", True),
    "share_of_positive_unannotated": ("positive cells, not annotated", True),
}
"""Name in a row -> heading of the column, and whether higher is better."""

UNRANKED = ("gini", *EVIDENCE_COLUMNS)
"""Columns without a best value: a sparser map is not a better one, and smaller evidence changes the precision among
what is above 1 with no better place."""

TWO_DIGITS = ("road", "single_deletion", "idsds", "max_sensitivity", "gini")
"""Columns that are no percentages, and are printed with two digits."""

LINES = 4
"""Number of post-hoc explainers in one chart, beside the native maps and `random`."""


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Format a table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    text = ""
    for line in (header, rule, *body):
        cells = [cell.replace("|", "\\|") for cell in line]
        text += f"| {' | '.join(cells)} |\n"
    return text


def with_borda(rows: list[Row]) -> list[Row]:
    """Add the Borda points that each explainer earns among the others."""
    rivals = [row for row in rows if row["explainer"] not in UNINFORMED and "average_drop" in row]
    if not rivals:
        return rows
    scores = torch.tensor([[row.get(name, torch.nan) for name in BORDA] for row in rivals], dtype=torch.float64)
    higher_is_better = [COLUMNS[name][1] for name in BORDA]
    points = borda_count(scores.round(decimals=1), higher_is_better).tolist()
    earned = {(row["explainer"], row["explains"]): count for row, count in zip(rivals, points, strict=True)}
    return [row | {"borda": earned.get((row["explainer"], row["explains"]))} for row in rows]


def table1(rows: list[Row]) -> str:
    """Format all scores of all explainers, the best of a column in bold."""
    rows = with_borda(rows)
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    best = {name: _best(rows, name) for name in names}
    body = []
    for row in rows:
        cells = [_cell(row.get(name), name, best[name]) for name in names]
        body.append([row["explainer"], row["explains"], *cells])
    return markdown(["explainer", "explains", *(COLUMNS[name][0] for name in names)], body) + "\n" + caption(rows)


def caption(rows: list[Row]) -> str:
    """Describe images, models and versions below the table."""
    row = rows[0]
    models = ", ".join(f"{role} `{row[role]}`" for role in ROLES if row.get(role))
    sentences = [
        f"{row['images']} images of `{row['data']}` ({row['split']}), {row['annotated']} of them annotated; "
        f"seed {row['seed']}; {models}; torch {row['torch']}, timm {row['timm']}, {row['device']}.",
        "Percent, but for BC, completeness error, ROAD, single deletion, IDSDS, max-sensitivity and Gini. BC is the "
        "Borda count of AD, IC, ADD, ADCC and mIoU among the explainers without random and centre.",
    ]
    if row["annotated"]:
        sentences.append(
            "Localisation is of the map of the true label, on annotated images, and top-k means the mean over "
            "the 1 to 30 highest patches."
        )
    return " ".join(sentences) + "\n"


def _best(rows: list[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    if name in UNRANKED or len(values) < 2:
        return None
    return max(values) if COLUMNS[name][1] else min(values)


def _cell(value: float | None, name: str, best: float | None) -> str:
    if value is None:
        return "-"
    text = _format(value, name)
    return f"**{text}**" if best is not None and text == _format(best, name) else text


def _format(value: float, name: str) -> str:
    if name == "borda":
        return f"{value:.0f}"
    if name == "completeness_error":
        return f"{value:.1e}"
    return f"{value:.2f}" if name in TWO_DIGITS else f"{value:.1f}"


def draw_curves(rows: list[Row], file: Path) -> None:
    """Draw the curves over k of every explainer; without curves there is no file."""
    named = {row["explainer"]: row for row in rows}
    always = [name for name in named if name in native_kinds() or name == "random"]
    if any(f"{name}_curve" in row for row in rows for name in CURVES):
        with draft_of(file) as draft:
            plot_over_k(named, always).save(draft)


def plot_over_k(rows: Mapping[str, Row], always: Sequence[str]) -> Image.Image:
    """Draw a page with a column for each curve over k, and a few explainers in each chart.

    Args:
        rows: Name of a line -> row with its curves.
        always: Names of the lines that every chart shows, such as native maps and `random`.
    """
    measures = [name for name in CURVES if any(f"{name}_curve" in row for row in rows.values())]
    others = [name for name in rows if name not in always]
    panels = []
    for first in range(0, max(1, len(others)), LINES):
        for measure in measures:
            curve, chosen = f"{measure}_curve", [*always, *others[first : first + LINES]]
            lines = {name: list(enumerate(rows[name][curve], 1)) for name in chosen if curve in rows[name]}
            panels.append((curve_title(measure), lines))
    return curves(panels, "k highest patches", columns=len(measures), shared=True)


def curve_title(measure: str) -> str:
    """Return the title of a chart of a measure in percent."""
    heading, higher = COLUMNS[measure]
    return f"{heading[:-2]} in % ({'higher' if higher else 'lower'} is better)"
