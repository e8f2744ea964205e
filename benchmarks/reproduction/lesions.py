"""Train the recipes for generated lesions one after another, and write a row for each.

python -m benchmarks.reproduction.lesions                              # all recipes, an hour of two cores
python -m benchmarks.reproduction.lesions lesions-cape lesions-softcam # replace the rows of these recipes

Rows are written to benchmarks/results/lesions.jsonl, and runs to runs/. A linear model on the mean colour of
an image shows how much of the task colour alone gives away.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from softcam_hub.arguments import ArgumentParser
from softcam_hub.data import load_lesions
from softcam_hub.training import parse, recipes, run

from ..timing import Row, replace_rows

ROWS = Path(__file__).parents[1] / "results" / "lesions.jsonl"
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
    return {"recipe": MEAN_COLOUR, "model": "linear on mean colour", "test_accuracy": float(hits.float().mean())}


def main() -> None:
    """Train the recipes that the command line names."""
    known = [name for name in recipes() if name.startswith("lesions-")]
    known.sort(key=lambda name: name != "lesions-vanilla")  # other recipes start from it
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=[MEAN_COLOUR, *known], help="recipes to run; all by default")
    for name in parser.parse_args().recipes:
        if name == MEAN_COLOUR:
            row = measure_mean_colour()
        else:
            metrics = run(parse(["--recipe", name, "--overwrite"]))
            row = {"recipe": name, **metrics, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
        replace_rows([row], ROWS, ("recipe",))


if __name__ == "__main__":
    main()
