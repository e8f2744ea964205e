"""Measure a training step of both heads beside that of the vanilla classifier.

python -m benchmarks.speed.training_steps            # half an hour of two cores; rows: results/training_steps.jsonl
python -m benchmarks.speed.training_steps --only penalty teacher    # these alone, in place of their earlier rows
python -m benchmarks.speed.training_steps --quick    # a smoke test: a small network, nothing written

- A step is the forward pass, the cross-entropy, the backward pass and an update by SGD. All weights are trained.
- *Penalty* is SoftCAM with a penalty on its maps, which are computed for it. *Teacher* is CAPE from scratch: a vanilla
  classifier on the same backbone learns as well, and teaches it.
- Weights, images and labels are random, and the same on both sides, as the time does not depend on them.
- The control compares a copy of the vanilla model with the vanilla model. Its ratio shows how small a difference this
  machine can resolve.
"""

import argparse
import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.models.weights import OffTheShelfWarning

from ..timing import Row, Step, add_threads, environment, measure, prepare, print_rows, replace_rows

ROWS = Path(__file__).parents[1] / "results" / "training_steps.jsonl"
MODELS = ("resnet18", "tf_efficientnet_lite0")
BATCH, PAIRS = 32, 15


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    """Return a step that trains a model of transformers by its own loss, and others by cross-entropy."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        if isinstance(model, PreTrainedModel):
            loss = model(images, labels=labels).loss
        else:
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


MAKERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "control": copy.deepcopy,
    "softcam": lambda vanilla: softcam_hub.convert(vanilla, "softcam"),
    "cape": lambda vanilla: softcam_hub.convert(vanilla, "cape"),
    "penalty": lambda vanilla: softcam_hub.SoftCAMForImageClassification.from_timm(vanilla, l1=0.03),
    "teacher": lambda vanilla: softcam_hub.CAPEForImageClassification.from_timm(vanilla, mode="from-scratch"),
}
"""Comparison -> function from the vanilla model to the one beside it."""


def rows_of(architecture: str, batch: int, pairs: int, names: Iterable[str] = MAKERS) -> Iterator[Row]:
    """Measure a copy of the vanilla model and ours beside the vanilla model."""
    vanilla = timm.create_model(architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OffTheShelfWarning)
        others = {name: MAKERS[name](vanilla) for name in names}
    images = torch.randn(batch, *vanilla.pretrained_cfg["input_size"])
    labels = torch.arange(batch) % vanilla.num_classes
    theirs = training_step(vanilla, images, labels)
    for name, model in others.items():
        costs = measure(training_step(model, images, labels), theirs, pairs)
        yield {
            "comparison": name,
            "model": architecture,
            "image_size": images.shape[-1],
            "batch": batch,
            "classes": vanilla.num_classes,
            **environment(),
            **costs,
        }


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure two pairs of a small network, and write nothing")
    parser.add_argument("--only", nargs="+", choices=MAKERS, default=list(MAKERS), help="comparisons; all by default")
    add_threads(parser)
    arguments = parser.parse_args()
    prepare(arguments.threads)
    if arguments.quick:
        print_rows(rows_of("test_resnet", batch=4, pairs=2))
    else:
        measured = print_rows(row for name in MODELS for row in rows_of(name, BATCH, PAIRS, arguments.only))
        replace_rows(measured, ROWS, ("model", "comparison"))


if __name__ == "__main__":
    main()
