"""From rows to what people look at: the CAPE paper's Table 1 as Markdown, and curves over k as a picture.

- The best value of a column is bold, the floors `random` and `centre` among the candidates: where a floor wins, the
  measure or the maps are in doubt, and the table should show it.
- Borda points are given among explainers; the floors earn none and take none. Scores are ranked as they are printed:
  methods with the same maps (CAM and Grad-CAM on a pooled linear head) differ by rounding noise, and share a rank.
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
from .results import CURVES, Row

BORDA = {
    "average_drop": False,
    "increase_in_confidence": True,
    "average_drop_in_deletion": True,
    "adcc": True,
    "miou": False,
}
"""The measures that Borda counts -> whether higher is better."""

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
"""Name in a row -> heading, and whether higher is better."""

LINES = 4
"""Post-hoc explainers in one chart, beside the native maps and `random`."""


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body)) + "\n"


def with_borda(rows: list[Row]) -> list[Row]:
    """Rows with the points that each explainer earns among the others."""
    rivals = [row for row in rows if row["explainer"] not in UNINFORMED and "average_drop" in row]
    if not rivals:
        return rows
    scores = torch.tensor([[row.get(name, torch.nan) for name in BORDA] for row in rivals], dtype=torch.float64)
    points = borda_count(scores.round(decimals=1), list(BORDA.values())).tolist()
    earned = {(row["explainer"], row["explains"]): count for row, count in zip(rivals, points, strict=True)}
    return [row | {"borda": earned.get((row["explainer"], row["explains"]))} for row in rows]


def table1(rows: list[Row]) -> str:
    """All scores of all explainers, the best of a column bold."""
    rows = with_borda(rows)
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    best = {name: _best(rows, name) for name in names}
    body = [
        [row["explainer"], row["explains"], *(_cell(row.get(name), name, best[name]) for name in names)] for row in rows
    ]
    return markdown(["explainer", "explains", *(COLUMNS[name][0] for name in names)], body) + "\n" + caption(rows)


def caption(rows: list[Row]) -> str:
    row = rows[0]
    of = {role: row.get(role) for role in ("model", "twin") if row.get(role)}
    said = [
        f"{row['images']} images of `{row['data']}` ({row['split']}), {row['annotated']} of them annotated; seed "
        f"{row['seed']}; {', '.join(f'{role} `{name}`' for role, name in of.items())}; torch {row['torch']}, timm "
        f"{row['timm']}, {row['device']}.",
        "Percent, but for BC, completeness error, ROAD, single deletion, max-sensitivity and Gini. BC is the Borda "
        "count of AD, IC, ADD, ADCC and mIoU among the explainers without random and centre.",
    ]
    if row["annotated"]:
        said.append(
            "Localisation is of the map of the true label, on annotated images, and top-k means the mean over the "
            "1 to 30 highest patches."
        )
    return " ".join(said) + "\n"


def _best(rows: list[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    if name == "gini" or len(values) < 2:  # sparser is not better
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
    return f"{value:.2f}" if name in ("road", "single_deletion", "max_sensitivity", "gini") else f"{value:.1f}"


def draw_curves(rows: list[Row], file: Path) -> bool:
    """Charts of every curve over k, a few explainers in each; whether there was anything to draw."""
    sheets = [curves(panels, "k highest patches", shared=True) for name in CURVES if (panels := _panels(rows, name))]
    if sheets:
        with draft_of(file) as draft:
            stack_vertically(sheets).save(draft)
    return bool(sheets)


def _panels(rows: list[Row], name: str) -> dict[str, dict[str, Points]]:
    lines = {row["explainer"]: list(enumerate(row[f"{name}_curve"], 1)) for row in rows if f"{name}_curve" in row}
    always = [one for one in lines if one in native_kinds() or one == "random"]
    others = [one for one in lines if one not in always]
    groups = [others[first : first + LINES] for first in range(0, len(others), LINES)] or [[]]
    title = f"{COLUMNS[name][0][:-2]} in % ({'higher' if COLUMNS[name][1] else 'lower'} is better)"
    parts = [{one: lines[one] for one in always + group} for group in groups] if lines else []
    return {title + " " * number: part for number, part in enumerate(parts)}  # titles are keys
