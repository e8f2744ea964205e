"""Write rows for readers: the CAPE paper's Table 1 as Markdown, and curves over k as a picture.

- The best value of a column is bold, `random` and `centre` among the candidates: where maps that know nothing
  of the model win, the measure or the maps are in doubt, and the table should show it.
- Explainers earn Borda points among each other; `random` and `centre` take no part. Scores are ranked as they
  are printed: methods with the same maps (CAM and Grad-CAM on a pooled linear head) differ by rounding noise,
  and share a rank.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..explainers.methods import UNINFORMED
from ..explanation_scores.faithfulness import borda_count
from ..figures import stack_vertically
from ..figures.charts import Points, curves
from ..files import draft_of
from ..models.heads import native_kinds
from .models import ROLES
from .results import CURVES, Row

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
    "topk_sensitivity": ("top-k sensitivity ↓", False),
    "completeness_error": ("completeness error ↓", False),
    "insertion": ("insertion ↑", True),
    "deletion": ("deletion ↓", False),
    "road": ("ROAD ↑", True),
    "single_deletion": ("single deletion ↑", True),
    "max_sensitivity": ("max-sensitivity ↓", False),
    "grid_pointing": ("grid pointing ↑", True),
    "gini": ("Gini", True),
}
"""Name in a row -> heading of the column, and whether higher is better."""

TWO_DIGITS = ("road", "single_deletion", "max_sensitivity", "gini")
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
        "Percent, but for BC, completeness error, ROAD, single deletion, max-sensitivity and Gini. BC is the "
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
    if name == "gini" or len(values) < 2:  # a sparser map is not a better one
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
    """Draw charts of every curve over k, a few explainers in each; without curves there is no file."""
    panels = [_panels(rows, name) for name in CURVES if any(f"{name}_curve" in row for row in rows)]
    if panels:
        with draft_of(file) as draft:
            stack_vertically([curves(one, "k highest patches", shared=True) for one in panels]).save(draft)


def _panels(rows: list[Row], name: str) -> dict[str, dict[str, Points]]:
    """Split the curves of a measure into charts, with native maps, `random` and a few post-hoc methods in each."""
    lines = {row["explainer"]: list(enumerate(row[f"{name}_curve"], 1)) for row in rows if f"{name}_curve" in row}
    always = [one for one in lines if one in native_kinds() or one == "random"]
    others = [one for one in lines if one not in always]
    heading, higher = COLUMNS[name]
    title = f"{heading[:-2]} in % ({'higher' if higher else 'lower'} is better)"
    panels = {}
    for number, first in enumerate(range(0, max(1, len(others)), LINES)):
        chosen = always + others[first : first + LINES]
        panels[title + " " * number] = {one: lines[one] for one in chosen}  # titles are keys, and must differ
    return panels
