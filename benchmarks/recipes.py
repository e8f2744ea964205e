"""Train the recipes for a first data set of one's own on photographs of steel, and write a row for each.

python -m benchmarks.recipes --photographs FOLDER    # a quarter of an hour of two cores

- `finetune-medium` learns from all training images of NEU-DET. `finetune-small` learns from the first 50 of every
  class, and is measured on the same test images.
- ImageNet's weights are those of `benchmarks/imagenet_weights.py`, which are the ones that `--pretrained` downloads.
- The runs are kept in build/recipes, for `benchmarks.image_sizes`.
"""

import argparse
import os
from collections import Counter
from pathlib import Path

import torch

from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation.report import markdown
from softcam_hub.memory import keep_freed_memory
from softcam_hub.training import parse, run

from .imagenet_weights import imagenet_folder
from .manifests import read_manifest, write_manifest
from .timing import Row, environment, replace_rows, rounded

ROWS = Path(__file__).parent / "results" / "recipes.jsonl"
RUNS = Path(__file__).parents[1] / "build" / "recipes"
OF_EVERY_CLASS = {"finetune-small": 50, "finetune-medium": None}
"""Recipe -> number of training images of every class; None for all."""


def choose(photographs: Path, count: int | None) -> list[Row]:
    """Return the rows of the manifest with the first training images of every class.

    Args:
        photographs: Folder of NEU-DET, with manifest.csv.
        count: Number of training images of every class; None for all.
    """
    seen: Counter[str] = Counter()
    kept = []
    for row in read_manifest(photographs / "manifest.csv"):
        seen[row["label"]] += row["split"] == "train"
        if row["split"] != "train" or count is None or seen[row["label"]] <= count:
            kept.append(row)
    return kept


def measure(recipe: str, photographs: Path, folder: Path) -> Row:
    """Train a recipe, and return its scores and minutes.

    Args:
        recipe: Name of a recipe.
        photographs: Folder of NEU-DET, with manifest.csv.
        folder: Folder for the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / f"{recipe}.csv"
    rows = choose(photographs, OF_EVERY_CLASS[recipe])
    write_manifest(rows, manifest)
    options = {"recipe": recipe, "data": manifest, "output": folder / recipe, "init": imagenet_folder()}
    config = parse([*(f"--{name}={value}" for name, value in options.items()), "--pretrained=False", "--overwrite"])
    metrics = run(config)
    scores = {name: rounded(value) for name, value in metrics.items() if name.startswith("test_")}
    images = Counter(row["split"] for row in rows)
    return {
        "recipe": recipe,
        "data": "neu-det",
        "images": images["train"],
        "test_images": images["test"],
        "epochs": config.optimization.epochs,
        **scores,
        "minutes": rounded(metrics["seconds"] / 60),
        **environment(),
    }


def recipes_table(rows: list[Row]) -> str:
    """Write one line for each recipe."""
    header = ["recipe", "training images", "epochs", "accuracy", "balanced", "minutes"]
    body = []
    for row in sorted(rows, key=lambda row: -row["images"]):
        scores = [f"{row[f'test_{name}']:.1%}" for name in ("accuracy", "balanced_accuracy")]
        body.append([f"`{row['recipe']}`", str(row["images"]), str(row["epochs"]), *scores, f"{row['minutes']:.0f}"])
    first = rows[0]
    return markdown(header, body) + (
        f"\nOn {first['test_images']} test photographs, with SoftCAM; one run each, seed 0, {first['threads']} thread "
        f"beside another program, {first['machine']}, torch {first['torch']}.\n"
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of NEU-DET, with manifest.csv")
    parser.add_argument("recipes", nargs="*", default=list(OF_EVERY_CLASS), help="recipes to run; both by default")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="number of threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    for recipe in args.recipes:
        replace_rows([measure(recipe, args.photographs, args.runs)], ROWS, ("recipe",))


if __name__ == "__main__":
    main()
