"""Measure the explanations of the trained lesions models beside those of the black box, the CAPE paper's Table 1.

python benchmarks/lesions.py        # trains them
python benchmarks/explanations.py   # rows go to benchmarks/results/explanations.jsonl, curves to docs/

- Post-hoc maps explain `lesions-vanilla`, and native maps the prediction of their own model: all on the same images.
- All ten post-hoc baselines of the papers are in it, and the floors `random` and `centre`.
"""

import json
from pathlib import Path

from timing import Row, write

from softcam_hub.benchmarking import benchmark
from softcam_hub.benchmarking.report import draw_curves

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "results" / "explanations.jsonl"
CURVES = ROOT / "docs" / "explanations.png"
TWIN = "lesions-vanilla"
POST_HOC = "lesions-cape-pf"
"""The run whose twin is `TWIN`."""

NATIVE = {
    POST_HOC: "all",
    "lesions-cape-ts": "cape mu-cape",
    "lesions-cape": "cape mu-cape",
    "lesions-softcam": "softcam",
    "lesions-softcam-sparse": "softcam",
}
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
    """The rows of one run, with the recipe whose model each of them explains."""
    run = Path("runs") / recipe
    twin = run / "twin" if recipe == POST_HOC else None
    found = benchmark(run / "model", run / "explanations", twin=twin, explainers=explainers, **SETTINGS)
    explained = {"model": recipe, "twin": TWIN}
    return [{**row, "recipe": explained[row["explains"]], "explains": explained[row["explains"]]} for row in found]


def main() -> None:
    rows = [row for recipe, explainers in NATIVE.items() for row in rows_of(recipe, explainers)]
    write(rows, ROWS)
    chosen = {("cape", POST_HOC), ("mu-cape", POST_HOC), ("softcam", "lesions-softcam-sparse")}
    shown = [row for row in rows if row["explains"] == TWIN or (row["explainer"], row["explains"]) in chosen]
    draw_curves(shown, CURVES)
    print(json.dumps({row["explainer"]: row.get("adcc") for row in rows}))


if __name__ == "__main__":
    main()
