"""Train the recipes of the generated lesions one after another, and keep a row of each.

python -m benchmarks.reproduction.lesions                              # all of them, an hour of two cores
python -m benchmarks.reproduction.lesions lesions-cape lesions-softcam # some; their rows replace the old ones

The rows go to benchmarks/results/lesions.jsonl, the runs to runs/. A linear model on the mean colour is the floor.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from softcam_hub.arguments import ArgumentParser
from softcam_hub.data import load_lesions
from softcam_hub.training import parse, recipes, run

ROWS = Path(__file__).parents[1] / "results" / "lesions.jsonl"
FLOOR = "mean colour"

Row = dict[str, Any]


def mean_colours(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_lesions(split, count)
    colours = [np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) / 255 for image in data["image"]]
    return torch.tensor(np.array(colours)), torch.tensor(data["label"])


def floor() -> Row:
    """Test accuracy of multinomial logistic regression on the mean colour of an image."""
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
    return {"recipe": FLOOR, "model": "linear on mean colour", "test_accuracy": float(hits.float().mean())}


def keep(row: Row) -> None:
    """Write a row in place of an earlier one of the same recipe."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    rows = [other for other in rows if other["recipe"] != row["recipe"]] + [row]
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["recipe"])))


def main() -> None:
    known = [name for name in recipes() if name.startswith("lesions-")]
    known.sort(key=lambda name: name != "lesions-vanilla")  # what others start from
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=[FLOOR, *known], help="recipes to run")
    for name in parser.parse_args().recipes:
        if name == FLOOR:
            keep(floor())
            continue
        metrics = run(parse(["--recipe", name, "--overwrite"]))
        keep({"recipe": name, **metrics, "cores": os.cpu_count(), "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
