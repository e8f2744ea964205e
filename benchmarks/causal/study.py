"""Explain networks whose reasons are known, and measure which explainers name the reason.

python -m benchmarks.reproduction.lesions lesions-cape-ts lesions-softcam --seeds 0  # the networks without a cue
python -m benchmarks.causal.study    # trains the networks with a cue, and writes the rows: 30 minutes of a core

- *cue*: one network learns to tell `marked` from `plain` images of the data set `cue`. A small bright square is the
  only difference between the classes, so that it is the reason. Lesions of all types are there in both classes.
- *lesions*: the other network learns the types of lesions, and has never seen the square. Lesions are the reason.
- Of each, CAPE is trained with a vanilla teacher on the same backbone, whom the post-hoc methods explain, and SoftCAM
  by itself.
- Only images of the test split that show the reason and that the network classifies correctly count.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.lesions import list_distractors
from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.causal import CORRELATED, ODDS, PART_EVIDENCE, SQUARES
from softcam_hub.evaluation.lines import Line, group_lines
from softcam_hub.evaluation.statistics import bootstrap_means
from softcam_hub.explanation_scores.causal import TOLERANCE
from softcam_hub.training import parse, run

from ..timing import Row, environment, read_rows, rounded, write_rows

ROWS = Path(__file__).parents[1] / "results" / "causal.jsonl"
RUNS = Path("runs")
CAPE, SOFTCAM = "lesions-cape-ts", "lesions-softcam"
"""Recipes of the two heads."""

REASONS = {"cue": RUNS / "cue", "lesions": RUNS}
"""Data set, which is called like the reason of its classes -> folder with a run of each recipe."""

SHORTER = ("--train_count=2000", "--epochs=5")
"""Options of the runs with a cue, which is learnt sooner than lesions are."""

SETTINGS: dict[str, Any] = {"data_size": 128, "eval_count": 600, "batch_size": 25, "shard_size": 25}
LIMIT = 200
MEANS = tuple(f"causal_{kind}{ending}" for ending in CORRELATED.values() for kind in ("rank", "linear"))
SHARES = ("idle_share", "background_share")


def train(data: str, recipe: str) -> Path:
    """Return the folder of a run; a run with a cue is trained if it is missing, one on lesions has to be there."""
    folder = REASONS[data] / recipe
    if not (folder / "metrics.json").exists():
        if data != "cue":
            sys.exit(
                f"{folder} has no finished run: `python -m benchmarks.reproduction.lesions {recipe} --seeds 0` first"
            )
        run(parse(["--recipe", recipe, f"--data={data}", f"--output={folder}", "--overwrite", *SHORTER]))
    return folder


def explain(data: str, folder: Path, vanilla: bool, explainers: str, limit: int) -> list[Line]:
    """Measure a run; return the values of every image.

    Args:
        data: Data set whose test images are explained.
        folder: Folder of the run.
        vanilla: Whether its vanilla classifier is explained too.
        explainers: Names of explainers.
        limit: Number of images.
    """
    output = folder / "causal"
    teacher = folder / "vanilla" if vanilla else None
    options = {**SETTINGS, "limit": limit, "measures": "causal", "explainers": explainers, "overwrite": True}
    benchmark(folder / "model", output, vanilla=teacher, data=data, per_image=True, **options)
    return read_rows(output / "values.jsonl")


def first_is_reason(values: Sequence[float | None], before: int) -> float:
    """Return 1 if a part of the reason has the highest value of all parts, and 0 otherwise, also if all are equal.

    Args:
        values: A value for every part, None for parts that cannot be seen.
        before: Number of parts that are not the reason; those of the reason come after them.
    """
    numbers = np.array([np.nan if value is None else value for value in values])
    reason, others = numbers[before:], numbers[:before]
    return float(np.nanmax(reason) > np.nanmax(others))


def counts(line: Line, before: int) -> bool:
    """Tell whether an image shows its reason, and is classified correctly."""
    return line["predicted"] == line["label"] and any(value is not None for value in line[ODDS][before:])


def row_of(data: str, recipe: str, lines: Sequence[Line]) -> Row:
    """Return what one explainer says about the images that count.

    Args:
        data: Data set.
        recipe: Recipe of the run.
        lines: Values of one explainer.
    """
    before = len(list_distractors(data)) + SQUARES
    chosen = [line for line in lines if counts(line, before)]
    columns = {
        "effect_is_reason": [first_is_reason(line[ODDS], before) for line in chosen],
        "evidence_is_reason": [first_is_reason(line[PART_EVIDENCE], before) for line in chosen],
        "lesions_without_effect": [_idle_lesions(line, data) for line in chosen],
        **{name: [np.nan if line[name] is None else line[name] for line in chosen] for name in (*MEANS, *SHARES)},
    }
    found = bootstrap_means([np.array(list(columns.values()), dtype=float)])
    low, high = found.interval()
    row: Row = {
        "data": data,
        "explainer": lines[0]["explainer"],
        "explains": lines[0]["explains"],
        "recipe": recipe,
        "images": len(chosen),
        "accuracy": float(np.mean([line["predicted"] == line["label"] for line in lines])),
    }
    for number, name in enumerate(columns):
        if not np.isnan(found.estimate[number]):
            row[name] = rounded(float(found.estimate[number]))
            if low[number] < high[number]:  # images with the same value say nothing about others
                row[f"{name}_interval"] = [rounded(float(low[number])), rounded(float(high[number]))]
    return {**row, **environment()}


def _idle_lesions(line: Line, data: str) -> float:
    """Return whether all lesions together, which the cue makes a distractor, change nothing; NaN without any."""
    names = list_distractors(data)
    effect = line[ODDS][names.index("lesions")] if "lesions" in names else None
    return float("nan") if effect is None else float(abs(effect) < TOLERANCE)


def main() -> None:
    """Train what is missing, measure all explainers, and write the rows."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"number of test images [{LIMIT}, which is written]")
    limit = parser.parse_args().limit
    rows: list[Row] = []
    for data in REASONS:
        for recipe, vanilla, explainers in ((CAPE, True, "all"), (SOFTCAM, False, "softcam")):
            lines = explain(data, train(data, recipe), vanilla, explainers, limit)
            rows += [row_of(data, recipe, group) for group in group_lines(lines).values()]
            print(json.dumps([(row["explainer"], row["evidence_is_reason"]) for row in rows if row["data"] == data]))
    if limit == LIMIT:
        write_rows(rows, ROWS)


if __name__ == "__main__":
    main()
