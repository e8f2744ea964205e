"""Train the recipes for a first data set of one's own on photographs of steel, and write a row for each and seed.

python -m benchmarks.recipes --photographs FOLDER              # three seeds: two hours of a core
python -m benchmarks.recipes --photographs FOLDER --seeds 0    # replace the rows of this seed

- `finetune-medium` learns from all training images of NEU-DET. `finetune-small` learns from the first 50 of every
  class, and is measured on the same test images.
- ImageNet's weights are those of `benchmarks/imagenet_weights.py`, which are the ones that `--pretrained` downloads.
- Seeds are those of weights and batches; the images are the same.
- Runs are kept in build/recipes: those of seed 0 directly, for `benchmarks.image_sizes`, and others in seed-N.
"""

import argparse
import os
import statistics
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
SEEDS, KEY = (0, 1, 2), ("recipe", "seed")
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


def measure(recipe: str, seed: int, photographs: Path, folder: Path) -> Row:
    """Train a recipe, and return its scores and minutes.

    Args:
        recipe: Name of a recipe.
        seed: Seed of weights and batches.
        photographs: Folder of NEU-DET, with manifest.csv.
        folder: Folder for the runs.
    """
    folder = folder if seed == 0 else folder / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / f"{recipe}.csv"
    rows = choose(photographs, OF_EVERY_CLASS[recipe])
    write_manifest(rows, manifest)
    options = {"recipe": recipe, "data": manifest, "output": folder / recipe, "seed": seed, "init": imagenet_folder()}
    config = parse([*(f"--{name}={value}" for name, value in options.items()), "--pretrained=False", "--overwrite"])
    metrics = run(config)
    scores = {name: rounded(value) for name, value in metrics.items() if name.startswith("test_")}
    images = Counter(row["split"] for row in rows)
    return {
        "recipe": recipe,
        "seed": seed,
        "data": "neu-det",
        "images": images["train"],
        "test_images": images["test"],
        "epochs": config.optimization.epochs,
        **scores,
        "minutes": rounded(metrics["seconds"] / 60),
        **environment(),
    }


def recipes_table(rows: list[Row]) -> str:
    """Write one line for each recipe, with the mean over seeds and every seed."""
    header = ["recipe", "training images", "epochs", "accuracy", "balanced", "minutes"]
    of_recipe: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (-row["images"], row["seed"])):
        of_recipe.setdefault(row["recipe"], []).append(row)
    body = []
    for recipe, runs in of_recipe.items():
        cells = [f"`{recipe}`", str(runs[0]["images"]), str(runs[0]["epochs"])]
        for name in ("test_accuracy", "test_balanced_accuracy"):
            mean = statistics.mean(row[name] for row in runs)
            cells.append(f"{mean:.1%} ({', '.join(f'{100 * row[name]:.1f}' for row in runs)})")
        body.append([*cells, f"{statistics.median(row['minutes'] for row in runs):.0f}"])
    first, seeds = rows[0], ", ".join(map(str, sorted({row["seed"] for row in rows})))
    where = "; ".join(sorted({f"{row['machine']}, torch {row['torch']}" for row in rows}))
    return markdown(header, body) + (
        f"\nOn {first['test_images']} test photographs, with SoftCAM: means over the seeds {seeds}, in parentheses "
        f"every seed in order; minutes (median) on {first['threads']} thread beside another program, {where}.\n"
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of NEU-DET, with manifest.csv")
    parser.add_argument("recipes", nargs="*", default=list(OF_EVERY_CLASS), help="recipes to run; both by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="seeds of weights and batches")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="number of threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    for seed in args.seeds:
        for recipe in args.recipes:
            replace_rows([measure(recipe, seed, args.photographs, args.runs)], ROWS, KEY)


if __name__ == "__main__":
    main()
