"""Write rows for readers: the CAPE paper's Table 1 as Markdown, and curves over k as a picture.

- The best value of a column is bold, and with values of the images every value that cannot be told from it (see
  `significance.best_group`). `random` and `centre` are among the candidates: where maps that know nothing of the model
  win, the measure or the maps are in doubt, and the table should show it.
- Explainers earn Borda points among each other; `random` and `centre` take no part. Scores are ranked as they
  are printed: methods with the same maps (CAM and Grad-CAM on a pooled linear head) differ by rounding noise,
  and share a rank.
- With values of the images, Borda points are also counted from significant ranks, which explainers that cannot be told
  apart share (see `significance.significant_ranks`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..explainers.methods import UNINFORMED
from ..explanation_scores.faithfulness import borda_count
from ..figures.charts import curves
from ..files import draft_of
from ..models.heads import native_kinds
from .models import ROLES
from .results import CURVES, EVIDENCE_COLUMNS, ImageValues, Row
from .significance import best_group, significant_ranks
from .statistics import Array

BORDA = ("average_drop", "increase_in_confidence", "average_drop_in_deletion", "adcc", "miou")
"""Measures that earn Borda points."""

COLUMNS: dict[str, tuple[str, bool]] = {
    "average_drop": ("AD ↓", False),
    "increase_in_confidence": ("IC ↑", True),
    "average_drop_in_deletion": ("ADD ↑", True),
    "adcc": ("ADCC ↑", True),
    "miou": ("mIoU ↓", False),
    "borda": ("BC ↑", True),
    "significant_borda": ("BC, significant ↑", True),
    "localization_precision": ("top-k precision ↑", True),
    "activation_precision": ("activation precision ↑", True),
    "activation_sensitivity": ("activation sensitivity ↑", True),
    "energy_pointing": ("energy in box ↑", True),
    "pointing_game": ("pointing game ↑", True),
    "hit_rate": ("hit rate ↑", True),
    "iou_otsu": ("IoU, Otsu ↑", True),
    "iou_tuned": ("IoU, tuned ↑", True),
    "pxap": ("PxAP ↑", True),
    "max_box_accuracy": ("MaxBoxAccV2 ↑", True),
    "false_alarms": ("false alarms ↓", False),
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
    "causal_rank": ("causal rank ↑", True),
    "causal_linear": ("causal linear ↑", True),
    "causal_rank_all": ("causal rank, all parts ↑", True),
    "causal_linear_all": ("causal linear, all parts ↑", True),
    "idle_share": ("on idle parts ↓", False),
    "background_share": ("on background ↓", False),
}
"""Name in a row -> heading of the column, and whether higher is better."""

UNRANKED = ("gini", *EVIDENCE_COLUMNS)
"""Columns without a best value: a sparser map is not a better one, and smaller evidence changes the precision among
what is above 1 with no better place."""

CAUSAL_COLUMNS = ("causal_rank", "causal_linear", "causal_rank_all", "causal_linear_all")
TWO_DIGITS = ("road", "single_deletion", "idsds", "max_sensitivity", "gini", *CAUSAL_COLUMNS)
"""Columns that are no percentages, and are printed with two digits."""

GROUPS = (
    "Bold are the best value of a column and all that cannot be told from it: in a paired permutation test over the "
    "images, the p-value of the difference is above 0.05 after Holm's adjustment for the number of explainers. Of "
    "scores that are no means over images (PxAP, MaxBoxAccV2, false alarms, correlations over all parts), only the "
    "best value is bold. In *BC, significant*, explainers that cannot be told apart share a rank."
)
"""Sentences that explain the marks of a table with values of the images."""

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


def with_borda(rows: list[Row], seeds: Sequence[ImageValues] = ()) -> list[Row]:
    """Add the Borda points that each explainer earns among the others, `borda` and `significant_borda`.

    Args:
        rows: Rows of a benchmark.
        seeds: Values of all images for every seed. Where the values of a row's number are missing, nobody gets points
            of significant ranks.
    """
    rivals = [row for row in rows if row["explainer"] not in UNINFORMED and "average_drop" in row]
    if not rivals:
        return rows
    scores = torch.tensor([[row.get(name, torch.nan) for name in BORDA] for row in rivals], dtype=torch.float64)
    higher_is_better = [COLUMNS[name][1] for name in BORDA]
    keys = [_key(row) for row in rivals]
    earned = {"borda": dict(zip(keys, borda_count(scores.round(decimals=1), higher_is_better).tolist(), strict=True))}
    if seeds and all(_has_values(row, values) for row in rivals for values in seeds):
        ranks = [significant_ranks(stack_values(seeds, keys, name), COLUMNS[name][1]) for name in BORDA]
        points = borda_count(torch.tensor(np.stack(ranks, axis=1)), [False] * len(BORDA))  # rank 1 is the best
        earned["significant_borda"] = dict(zip(keys, points.tolist(), strict=True))
    return [row | {name: points.get(_key(row)) for name, points in earned.items()} for row in rows]


def _has_values(row: Row, values: ImageValues) -> bool:
    """Tell whether all numbers of a row that earn Borda points have values of the images."""
    return all(name in values.get(_key(row), {}) for name in BORDA if name in row)


def stack_values(seeds: Sequence[ImageValues], keys: Sequence[tuple[str, str]], name: str) -> list[Array]:
    """Return a measure of some explainers in every seed, (explainers, images), NaN where it was not measured.

    Args:
        seeds: Values of all images for every seed.
        keys: Explainers and roles.
        name: Name of the measure.
    """
    strata = []
    for values in seeds:
        columns = [values.get(key, {}).get(name) for key in keys]
        missing = np.full(max((len(column) for column in columns if column is not None), default=0), np.nan)
        strata.append(np.stack([missing if column is None else column for column in columns]))
    return strata


def table1(rows: list[Row], values: ImageValues | None = None) -> str:
    """Format all scores of all explainers with their intervals, and describe images and models below.

    Args:
        rows: Rows of a benchmark.
        values: Values of all images. Without them, only the best value of a column is bold.
    """
    intervals = interval_table(rows)
    parts = [scores_table(rows, values), caption(rows, bool(values))]
    if intervals:
        parts += ["95 % intervals of these means, by a bootstrap over the images.\n", intervals]
    return "\n".join(parts)


def scores_table(rows: list[Row], values: ImageValues | None = None) -> str:
    """Format all scores of all explainers, the best of a column in bold; arguments as for `table1`."""
    seeds = [values] if values else []
    rows = with_borda(rows, seeds)
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    best = {name: _best(rows, name, seeds) for name in names}
    body = []
    for row in rows:
        cells = [_cell(row.get(name), name, _key(row) in best[name]) for name in names]
        body.append([row["explainer"], row["explains"], *cells])
    return markdown(["explainer", "explains", *(COLUMNS[name][0] for name in names)], body)


def interval_table(rows: list[Row]) -> str:
    """Format the intervals of all scores, or return an empty text where no score has one."""
    names = [name for name in COLUMNS if any(f"{name}_interval" in row for row in rows)]
    body = []
    for row in rows:
        ends = [row.get(f"{name}_interval") for name in names]
        cells = [format_interval(pair, name) if pair else "-" for pair, name in zip(ends, names, strict=True)]
        body.append([row["explainer"], row["explains"], *cells])
    header = ["explainer", "explains", *(COLUMNS[name][0] for name in names)]
    return markdown(header, body) if names else ""


def caption(rows: list[Row], groups: bool = False) -> str:
    """Describe images, models and versions below the table.

    Args:
        rows: Rows of a benchmark.
        groups: Whether all values that cannot be told from the best are bold.
    """
    row = rows[0]
    models = ", ".join(f"{role} `{row[role]}`" for role in ROLES if row.get(role))
    annotated = f", {row['annotated']} of them annotated" if row["annotated"] else ""
    sentences = [
        f"{row['images']} images of `{row['data']}` ({row['split']}){annotated}; "
        f"seed {row['seed']}; {models}; torch {row['torch']}, timm {row['timm']}, {row['device']}.",
        "Percent, but for BC, completeness error, ROAD, single deletion, IDSDS, max-sensitivity, Gini and the causal "
        "correlations. BC is the Borda count of AD, IC, ADD, ADCC and mIoU among the explainers without random and "
        "centre.",
    ]
    if groups:
        sentences.append(GROUPS)
    if row["annotated"]:
        patches = len(
            next((row["localization_precision_curve"] for row in rows if row.get("localization_precision_curve")), ())
        )
        sentences.append(
            "Localisation is of the map of the true label (of the predicted class where an image may have several "
            "labels), on annotated images."
            + (f" Top-k means the mean over the 1 to {patches} highest patches." if patches else "")
        )
    if any("false_alarms" in row for row in rows):
        sentences.append(
            "False alarms are the images without an annotation whose map of the most probable wrong class has more "
            "evidence than that of half of the annotated images; 50 is chance."
        )
    return " ".join(sentences) + "\n"


def _key(row: Row) -> tuple[str, str]:
    return row["explainer"], row["explains"]


def _best(rows: list[Row], name: str, seeds: Sequence[ImageValues]) -> set[tuple[str, str]]:
    """Return the explainers whose value of a column is bold."""
    shown = {_key(row): row[name] for row in rows if row.get(name) is not None}
    if name in UNRANKED or len(shown) < 2:
        return set()
    best = max(shown.values()) if COLUMNS[name][1] else min(shown.values())
    marked = {key for key, value in shown.items() if format_score(value, name) == format_score(best, name)}
    if any(name in measures for values in seeds for measures in values.values()):
        group = best_group(stack_values(seeds, list(shown), name), COLUMNS[name][1])
        marked |= {key for key, belongs in zip(shown, group, strict=True) if belongs}
    return marked


def _cell(value: float | None, name: str, bold: bool) -> str:
    if value is None:
        return "-"
    return f"**{format_score(value, name)}**" if bold else format_score(value, name)


def format_interval(ends: Sequence[float], name: str) -> str:
    """Format both ends of the interval of a measure, with as many digits as its mean."""
    return f"[{format_score(ends[0], name)}, {format_score(ends[1], name)}]"


def format_score(value: float, name: str) -> str:
    """Format a number in the unit of a measure."""
    if name in ("borda", "significant_borda"):
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
