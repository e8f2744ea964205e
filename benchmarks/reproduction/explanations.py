"""Measure the CAPE paper's Table 1 for the models trained on lesions, and for the vanilla classifier.

python -m benchmarks.reproduction.lesions        # trains the models
python -m benchmarks.reproduction.explanations   # writes results/explanations.jsonl and docs/explanations.png

- Post-hoc maps explain `lesions-vanilla`, and native maps explain the prediction of their own model, on the
  same images.
- All ten post-hoc methods of the papers are measured, and the uninformed maps `random` and `centre`.
"""

import json
from pathlib import Path

from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.report import COLUMNS
from softcam_hub.evaluation.results import CURVES
from softcam_hub.figures import stack_vertically
from softcam_hub.figures.charts import curves

from ..timing import Row, write_rows

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results" / "explanations.jsonl"
PICTURE = ROOT / "docs" / "explanations.png"
VANILLA = "lesions-vanilla"
POST_HOC = "lesions-cape-pf"
"""Run whose vanilla classifier is `VANILLA`."""

NATIVE = {
    POST_HOC: "all",
    "lesions-cape-ts": "cape mu-cape",
    "lesions-cape": "cape mu-cape",
    "lesions-softcam": "softcam",
    "lesions-softcam-sparse": "softcam",
}
ALWAYS = (
    *(("softcam", "lesions-softcam"), ("cape", POST_HOC)),
    *(("cape", "lesions-cape"), ("mu-cape", "lesions-cape"), ("random", VANILLA)),
)
"""Explainers and the models that they explain, which every chart shows."""

LINES = 3
"""Number of post-hoc explainers in a chart beside `ALWAYS`; colours would repeat with more."""

SETTINGS = {
    "data": "lesions",
    "data_size": 128,
    "eval_count": 600,
    "limit": 200,
    "batch_size": 25,
    "shard_size": 25,
    "measures": "table localisation sensitivity gini",
}


def rows_of(recipe: str, explainers: str) -> list[Row]:
    """Measure a run, and name in every row the recipe whose model is explained."""
    run = Path("runs") / recipe
    vanilla = run / "vanilla" if recipe == POST_HOC else None
    rows = benchmark(run / "model", run / "explanations", vanilla=vanilla, explainers=explainers, **SETTINGS)
    explained = {"model": recipe, "vanilla": VANILLA}
    return [{**row, "recipe": explained[row["explains"]], "explains": explained[row["explains"]]} for row in rows]


def draw(rows: list[Row], file: Path) -> None:
    """Draw the curves over k, each named with its model. Charts of one measure share their axis."""
    by_map = {(row["explainer"], row["explains"]): row for row in rows}
    others = [one for one in by_map if one[1] == VANILLA and one not in ALWAYS]
    groups = [(*ALWAYS, *others[first : first + LINES]) for first in range(0, len(others), LINES)]
    sheets = []
    for name in CURVES:
        heading, higher = COLUMNS[name]
        title = f"{heading[:-2]} in % ({'higher' if higher else 'lower'} is better)"
        panels = {
            title + " " * number: {  # titles are keys, and must differ
                f"{explainer} ({model})": list(enumerate(by_map[explainer, model][f"{name}_curve"], 1))
                for explainer, model in group
            }
            for number, group in enumerate(groups)
        }
        sheets.append(curves(panels, "k highest patches", shared=True))
    stack_vertically(sheets).save(file)


def main() -> None:
    """Measure all runs, and write rows and curves."""
    rows = [row for recipe, explainers in NATIVE.items() for row in rows_of(recipe, explainers)]
    write_rows(rows, ROWS)
    draw(rows, PICTURE)
    print(json.dumps({row["explainer"]: row.get("adcc") for row in rows}))


if __name__ == "__main__":
    main()
