"""Try ways to finer evidence maps of the same image; write rows.

python -m benchmarks.fine.study lesions                          # an hour and a half of a core
python -m benchmarks.fine.study steel --photographs FOLDER       # five hours of a core
python -m benchmarks.fine.study lesions --variants plain --seeds 0
python -m benchmarks.fine.costs                                  # what they cost; ten minutes of a core

- *plain*: evidence of stride 32 alone.
- *scales*: evidence of strides 32, 16 and 8 is added (see `network.py`), and trained with the plain loss alone. Finer
  features are normalised as by a batch norm without weights.
- *scales, image norm*: the numbers of an image are divided by the root of their mean square instead, as in
  softcam_hub. *scales, channel norm*: the channels of every location get a mean of 0 and a variance of 1.
- *scales, coarse dropped*: for half of the images of a batch, the loss is computed without the coarse evidence as well.
- *self-taught*: after two epochs, maps also learn from those of the same network for larger images.
- *scales, self-taught*: both.
- *scales, taught*: a plain network is trained first. The scales begin from its weights, and learn for as many epochs
  again, also from its maps for larger images. In *scales, coarse dropped, taught* the loss is also computed without the
  coarse evidence.
- *scales, taught by scales*: the same, but the network that is trained first has the finer strides as well.
- *scales, image norm, taught*: that with the other norm, the way of `softcam-hub train --teach-from-size`. These two,
  and the norms, were thought of when most rows of the others were known.
- *plain, taught*, *scales, continued* and *plain, continued* do the same as *scales, taught* without finer strides,
  without a teacher, and without both, to tell what gives how much.
- *CAPE*: evidence of stride 32 becomes CAPE's probabilities. *CAPE, scales*: that of strides 32, 16 and 8 does, with
  the norm of *scales, image norm*. In *CAPE, fine classes*, evidence of strides 16 and 8 tells the classes apart, and
  that of stride 32 says how much a place counts. *CAPE, fine saliency* is the other way round.
- *stride 16*, *stride 8*: dilated backbones. *larger images*: training and test with larger images. They are rivals
  at a cost of their own. Stride 8 is left out on steel, where it would take longer than all others together.

Maps are drawn where their cells look, see `places.py`. Earlier rows drew squares, which says more of the place of large
cells than of the evidence: they have no other scores.

The rule was written before the rows: a way is adopted if, on both tasks, the hit rate on the third of the images with
the smallest annotations rises by ten points, the accuracy falls by half a point at most, and a forward pass costs 1.10
times that of the plain network at most.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor

from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation.shards import make_dataset, stack_samples
from softcam_hub.explanation_scores.localization import (
    activation_precision,
    hit_rate,
    localization_precision,
    pointing_game,
)
from softcam_hub.explanation_scores.thresholds import iou_otsu
from softcam_hub.memory import keep_freed_memory
from softcam_hub.models.alignment import sides_of
from softcam_hub.models.heads import select

from ..reproduction.steel import missing_manifest
from ..timing import Row, environment, read_rows, replace_rows, rounded
from .causal import causal_agreement
from .costs import BATCH, TOO_SLOW
from .network import STRIDE, VARIANTS, ScaledEvidence, begin_from, enlarge, make_network, train
from .places import Places, draw_squares, find_places
from .tasks import Task, lesions, steel

ROWS = Path(__file__).parents[1] / "results" / "fine.jsonl"
RUNS = Path("runs") / "fine"
"""Folder of the trained networks, which are not trained again."""
MEASURED = 64
"""Number of validation images on which it is measured where the cells of maps look."""
KEY = ("task", "variant", "seed")

SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hit_rate": hit_rate,
    "pointing_game": pointing_game,
    "activation_precision": activation_precision,
    "localization_precision": lambda maps, masks: localization_precision(maps, masks).mean(dim=1),
    "iou_otsu": iou_otsu,
}
HITS = ("hit_rate", "pointing_game")
"""Scores of maps that are drawn in other ways than at one place."""


@torch.no_grad()
def score(network: ScaledEvidence, images: Any, side: int, places: Places) -> Row:
    """Return accuracy, and the scores of the map of the true class for every annotated image.

    Args:
        network: Trained network.
        images: Test images with their annotations.
        side: Side of the images that the network sees.
        places: Where the cells of its maps look.
    """
    network.eval()
    values: dict[str, list[float]] = {name: [] for name in (*SCORES, "area")}
    others: dict[str, dict[str, list[float]]] = {"squares": {name: [] for name in HITS}}
    if len(places.depths) > 1 and not network.variant.cape:  # evidence alone can be added
        others["depths"] = {name: [] for name in HITS}
    right = 0
    for first in range(0, len(images), BATCH):
        some = [images[index] for index in range(first, min(first + BATCH, len(images)))]
        pixels, labels, masks = stack_samples(some, ("pixel_values", "labels", "mask"), torch.device("cpu"))
        terms = network.terms(enlarge(pixels, side))
        logits, maps = network.compose(terms)
        right += int((logits.argmax(dim=1) == labels).sum())
        known = masks.flatten(1).any(dim=1)
        masks, size = masks[known], sides_of(masks)
        maps, *terms = (select(one, labels[:, None])[known] for one in (maps, *terms))
        pictures = {"squares": draw_squares(maps, size), "depths": places.draw_depths(terms, side, size)}
        drawn = [(places.draw(maps, side, size), values, tuple(SCORES))]
        drawn += [(pictures[name], into, HITS) for name, into in others.items()]
        for picture, into, names in drawn:
            for name in names:
                into[name] += [rounded(value) for value in SCORES[name](picture.relu()[:, 0], masks).tolist()]
        values["area"] += [rounded(value) for value in masks.float().mean(dim=(1, 2)).tolist()]
    return {"accuracy": rounded(right / len(images)), "images": len(images), "values": values, "drawn": others}


def measure(task: Task, name: str, seed: int) -> Row:
    """Train a variant with a seed, and score it on the test images.

    Args:
        task: Images and network.
        name: Name of the variant.
        seed: Seed of fresh weights and of batches.
    """
    variant = VARIANTS[name]
    splits = task.splits()
    size = (3, task.side, task.side)
    preprocessing = {**task.make_model(STRIDE).preprocessing, "input_size": size, "crop_pct": 1.0}  # whole images
    known = make_dataset(preprocessing, splits.train)  # a small data set, which fits into memory
    pixels, labels = stack_samples(
        [known[index] for index in range(len(known))], ("pixel_values", "labels"), torch.device("cpu")
    )

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.Generator().manual_seed(1000 * seed + epoch)
        for chosen in torch.randperm(len(labels), generator=order).split(BATCH):
            images = pixels[chosen]
            for axis in (-1, -2) if task.upside_down else (-1,):
                flipped = torch.rand(len(chosen), 1, 1, 1, generator=order) < 0.5
                images = torch.where(flipped, images.flip(axis), images)
            yield images.contiguous(memory_format=torch.channels_last), labels[chosen]

    def train_once(name: str) -> ScaledEvidence:
        """Train a network, or load it where it was trained before; one that is trained first is one of the variants."""
        settings, file = VARIANTS[name], RUNS / task.name / f"{name}, seed {seed}.safetensors"
        first = train_once(settings.after) if settings.after and not file.exists() else None
        torch.manual_seed(seed)
        network = make_network(task, settings)
        if file.exists():
            load_model(network, file)
            return network
        if first is not None:
            begin_from(network, first)
        steps = math.ceil(len(labels) / BATCH)
        train(network, task, settings, batches, steps, first if settings.trained_teacher else None)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_model(network, str(file))
        return network

    network = train_once(name)
    side = task.larger_side if variant.enlarged else task.side
    held_out = make_dataset(preprocessing, splits.validation)
    chosen = np.linspace(0, len(held_out) - 1, min(MEASURED, len(held_out))).astype(int).tolist()
    places = find_places(network, torch.stack([held_out[index]["pixel_values"] for index in chosen]), side)
    row = score(network, make_dataset(preprocessing, splits.test, masks=True), side, places)
    if task.name == "lesions":
        row["values"]["causal"] = causal_agreement(network, task, splits.test, preprocessing, side, places)
    trained = {"task": task.name, "variant": name, "seed": seed, "trained_on": len(labels), "places": asdict(places)}
    return {**trained, **row, **environment()}


def make_task(name: str, photographs: Path | None, parser: ArgumentParser) -> Task:
    """Make a task, or end the program where its images are missing."""
    if name == "lesions":
        return lesions()
    if photographs is None:
        parser.error("the photographs of steel are missing: name the folder of NEU-DET with --photographs")
    if not (photographs / "manifest.csv").is_file():
        parser.error(missing_manifest(photographs))
    return steel(photographs / "manifest.csv")


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["lesions", "steel"], help="images to train on")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), help="variants to train; all by default")
    parser.add_argument("--photographs", type=Path, help="folder of NEU-DET, with manifest.csv")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds")
    arguments = parser.parse_args()
    for variant in arguments.variants:
        if variant not in VARIANTS:
            parser.error(f"unknown variant {variant!r}: expected some of {', '.join(map(repr, VARIANTS))}")
    task = make_task(arguments.task, arguments.photographs, parser)
    keep_freed_memory()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            known = {tuple(row[name] for name in KEY) for row in read_rows(ROWS)}
            if (task.name, variant, seed) in known or (task.name, variant) in TOO_SLOW:
                continue
            row = measure(task, variant, seed)
            replace_rows([row], ROWS, KEY)
            arrays = {name: np.array(values, dtype=float) for name, values in row["values"].items()}  # None is NaN
            means = {name: rounded(float(np.nanmean(values))) for name, values in arrays.items()}
            print(task.name, variant, seed, row["accuracy"], means, flush=True)


if __name__ == "__main__":
    main()
