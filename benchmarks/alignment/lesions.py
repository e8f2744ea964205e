"""Measure how much better maps point at lesions when their cells are drawn where the network looks.

python -m benchmarks.alignment.lesions    # writes results/alignment.jsonl: ten minutes of two cores

- The shipped model, and the vanilla classifier with its weights, explain the true class of 120 diseased test images. A
  row holds the means of one explainer, aligned or not, and the values of all images, from which intervals follow.
- Every class activation map is made of the same features, and moves with them. Maps of pixels, and those of
  `random` and `centre`, do not move, so that both of their rows have the same values.
"""

import argparse
from pathlib import Path

import timm
import torch
from torch import Tensor

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.config import DataConfig
from softcam_hub.data.splits import load_splits
from softcam_hub.evaluation.models import MODEL, VANILLA, ClassifierWithExplainers
from softcam_hub.evaluation.shards import make_dataset, stack_samples
from softcam_hub.explainers.methods import CLASS_ACTIVATION, PIXELS, UNINFORMED
from softcam_hub.explanation_scores.localization import activation_precision, pointing_game
from softcam_hub.loading import load_classifier
from softcam_hub.models.alignment import sides_of

from ..timing import Row, environment, write_rows

ROWS = Path(__file__).parents[1] / "results" / "alignment.jsonl"
SIDE, IMAGES, BATCH = 128, 160, 20
"""Side of the images, number of test images, of which three in four are diseased, and images at once."""

SCORES = {"pointing_game": pointing_game, "activation_precision": activation_precision}
"""Score -> function of heat maps and masks."""


def load() -> list[ClassifierWithExplainers]:
    """Load the shipped model with its own maps, and the vanilla classifier with the post-hoc ones."""
    model = timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True).eval()
    vanilla = softcam_hub.to_vanilla(model).eval()
    names = {MODEL: model.head_class.kinds, VANILLA: [*CLASS_ACTIVATION, *PIXELS, *UNINFORMED]}
    return [
        ClassifierWithExplainers(
            role, load_classifier(classifier), [name for name in names[role] if name != "evidence"], False
        )
        for role, classifier in ((MODEL, model), (VANILLA, vanilla))
    ]


def measure(classifier: ClassifierWithExplainers) -> list[Row]:
    """Measure all explainers of a classifier, aligned and not, with one row for each."""
    config = DataConfig(data="lesions", data_size=SIDE, train_count=4, eval_count=IMAGES)
    samples = make_dataset(classifier.classifier.preprocessing, load_splits(config).test, masks=True)
    diseased = [sample for sample in map(samples.__getitem__, range(IMAGES)) if sample["mask"].any()]
    classifier.drop_impossible(diseased[0]["pixel_values"][None], strict=False)
    columns: dict[tuple[str, bool, str], list[float]] = {}
    hits = []
    for first in range(0, len(diseased), BATCH):
        batch = stack_samples(diseased[first : first + BATCH], ("pixel_values", "labels", "mask"), classifier.device)
        images, labels, masks = batch
        activations = classifier.explained.record(images)
        hits += (activations.logits.argmax(dim=1) == labels).float().tolist()
        for name, maps in classifier.maps(classifier.names, activations, labels[:, None]).items():
            for key, values in score(classifier, name, maps[:, 0], masks).items():
                columns.setdefault((name, *key), []).extend(values)
        print(f"{classifier.role}: {first + len(images)} of {len(diseased)} images", flush=True)
    return [
        make_row(classifier, name, aligned, columns, hits) for name in classifier.names for aligned in (True, False)
    ]


def score(
    classifier: ClassifierWithExplainers, name: str, maps: Tensor, masks: Tensor
) -> dict[tuple[bool, str], list[float]]:
    """Score maps (B, h, w) of an explainer, drawn where the network looks and as squares that fill the image."""
    found = {}
    for aligned in (True, False):
        classifier.aligned = aligned
        heats = classifier.heat(name, maps, sides_of(masks))
        for key, function in SCORES.items():
            found[aligned, key] = [round(value, 4) for value in function(heats, masks).tolist()]
    return found


def make_row(
    classifier: ClassifierWithExplainers,
    name: str,
    aligned: bool,
    columns: dict[tuple[str, bool, str], list[float]],
    hits: list[float],
) -> Row:
    """Make the row of an explainer: means, what they follow from, and the values of all images."""
    classifier.aligned = aligned
    values = {key: columns[name, aligned, key] for key in SCORES}
    means = {key: round(sum(column) / len(column), 4) for key, column in values.items()}
    offset = classifier.map_offset(name)
    row = {"explainer": name, "explains": classifier.role, "aligned": aligned, "map_offset": offset, **means}
    row |= {"images": len(hits), "accuracy": round(sum(hits) / len(hits), 4), "model": "cape_lesions"}
    return {**row, **environment(), "values": values}


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROWS, help="file of the rows")
    output = parser.parse_args().output
    with torch.enable_grad():
        rows = [row for classifier in load() for row in measure(classifier)]
    write_rows(rows, output)


if __name__ == "__main__":
    main()
