"""Measure what aligned heat maps cost, and what measuring an alignment costs once.

python -m benchmarks.speed.alignment            # two minutes of one core; rows go to results/alignment_speed.jsonl
python -m benchmarks.speed.alignment --quick    # a smoke test: two pairs of the small model, nothing written

- Both sides explain with the same weights. One side knows where its cells lie.
- The measurement is compared with one forward of the same images, three of which it needs.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
from torch import Tensor

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.lesions import draw
from softcam_hub.models.alignment import Alignment
from softcam_hub.models.backbone import TimmModule
from softcam_hub.models.flip_registration import IMAGES

from ..timing import Row, add_threads, environment, measure, prepare, print_rows, write_rows

ROWS = Path(__file__).parents[1] / "results" / "alignment_speed.jsonl"
PAIRS = {"softcam_resnet50": 10, "cape_lesions": 40}
EXPLAINED, MEASURED = "explain and draw", "measure"


def make_resnet50() -> tuple[TimmModule, Tensor]:
    """Return a ResNet-50 with random weights and the places that its geometry gives, and images of noise."""
    places = Alignment((0.5, 0.5), (32.0, 32.0), (224, 224))
    model = timm.create_model("softcam_resnet50", alignment=places.as_dict()).eval()
    return model, torch.randn(IMAGES, 3, 224, 224)


def make_lesions() -> tuple[TimmModule, Tensor]:
    """Return the model that comes with the package, and its images."""
    model = timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True).eval()
    return model, model.as_batch([draw(index, "validation", 128).image for index in range(IMAGES)])


MODELS: dict[str, Callable[[], tuple[TimmModule, Tensor]]] = {
    "softcam_resnet50": make_resnet50,
    "cape_lesions": make_lesions,
}


def model_rows(name: str, pairs: int) -> Iterator[Row]:
    """Compare aligned with unaligned heat maps at batch 1 and 8, and the measurement with a forward."""
    model, images = MODELS[name]()
    plain = copy.deepcopy(model)
    plain.alignment = None
    common = {"model": name, "image_size": images.shape[-1], **environment()}

    for batch in (1, 8):
        part = images[:batch]
        costs = measure(lambda part=part: draw_maps(model, part), lambda part=part: draw_maps(plain, part), pairs)
        sides = {"a": "explain and heat maps, aligned", "b": "explain and heat maps, alignment unknown"}
        yield {"comparison": EXPLAINED, **sides, **common, "batch": batch, **costs}

    with torch.inference_mode():
        costs = measure(lambda: softcam_hub.measure_alignment(plain, images), lambda: plain(images), min(pairs, 3), 0)
    sides = {"a": "measure_alignment", "b": "one forward of the same images"}
    yield {"comparison": MEASURED, **sides, **common, "batch": IMAGES, **costs}


def draw_maps(model: TimmModule, images: Tensor) -> Tensor:
    """Explain the most probable class of images, and draw the maps at the size of the images."""
    return model.explain(images).heatmaps(images.shape[-1])


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure two pairs of the small model, and write nothing")
    add_threads(parser)
    args = parser.parse_args()
    prepare(args.threads)
    models = {"cape_lesions": 2} if args.quick else PAIRS
    measured = print_rows(row for name, pairs in models.items() for row in model_rows(name, pairs))
    if not args.quick:
        write_rows(measured, ROWS)


if __name__ == "__main__":
    main()
