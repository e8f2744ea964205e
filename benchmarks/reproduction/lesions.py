"""Train the recipes for generated lesions one after another, and write a row for each.

python -m benchmarks.reproduction.lesions                          # all recipes, three seeds: three hours of two cores
python -m benchmarks.reproduction.lesions lesions-cape --seeds 0   # replace the row of this recipe and seed

- Seeds are those of weights and batches; the images are the same.
- Rows are written to benchmarks/results/lesions.jsonl, runs of seed 0 to runs/RECIPE, and those of the others to
  runs/seed-N/RECIPE.
- A linear model on the mean colour of an image shows how much of the task colour alone gives away.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from softcam_hub.arguments import ArgumentParser
from softcam_hub.data import load_lesions
from softcam_hub.memory import keep_freed_memory
from softcam_hub.training import parse, recipes, run
from softcam_hub.training.parsing import read_recipe

from ..timing import Row, replace_rows

ROWS = Path(__file__).parents[1] / "results" / "lesions.jsonl"
RUNS = Path("runs")
SEEDS, KEY = (0, 1, 2), ("recipe", "seed")
MEAN_COLOUR = "mean colour"
"""Name of the linear model in place of a recipe."""


def mean_colours(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean colour (N, 3) and the label (N,) of every image."""
    data = load_lesions(split, count)
    colours = [np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) / 255 for image in data["image"]]
    return torch.tensor(np.array(colours)), torch.tensor(data["label"])


def measure_mean_colour() -> Row:
    """Measure the test accuracy of logistic regression on the mean colour of an image."""
    (train, labels), (test, expected) = mean_colours("train", 3000), mean_colours("test", 600)
    mean, std = train.mean(dim=0), train.std(dim=0)
    layer = torch.nn.Linear(3, 4)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer((train - mean) / std), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    hits = layer((test - mean) / std).argmax(dim=1) == expected
    return {
        "recipe": MEAN_COLOUR,
        "seed": 0,
        "model": "linear on mean colour",
        "test_accuracy": float(hits.float().mean()),
    }


def main() -> None:
    """Train the recipes that the command line names, with every seed."""
    known = [name for name in recipes() if name.startswith("lesions-")]
    known.sort(key=lambda name: name != "lesions-vanilla")  # other recipes start from it
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=[MEAN_COLOUR, *known], help="recipes to run; all by default")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS), help="seeds of weights and batches")
    arguments = parser.parse_args()
    keep_freed_memory()
    for seed in arguments.seeds:
        for name in arguments.recipes:
            if name != MEAN_COLOUR:
                metrics = run(parse(["--recipe", name, "--overwrite", *options_of(name, seed)]))
                row = {**metrics, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
                replace_rows([{"recipe": name, "seed": seed, **row}], ROWS, KEY)
    if MEAN_COLOUR in arguments.recipes:
        replace_rows([measure_mean_colour()], ROWS, KEY)


def options_of(recipe: str, seed: int) -> list[str]:
    """Return the options by which a run with a seed differs from its recipe."""
    options = [f"--seed={seed}", f"--output={run_folder(recipe, seed)}"]
    start = Path(read_recipe(recipe).get("init") or "")
    if start.parts[:1] == RUNS.parts:  # runs/RECIPE/model
        options.append(f"--init={run_folder(start.parts[1], seed) / 'model'}")
    return options


def run_folder(recipe: str, seed: int) -> Path:
    """Return the folder of a run."""
    return (RUNS / f"seed-{seed}" if seed else RUNS) / recipe


if __name__ == "__main__":
    main()
