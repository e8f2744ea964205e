"""Render the table of ways to finer maps, and what the rule says of them."""

import math

import numpy as np

from softcam_hub.evaluation.report import markdown
from softcam_hub.evaluation.statistics import Array, bootstrap_means, join_seeds

from ..timing import Row

SMALL = 1 / 3
"""Share of the annotated images with the smallest annotations, which have columns of their own."""

PLACE, SQUARES, DEPTHS = "place", "squares", "depths"
"""How a map is drawn: where its cells look, as squares, or with the evidence of every depth at its own place."""

COLUMNS = {
    ("hit_rate", False, PLACE): "hit rate",
    ("hit_rate", True, PLACE): "hit rate, small",
    ("pointing_game", False, PLACE): "pointing game",
    ("pointing_game", True, PLACE): "pointing game, small",
    ("activation_precision", False, PLACE): "activation precision",
    ("localization_precision", False, PLACE): "top-k precision",
    ("iou_otsu", True, PLACE): "IoU, small",
    ("causal", False, PLACE): "causal linear, drawn parts",
    ("hit_rate", True, DEPTHS): "hit rate, small, depths",
    ("pointing_game", True, DEPTHS): "pointing game, small, depths",
    ("hit_rate", True, SQUARES): "hit rate, small, squares",
    ("pointing_game", True, SQUARES): "pointing game, small, squares",
}
"""Score, whether it is that of small annotations alone, and how maps are drawn -> heading."""

PLAIN = "plain"
GAIN, LOSS, COST = 10.0, 0.5, 1.10
"""The rule: least gain of the hit rate on small annotations, largest loss of accuracy, both in points, and largest
cost beside the plain network."""

ROUNDING = 1e-6
"""Points that are left to rounding where a number is at the limit of the rule."""


COSTS = {
    "forward_cost": "cost",
    "training_cost": "cost of training",
    "forward_mib": "memory, MiB",
    "training_mib": "memory of training, MiB",
}
"""Column of the costs -> heading."""


def fine_table(rows: list[Row], costs: list[Row]) -> str:
    """Render one line per task and variant: means over seeds, the mean gain beside the plain network, and costs.

    Args:
        rows: Rows of the study.
        costs: Rows of the costs, one for each task and variant.
    """
    cost_of = {(row["task"], row["variant"]): row for row in costs}
    tasks: dict[str, dict[str, dict[int, Row]]] = {}

    def order(row: Row) -> tuple[str, bool, float]:
        """Tasks, and in each the plain network and then the others in the order of their costs."""
        known = cost_of.get((row["task"], row["variant"]), {})
        return row["task"], row["variant"] != PLAIN, known.get("forward_cost", math.inf)

    for row in sorted(rows, key=order):
        tasks.setdefault(row["task"], {}).setdefault(row["variant"], {})[row["seed"]] = row
    body = [
        [
            task,
            name,
            *_cells(of_variant, variants[PLAIN] if name != PLAIN else {}),
            *_cost_cells(cost_of.get((task, name), {})),
        ]
        for task, variants in tasks.items()
        for name, of_variant in variants.items()
    ]
    names = [name for name in dict.fromkeys(row["variant"] for row in rows) if name != PLAIN]
    header = ["images", "evidence", "accuracy", *COLUMNS.values(), *COSTS.values()]
    verdicts = [
        _verdict(name, {task: variants for task, variants in tasks.items() if name in variants}, cost_of)
        for name in names
    ]
    return f"{_caption(rows)}\n\n{markdown(header, body)}\n{RULE}\n\n" + "\n".join(verdicts) + "\n"


RULE = (
    "The rule was written before the rows. A way is adopted if, on both tasks, the hit rate on small annotations "
    f"rises by {GAIN:.0f} points, the accuracy falls by {LOSS} points at most, and a forward pass costs {COST:.2f} of "
    "that of the plain network at most:"
)


def _caption(rows: list[Row]) -> str:
    """Describe images, seeds, columns and machine below the table."""
    counts = {row["task"]: (row["images"], len(row["values"]["area"])) for row in rows}
    images = "; ".join(f"{task}: {count} test images, {known} annotated" for task, (count, known) in counts.items())
    where = "; ".join(sorted({f"{row['machine']}, torch {row['torch']}" for row in rows}))
    return (
        f"Percent ({images}): means over the seeds, in parentheses every seed in order, and the gain beside "
        "*plain* on the same images in the seeds that both have, with its 95 % interval. The hit rate is the "
        "pointing game with the usual tolerance; *small* is the third of the annotated images with the "
        "smallest annotations. Maps are drawn where their cells look; *depths* draws the evidence of every "
        "depth where its own cells look, and *squares* draws cells as squares that fill the image, as all "
        "rows of earlier versions did. *Causal linear, drawn parts* is the correlation of evidence and "
        "effects over the parts of the drawing, on the images in which a part speaks for the class. *Cost* is"
        " the CPU time beside that of *plain*, of a forward pass with maps of one image, by which lines are "
        "ordered, and of a training step of 32 images in the last epoch. *Memory* is what these need on top "
        f"of the network, for 32 images each. {where}."
    )


def _cells(of_variant: dict[int, Row], plain: dict[int, Row]) -> list[str]:
    """Format the scores of a variant.

    Args:
        of_variant: Rows of the variant by seed.
        plain: Rows of the plain network by seed; empty where the variant is the plain network.
    """
    accuracies = [100 * row["accuracy"] for row in of_variant.values()]
    cells = [f"{np.mean(accuracies):.1f} ({', '.join(f'{one:.1f}' for one in accuracies)})"]
    for column in COLUMNS:
        measured = [row for row in of_variant.values() if _has(row, *column)]
        if not measured:
            cells.append("-")
            continue
        scale, digits = (1, 2) if column[0] == "causal" else (100, 1)
        means = [scale * np.nanmean(chosen_values(row, *column)) for row in measured]
        cell = f"{np.mean(means):.{digits}f} ({', '.join(f'{one:.{digits}f}' for one in means)})"
        found = gain_of(of_variant, plain, *column)
        if found:
            gain, low, high = (scale * one for one in found)
            cell += f"; {gain:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
        cells.append(cell)
    return cells


def _cost_cells(costs: Row) -> list[str]:
    """Format what a variant costs; a dash for what was not measured."""
    digits = {"cost": 2, "mib": 0}
    return [
        "-" if costs.get(column) is None else f"{costs[column]:.{digits[column.rpartition('_')[2]]}f}"
        for column in COSTS
    ]


def _values(row: Row, drawing: str) -> Row:
    """Return the scores of maps that are drawn in a way: score -> value of every image."""
    found: Row = row["values"] if drawing == PLACE else row["drawn"].get(drawing, {})
    return found


def _has(row: Row, score: str, small: bool, drawing: str) -> bool:
    """Tell whether a score was measured on some image."""
    return score in _values(row, drawing) and not np.isnan(chosen_values(row, score, small, drawing)).all()


def chosen_values(row: Row, score: str, small: bool, drawing: str) -> Array:
    """Return the values of all images, NaN for none, or of those with the smallest annotations."""
    values, area = np.array(_values(row, drawing)[score], dtype=float), np.array(row["values"]["area"])
    return values[area <= np.quantile(area, SMALL)] if small else values


def gain_of(
    of_variant: dict[int, Row], plain: dict[int, Row], score: str, small: bool, drawing: str
) -> tuple[float, float, float] | None:
    """Return the mean gain beside the plain network with both ends of its interval, or None without a seed in common.

    The images are the same in all seeds.
    """
    pairs = [(row, plain[seed]) for seed, row in sorted(of_variant.items()) if seed in plain]
    pairs = [pair for pair in pairs if all(_has(row, score, small, drawing) for row in pair)]
    if not pairs:
        return None
    gains = [
        chosen_values(ours, score, small, drawing) - chosen_values(theirs, score, small, drawing)
        for ours, theirs in pairs
    ]
    found = bootstrap_means(join_seeds([gain[None] for gain in gains]))
    low, high = found.interval()
    return float(found.estimate[0]), float(low[0]), float(high[0])


def _verdict(name: str, tasks: dict[str, dict[str, dict[int, Row]]], cost_of: dict[tuple[str, str], Row]) -> str:
    """Say in a sentence whether a variant meets the rule.

    Args:
        name: Name of the variant.
        tasks: Task -> variant -> rows by seed, of the tasks on which the variant was tried.
        cost_of: Task and variant -> row of its costs.
    """
    placed = any(_has(row, "hit_rate", True, PLACE) for variants in tasks.values() for row in variants[name].values())
    drawing = PLACE if placed else SQUARES
    reasons = [
        f"on {task} {reason}"
        for task, variants in tasks.items()
        for reason in _reasons(variants[name], variants[PLAIN], cost_of.get((task, name)), drawing)
    ]
    drawn = "" if placed else ", drawn as squares,"
    if reasons:
        return f"- *{name}*{drawn} does not meet the rule: {'; '.join(reasons)}."
    return f"- *{name}*{drawn} meets the rule on {' and '.join(tasks)}."


def _reasons(of_variant: dict[int, Row], plain: dict[int, Row], costs: Row | None, drawing: str) -> list[str]:
    """List what the rule asks for and a variant does not have on a task."""
    seeds = [seed for seed in of_variant if seed in plain]
    found = gain_of(of_variant, plain, "hit_rate", True, drawing)
    if found is None:
        return ["no seed was trained with and without it"]
    gain = 100 * found[0]
    change = 100 * float(np.mean([of_variant[seed]["accuracy"] - plain[seed]["accuracy"] for seed in seeds]))
    reasons = []
    if gain < GAIN - ROUNDING:
        reasons.append(f"the hit rate on small annotations changes by {gain:+.1f} points")
    if change < -LOSS - ROUNDING:
        reasons.append(f"the accuracy changes by {change:+.1f} points")
    if costs is None:
        reasons.append("its cost was not measured")
    elif costs["forward_cost"] > COST:
        reasons.append(f"it costs {costs['forward_cost']:.2f}")
    return reasons
