"""Measure the CAPE paper's Table 1 for the models trained on lesions, and for the vanilla classifier.

python -m benchmarks.reproduction.lesions        # trains the models
python -m benchmarks.reproduction.explanations   # writes the rows, the values of every image and two pictures

- Post-hoc maps explain `lesions-vanilla`, and native maps explain the prediction of their own model, on the
  same images.
- All ten post-hoc methods of the papers are measured, and the uninformed maps `random` and `centre`.
"""

import json
from pathlib import Path

from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.report import plot_over_k
from softcam_hub.files import copy_file

from ..timing import Row, read_rows, write_rows
from ..values import replace_values, values_by_explainer

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results" / "explanations.jsonl"
PICTURE = ROOT / "docs" / "explanations.png"
AGREEMENT = ROOT / "docs" / "agreement.png"
"""Agreement of the post-hoc explainers, and of the maps of `POST_HOC`, whose classifier they explain."""

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

SETTINGS = {
    "data": "lesions",
    "data_size": 128,
    "eval_count": 600,
    "limit": 200,
    "batch_size": 25,
    "shard_size": 25,
    "per_image": True,
}
MEASURES = "table localisation sensitivity gini evidence pxap boxes causal"


def rows_of(recipe: str, explainers: str) -> tuple[list[Row], list[Row]]:
    """Measure a run; return rows and values of every image, which name the recipe whose model is explained."""
    run = Path("runs") / recipe
    vanilla = run / "vanilla" if recipe == POST_HOC else None
    several = explainers == "all" or " " in explainers  # one explainer has none to agree with
    options = {**SETTINGS, "explainers": explainers, "measures": MEASURES + " agreement" * several}
    rows = benchmark(run / "model", run / "explanations", vanilla=vanilla, **options)
    values = values_by_explainer(read_rows(run / "explanations" / "values.jsonl"))
    explained = {"model": recipe, "vanilla": VANILLA}
    named = [
        [{**row, "recipe": explained[row["explains"]], "explains": explained[row["explains"]]} for row in found]
        for found in (rows, values)
    ]
    return named[0], named[1]


def draw(rows: list[Row], file: Path) -> None:
    """Draw the curves over k, each line with the model that it explains."""
    named = {_name(row["explainer"], row["explains"]): row for row in rows}
    always = [_name(*one) for one in ALWAYS]
    shown = [name for name, row in named.items() if name in always or row["explains"] == VANILLA]
    plot_over_k({name: named[name] for name in shown}, always).save(file)


def _name(explainer: str, model: str) -> str:
    return f"{explainer} ({model})"


def main() -> None:
    """Measure all runs, and write rows and curves."""
    rows: list[Row] = []
    for recipe, explainers in NATIVE.items():
        of_run, values = rows_of(recipe, explainers)
        rows += of_run
        replace_values(values, "explanations", ("recipe", "explainer"))
    write_rows(rows, ROWS)
    draw(rows, PICTURE)
    copy_file(Path("runs") / POST_HOC / "explanations" / AGREEMENT.name, AGREEMENT)
    print(json.dumps({row["explainer"]: row.get("adcc") for row in rows}))


if __name__ == "__main__":
    main()
