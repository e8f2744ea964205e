"""Measure IDSDS as it was published: on networks that have learnt from images with deleted cells.

python -m benchmarks.reproduction.lesions lesions-cape-ts lesions-softcam --seeds 0  # networks without deleted cells
python -m benchmarks.idsds              # trains the networks with deleted cells, and writes rows: 40 minutes of a core
python -m benchmarks.idsds --limit 8    # a smoke test on few images, nothing written

- Two networks learn the types of generated lesions by the recipes `lesions-cape-ts` and `lesions-softcam`, and once
  more with a random cell deleted from every second training image.
- CAPE is trained with a vanilla teacher on the same backbone, whom the post-hoc methods explain.
"""

import argparse
from pathlib import Path
from typing import Any

from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.report import markdown
from softcam_hub.training import parse, run

from .reproduction.lesions import run_folder
from .timing import Row, environment, rounded, write_rows

ROWS = Path(__file__).parent / "results" / "idsds.jsonl"
RUNS = Path("runs") / "deleted-cells"
RECIPES = {"lesions-cape-ts": "all", "lesions-softcam": "softcam"}
"""Recipe -> explainers of the network and of its teacher."""

SETTINGS: dict[str, Any] = {"data": "lesions", "data_size": 128, "eval_count": 600, "measures": "idsds"}
SETTINGS |= {"batch_size": 25, "shard_size": 25}
LIMIT = 200
WITH, WITHOUT = "deleted cells", "whole images"
"""What a network has learnt from."""


def folder_of(recipe: str, learnt_from: str) -> Path:
    """Return the folder of a run; a run with deleted cells is trained if it is missing."""
    if learnt_from == WITHOUT:
        return run_folder(recipe, 0)
    folder = RUNS / recipe
    if not (folder / "metrics.json").exists():
        run(parse(["--recipe", recipe, "--delete_cells", f"--output={folder}", *["--resume"] * folder.exists()]))
    return folder


def measure(recipe: str, learnt_from: str, limit: int) -> list[Row]:
    """Return a row for every explainer of a network.

    Args:
        recipe: Recipe of the network.
        learnt_from: What the images of its training were.
        limit: Number of test images.
    """
    folder = folder_of(recipe, learnt_from)
    teacher = folder / "vanilla" if (folder / "vanilla").exists() else None
    options = {**SETTINGS, "explainers": RECIPES[recipe], "limit": limit, "overwrite": True}
    found = benchmark(folder / "model", folder / "idsds", vanilla=teacher, **options)
    return [
        {
            "recipe": recipe,
            "learnt_from": learnt_from,
            "explainer": row["explainer"],
            "explains": row["explains"],
            "images": row["images"],
            "accuracy": rounded(row["accuracy"]),
            "idsds": rounded(row["idsds"]),
            "idsds_interval": [rounded(end) for end in row["idsds_interval"]],
            **environment(),
        }
        for row in found
    ]


def idsds_table(rows: list[Row]) -> str:
    """Render one line per explainer: IDSDS on the networks that know deleted cells, and on those that do not."""
    scores = {(row["recipe"], row["explainer"], row["explains"], row["learnt_from"]): row for row in rows}
    published = sorted((row for row in rows if row["learnt_from"] == WITH), key=lambda row: -row["idsds"])
    body = []
    for recipe, explainer, explains in ((row["recipe"], row["explainer"], row["explains"]) for row in published):
        cells = [_cell(scores[recipe, explainer, explains, learnt_from]) for learnt_from in (WITH, WITHOUT)]
        body.append([f"`{explainer}`", _explained(recipe, explains), *cells])
    networks = {(row["recipe"], row["explains"], row["learnt_from"]): row for row in rows}
    accuracies = "; ".join(
        f"{_explained(recipe, explains)}, {learnt_from}: {row['accuracy']:.1f} %"
        for (recipe, explains, learnt_from), row in networks.items()
    )
    return (
        f"Rank correlation (IDSDS) on {rows[0]['images']} generated test images with its 95 % interval over images; "
        f"one run of each network, seed 0, torch {rows[0]['torch']}. Accuracy on these images: {accuracies}.\n\n"
    ) + markdown(["map", "explains", f"learnt from {WITH}, as published", f"learnt from {WITHOUT}"], body)


def _explained(recipe: str, explains: str) -> str:
    return f"`{recipe}`" if explains == "model" else f"the teacher of `{recipe}`"


def _cell(row: Row) -> str:
    low, high = row["idsds_interval"]
    return f"{row['idsds']:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"number of test images [{LIMIT}, which is written]")
    limit = parser.parse_args().limit
    rows = [row for learnt_from in (WITH, WITHOUT) for recipe in RECIPES for row in measure(recipe, learnt_from, limit)]
    for row in rows:
        print(row)
    if limit == LIMIT:
        write_rows(rows, ROWS)


if __name__ == "__main__":
    main()
