"""Write the records of a model as text for its card: scores, tables, settings and commands.

Every text that comes from a record is escaped, because other people chose the names in it.
"""

import json
import math
import shlex
from dataclasses import fields
from typing import Any

import yaml

from ...data.config import DataConfig
from .escaping import as_code, as_text, on_one_line
from .local_paths import hide_local_path
from .records import Row

PLACEHOLDER_REPO = "your-name/your-model"
"""Repository that a card names until it is pushed."""

SPLITS = ("test", "eval", "validation")
"""Prefixes of scores in `metrics.json`; a card shows the first split that has scores."""

NOT_SCORES = ("runtime", "_per_second", "_time")
"""Endings of the names under which `Trainer` records durations."""

NOT_EXPLANATION_SCORES = ("accuracy", "confidence", "hold_out", "iou_threshold")
"""Numbers in the rows of a benchmark that describe the prediction or the data."""

WITHOUT_INFLUENCE = (
    *("resume", "overwrite", "workers", "trackers", "log_steps", "checkpoint_steps"),
    *("cache_features", "cache_dir", "cache_limit", "output"),
)
"""Settings of a training run that have no influence on the model, so that a resumed run may change them."""

BENCHMARK_DEFAULTS = {
    "explainers": "",
    "measures": "",
    "split": "test",
    "limit": None,
    "image_size": None,
    "batch_size": 16,
    "shard_size": 32,
    "patch": None,
    "thresholds_from": "",
    "seed": 0,
    "aligned": True,
}
"""Settings of a benchmark that its rows hold, with their defaults."""

EARLIER_SETTINGS = {"aligned": False}
"""Settings of benchmarks whose rows do not name them, as earlier releases had no choice."""


def scores_of(metrics: Row) -> tuple[str, Row]:
    """Return the first split that has scores, and its scores by their names without the split."""
    for split in SPLITS:
        scores = {}
        for name, value in metrics.items():
            if name.startswith(f"{split}_") and is_score(value) and not name.endswith(NOT_SCORES):
                scores[name.removeprefix(f"{split}_")] = value
        if scores:
            return split, scores
    return "", {}


def is_score(value: Any) -> bool:
    """Tell whether a value is a finite number with a fractional part, as scores are recorded."""
    return isinstance(value, float) and math.isfinite(value)


def is_explanation_score(name: str, value: Any) -> bool:
    """Tell whether an entry of a benchmark's row is a score of explanations."""
    return is_score(value) and "seconds" not in name and name not in NOT_EXPLANATION_SCORES


def format_score(name: str, value: float) -> str:
    """Write a score; accuracies and shares become percentages."""
    if name.endswith(("accuracy", "disagreement", "share")):
        return f"{100 * value:.1f} %"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"


def in_words(name: str) -> str:
    """Write the name of a score for readers, such as `average drop`."""
    return name.replace("_", " ").replace("auc", "AUC")


def score_table(scores: Row) -> list[tuple[str, str]]:
    """Return name and value of every score, as text."""
    return [(as_text(in_words(name)), format_score(name, value)) for name, value in scores.items()]


def format_settings(settings: Row) -> str:
    """Write the settings of a training run as YAML, without those that have no influence or no value."""
    shown = {}
    for name, value in settings.items():
        if name not in WITHOUT_INFLUENCE and value not in (None, ""):
            shown[name] = hide_local_path(value)
    if not shown:
        return ""
    text = yaml.safe_dump(shown, sort_keys=False).strip()
    # A backtick could end the code block, and an empty line could get lost. JSON is YAML, and escapes both.
    if "`" in text or "\n\n" in text:
        text = json.dumps(shown, indent=2, default=str).replace("`", "\\u0060")
    return text


def format_environment(row: Row) -> str:
    """Write the machine and the versions that a row records, in a sentence if it records a duration too."""
    parts = [as_text(row[name]) for name in ("device", "machine") if name in row]
    parts += [f"{name} {as_text(row[name])}" for name in ("torch", "timm", "transformers") if name in row]
    text = ", ".join(parts)
    seconds = row.get("seconds")
    return f"Training took {seconds:.0f} seconds ({text})." if isinstance(seconds, int | float) else text


def format_timing(row: Row) -> Row:
    """Write a comparison of forward passes with and without maps."""
    low, high = row["ratio_quartiles"]
    return {
        "batch": row["batch"],
        "vanilla": f"{1000 * row['b_seconds']:.0f} ms",
        "ratio": f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})",
    }


def explanation_table(rows: list[Row]) -> Row:
    """Return what a card shows of a benchmark: a table with a column for every score, images and commands."""
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(name for name, value in row.items() if is_explanation_score(name, value))
    lines = []
    for row in rows:
        values = [format_score("", row[name]) if is_score(row.get(name)) else "-" for name in names]
        lines.append([as_code(row["explainer"]), *values])
    return {
        "explanations": lines,
        "explanation_columns": ["maps", *(as_text(in_words(name)) for name in names)],
        "explained": list(dict.fromkeys(map(_describe_images, rows))),
        "benchmarks": list(dict.fromkeys(map(_benchmark_command, rows))),
        # Rows of earlier versions call the vanilla classifier "twin".
        "of_vanilla": any(row.get("explains") in ("vanilla", "twin") for row in rows),
    }


def _describe_images(row: Row) -> str:
    """Say on how many images of which data a row was measured, as far as it says so."""
    text = f"{int(row['images'])} images" if "images" in row else "images"
    if row.get("data"):
        text += f" of {as_code(hide_local_path(row['data']))} ({as_text(row.get('split', 'test'))})"
    if row.get("annotated"):
        text += f", {int(row['annotated'])} of them annotated"
    return text


def _benchmark_command(row: Row) -> str:
    """Write the command that measures a row again; settings at their defaults are left out."""
    defaults = {**BENCHMARK_DEFAULTS, **{field.name: field.default for field in fields(DataConfig)}}
    words = ["softcam-hub", "benchmark", "--model", PLACEHOLDER_REPO]
    vanilla = row.get("vanilla") or row.get("twin")
    if vanilla:
        words += ["--vanilla", hide_local_path(vanilla)]
    for name, default in defaults.items():
        value, option = row.get(name, EARLIER_SETTINGS.get(name, default)), name.replace("_", "-")
        if value is True and default is not True:
            words.append(f"--{option}")
        elif value is False and default is True:
            words.append(f"--no-{option}")
        elif value != default:
            words += [f"--{option}", str(hide_local_path(value))]
    return shlex.join([on_one_line(word) for word in [*words, "--output", "results"]])
