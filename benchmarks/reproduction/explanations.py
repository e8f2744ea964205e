"""Measure the CAPE paper's Table 1 for the models trained on lesions, and for the vanilla classifier.

python -m benchmarks.reproduction.lesions                  # trains the models
python -m benchmarks.reproduction.explanations             # writes rows, values of every image and pictures
python -m benchmarks.reproduction.explanations --seeds 1   # replaces the rows of the runs with this seed

- Post-hoc maps explain `lesions-vanilla`, and native maps explain the prediction of their own model, on the
  same images. `seed` is that of the training run.
- All ten post-hoc methods of the papers are measured, and the uninformed maps `random` and `centre`.
- The threshold of the tuned IoU is chosen on validation images, which nothing else is measured on.
- A seed takes about half an hour of a core. Rows are written after every run, so that finished ones are kept.
"""

import argparse
import json
from pathlib import Path

from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.folder import AGREEMENT_ROWS
from softcam_hub.evaluation.report import plot_over_k
from softcam_hub.figures.charts import matrix

from ..agreement import average_agreement, kept_agreement
from ..averages import average_over_seeds, seeds_of
from ..explanation_tables import in_order
from ..timing import Row, read_rows, replace_rows
from ..values import replace_values, values_by_explainer
from .lesions import SEEDS, run_folder

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results" / "explanations.jsonl"
AGREEMENT_OF_LESIONS = ROOT / "benchmarks" / "results" / "agreement_lesions.jsonl"
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
"""Run -> explainers that are measured with it."""

ALWAYS = (
    *(("softcam", "lesions-softcam"), ("cape", POST_HOC)),
    *(("cape", "lesions-cape"), ("mu-cape", "lesions-cape"), ("random", VANILLA)),
)
"""Explainers and the models that they explain, which every chart shows."""

SETTINGS = {"data": "lesions", "data_size": 128, "eval_count": 600, "batch_size": 25, "shard_size": 25}
MEASURES = "table localisation sensitivity gini evidence pxap boxes calibration causal"
IMAGES, TUNING_IMAGES = 200, 100
"""Numbers of test images, and of validation images for the thresholds of the tuned IoU."""

KEY = ("recipe", "seed", "explainer")
"""Columns by which rows and values are told apart; `recipe` is the model that is explained."""


def rows_of(recipe: str, seed: int) -> tuple[list[Row], list[Row]]:
    """Measure a run; return rows and values of every image, which name the recipe whose model is explained."""
    run, explainers = run_folder(recipe, seed), NATIVE[recipe]
    settings = {**SETTINGS, "vanilla": run / "vanilla" if recipe == POST_HOC else None, "explainers": explainers}
    tuning = {"split": "validation", "limit": TUNING_IMAGES, "train_count": TUNING_IMAGES, "measures": "localisation"}
    benchmark(run / "model", run / "tuning", **settings, **tuning)
    several = explainers == "all" or " " in explainers  # one explainer has none to agree with
    test = {"limit": IMAGES, "measures": MEASURES + " agreement" * several, "per_image": True}
    folder = run / "explanations"
    rows = benchmark(run / "model", folder, thresholds_from=run / "tuning", seed=seed, **settings, **test)
    values = values_by_explainer(read_rows(folder / "values.jsonl"))
    explained = {"model": recipe, "vanilla": VANILLA}
    named = [
        [{**row, "recipe": explained[row["explains"]], "explains": explained[row["explains"]]} for row in found]
        for found in (rows, [{**row, "seed": seed} for row in values])
    ]
    return named[0], named[1]


def draw(rows: list[Row], file: Path) -> None:
    """Draw the curves over k, means over seeds, each line with the model that it explains."""
    named = {_name(row["explainer"], row["explains"]): row for row in average_over_seeds(in_order(rows))[0]}
    always = [_name(*one) for one in ALWAYS]
    shown = [name for name, row in named.items() if name in always or row["explains"] == VANILLA]
    plot_over_k({name: named[name] for name in shown}, always).save(file)


def _name(explainer: str, model: str) -> str:
    return f"{explainer} ({model})"


def draw_agreement(rows: list[Row], file: Path) -> None:
    """Draw the matrix of agreement, means over seeds."""
    averaged = average_agreement(in_order(rows))
    names = [row["explainer"] for row in averaged]
    values = [[row["correlation"][name] for name in names] for row in averaged]
    counted = f"{IMAGES} images of lesions (test) and {len(seeds_of(rows))} networks"
    matrix(f"Rank correlation of heat maps, mean over {counted}", names, values).save(file)


def main() -> None:
    """Measure the runs of the seeds that the command line names, and write values, rows and pictures."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS), help="seeds of the runs")
    for seed in parser.parse_args().seeds:
        for recipe in NATIVE:
            rows, values = rows_of(recipe, seed)
            replace_values(values, "explanations", KEY)
            replace_rows(rows, ROWS, KEY)
        agreement = read_rows(run_folder(POST_HOC, seed) / "explanations" / AGREEMENT_ROWS)
        replace_rows([{**row, "seed": seed} for row in kept_agreement(agreement)], AGREEMENT_OF_LESIONS, KEY[1:])
    rows = read_rows(ROWS)
    draw(rows, PICTURE)
    draw_agreement(read_rows(AGREEMENT_OF_LESIONS), AGREEMENT)
    averaged, _ = average_over_seeds(in_order(rows))
    print(json.dumps({_name(row["explainer"], row["explains"]): row.get("adcc") for row in averaged}))


if __name__ == "__main__":
    main()
