"""Measure what evidence of three depths costs beside the vanilla classifier, and what a dilated backbone costs.

python -m benchmarks.speed.scales            # a quarter of an hour; rows: results/scales.jsonl
python -m benchmarks.speed.scales --quick    # a smoke test: a small network, nothing written

- *Explained* is `explain` of SoftCAM for the most probable class beside a forward pass of the vanilla classifier.
- *Training* is a step of all weights by SGD beside that of the vanilla classifier.
- *One scale* has the maps of the last features. It tells what of the cost is that of explaining, and how much noise the
  measurement of training has.
- Weights and images are random, as the time does not depend on them.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import softcam_hub
from softcam_hub.arguments import ArgumentParser

from ..timing import Row, Step, add_threads, environment, measure, prepare, print_rows, replace_rows
from .training_steps import training_step

ROWS = Path(__file__).parents[1] / "results" / "scales.jsonl"
MODELS = ("resnet50", "convnext_tiny", "efficientnet_b0", "swinv2_tiny_window8_256")
BATCH = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "one scale": {},
    "three scales": {"scales": 3},
    "output_stride=8": {"output_stride": 8},
}
"""Name -> arguments of the model."""

PAIRS = {"one scale": 7, "three scales": 7, "output_stride=8": 3}


def explained_step(model: nn.Module, images: Tensor) -> Step:
    """Return a step that explains images, or classifies them with a vanilla model."""
    model.eval()

    @torch.no_grad()
    def step() -> None:
        model.explain(images) if hasattr(model, "explain") else model(images)

    return step


def rows_of(architecture: str, batch: int, pairs: dict[str, int]) -> Iterator[Row]:
    """Measure the variants of a model beside the vanilla classifier."""
    vanilla = timm.create_model(architecture)
    images = torch.randn(batch, *vanilla.pretrained_cfg["input_size"])
    labels = torch.arange(batch) % vanilla.num_classes
    for name, arguments in VARIANTS.items():
        if "output_stride" in arguments and vanilla.pretrained_cfg.get("fixed_input_size"):
            continue  # hierarchical transformers have none
        model = softcam_hub.build(f"softcam_{architecture}", **arguments)
        steps = {
            "explained": (explained_step(model, images), explained_step(vanilla, images)),
            "training": (training_step(model, images, labels), training_step(vanilla, images, labels)),
        }
        for step, (ours, theirs) in steps.items():
            for one in (model, vanilla):
                one.train(step == "training")
            yield {
                "model": architecture,
                "variant": name,
                "step": step,
                "image_size": images.shape[-1],
                "batch": batch,
                **environment(),
                **measure(ours, theirs, pairs[name], warm_up=1),
            }


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure two pairs of a small network, and write nothing")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="timm architectures; four by default")
    add_threads(parser)
    arguments = parser.parse_args()
    prepare(arguments.threads)
    if arguments.quick:
        print_rows(rows_of("test_resnet", 2, dict.fromkeys(PAIRS, 2)))
    else:
        for name in arguments.models:
            replace_rows(print_rows(rows_of(name, BATCH, PAIRS)), ROWS, ("model", "variant", "step"))


if __name__ == "__main__":
    main()
