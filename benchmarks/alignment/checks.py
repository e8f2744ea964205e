"""Check the measured places of cells by experiments that need no mirror images.

python -m benchmarks.alignment.checks                          # trains six networks: an hour and a half of one core
python -m benchmarks.alignment.checks --networks "EfficientNet"    # replaces the row of this network

- *best pointing*: every offset of a grid is applied to the maps of diseased test images. The mass inside the lesion
  is largest at the offset that is true, as far as the lesions tell. A parabola through the largest value and its
  neighbours gives the offset between the points of the grid.
- *moved blob*: a faint spot is added to an image of which nothing else changes. The centre of the change of the
  evidence is compared with the centre of the spot. The method fails where a network normalises over the whole image.

Two methods agree if they differ by 0.1 cell at most along the axes on which the measurement counts.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.imagenet_weights import imagenet_folder
from benchmarks.timing import read_rows, write_rows
from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.config import DataConfig
from softcam_hub.data.lesions import LesionImage, draw
from softcam_hub.data.splits import load_splits
from softcam_hub.evaluation.shards import make_dataset, stack_samples
from softcam_hub.loading import load_classifier
from softcam_hub.memory import keep_freed_memory
from softcam_hub.models.alignment import Alignment, Grid
from softcam_hub.models.flip_registration import measure_alignment
from softcam_hub.models.heads import select
from softcam_hub.models.self_explaining import SelfExplaining
from softcam_hub.training.parsing import parse
from softcam_hub.training.run import run

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results" / "alignment_checks.jsonl"
SIDE, IMAGES, MEASURED = 128, 240, 32
"""Side of the images where a network names no other, number of test images, and number of validation images that the
places are measured on."""

NETWORKS: dict[str, dict[str, Any]] = {
    "ResNet": {"model": "cape_test_resnet", "model_args": "avg_down=False output_stride=8"},
    "ResNet with avg_down": {"model": "cape_test_resnet", "model_args": "avg_down=True output_stride=8"},
    "EfficientNet": {"model": "cape_test_efficientnet", "model_args": "output_stride=8"},
    "EfficientNet at stride 16": {"model": "cape_test_efficientnet", "model_args": "output_stride=16"},
    "EfficientNet from ImageNet": {
        "model": "cape_tf_efficientnet_lite0",
        "model_args": "output_stride=8",
        "init": "tf_efficientnet_lite0",  # see benchmarks/imagenet_weights.py
        "lr": 5e-4,
        "epochs": 3,
        "channels_last": True,
    },
    "EfficientNet from ImageNet at stride 32": {
        "model": "softcam_tf_efficientnet_lite0",
        "model_args": "",
        "init": "tf_efficientnet_lite0",
        "image_size": 448,
        "data_size": 448,
        "train_count": 1000,
        "lr": 5e-4,
        "epochs": 2,
        "channels_last": True,
    },
}
"""Networks of different geometry; timm's average pooling in dilated stages moves every map by a cell."""

RECIPE = "lesions-demo"
TOLERANCE = 0.1
"""Largest difference in cells between two methods that agree."""


def folder_of(name: str, folder: Path) -> Path:
    return folder / name.replace(" ", "-").lower()


def trained(name: str, folder: Path) -> SelfExplaining:
    """Train a network, or load it if that was done before, and measure its places on validation images."""
    output = folder_of(name, folder)
    if not (output / "metrics.json").exists():
        settings = dict(NETWORKS[name])
        if "init" in settings:
            settings["init"] = imagenet_folder(settings["init"])
        options = [f"--{option}={value}" for option, value in settings.items()]
        run(parse(["--recipe", RECIPE, f"--output={output}", *options, *["--resume"] * output.exists()]))
    return load_classifier(output / "model").model


@torch.no_grad()
def best_pointing(model: SelfExplaining, side: int) -> dict[str, Any]:
    """Find the offset at which most of the heat of the true class lies inside the lesions of the test images.

    Args:
        model: Trained network.
        side: Side of its images in pixels.
    """
    config = DataConfig(data="lesions", data_size=side, train_count=4, eval_count=IMAGES)
    images = make_dataset(model.preprocessing, load_splits(config).test, masks=True)  # images and masks cut alike
    diseased = [sample for sample in map(images.__getitem__, range(IMAGES)) if sample["mask"].any()]
    batch = stack_samples(diseased, ("pixel_values", "labels", "mask"), torch.device("cpu"))
    pixels, classes, masks = batch[0], batch[1][:, None], batch[2]
    features = torch.cat([model.forward_features(part) for part in pixels.split(32)])
    maps = select(model.head(features, kind=model.head_class.kinds[0])[1], classes)[:, 0].relu()
    offsets = np.round(np.arange(-1.2, 1.21, 0.05), 2)
    shares = np.array([[_inside(maps, masks, (down, right))[0] for right in offsets] for down in offsets])
    row, column = np.unravel_index(shares.argmax(), shares.shape)
    best = [_vertex(offsets, shares[:, column], row), _vertex(offsets, shares[row], column)]
    places = {"habit": (0.0, 0.0), "best": (best[0], best[1])}
    figures = {
        f"{name} {what}": figure for name, place in places.items() for what, figure in _figures(maps, masks, place)
    }
    return {"best_offset": best, **figures}


def _figures(maps: Tensor, masks: Tensor, offset: tuple[float, float]) -> list[tuple[str, float]]:
    return list(zip(("mass inside", "pointing game"), _inside(maps, masks, offset), strict=True))


def _inside(maps: Tensor, masks: Tensor, offset: tuple[float, float]) -> tuple[float, float]:
    """Return the mean share of heat inside the lesions, and the share of images whose hottest pixel is inside."""
    side = masks.shape[1]
    steps = (side / maps.shape[1], side / maps.shape[2])
    start = ((0.5 + offset[0]) * steps[0], (0.5 + offset[1]) * steps[1])
    grid = Grid((side, side), (maps.shape[1], maps.shape[2]), Alignment(start, steps, (side, side)))
    heat = grid.upsample(maps, (side, side)).flatten(1)
    inside = masks.flatten(1)
    share = (heat * inside).sum(dim=1) / heat.sum(dim=1).clamp_min(1e-12)
    hits = inside.gather(1, heat.argmax(dim=1, keepdim=True)).float()
    return round(float(share.mean()), 4), round(float(hits.mean()), 4)


def _vertex(places: np.ndarray, values: np.ndarray, best: int) -> float:
    """Return where the parabola through the largest value and its neighbours has its top."""
    if best in (0, len(values) - 1):
        return float(places[best])
    left, top, right = values[best - 1 : best + 2]
    return round(float(places[best] + (left - right) / (left - 2 * top + right) / 2 * (places[1] - places[0])), 3)


@torch.no_grad()
def moved_blob(model: SelfExplaining, samples: list[LesionImage], side: int) -> dict[str, Any]:
    """Add faint spots to healthy images, and compare where they are with where the evidence changes.

    Args:
        model: Trained network.
        samples: Images, of which the healthy ones count.
        side: Side of the images in pixels.
    """
    scale = side / SIDE
    healthy = model.as_batch([sample.image for sample in samples if not sample.label][:8])
    before = _class_evidence(model, healthy)
    pixels = torch.arange(side) + 0.5
    cells = (torch.arange(before.shape[2], dtype=torch.float64) + 0.5) * side / before.shape[2]
    offsets = []
    places = [scale * place for place in range(40, 89, 6)]
    for down in places:
        for right in places:
            spot = torch.exp(-((pixels[:, None] - down) ** 2 + (pixels - right) ** 2) / (32 * scale**2))
            for sign in (-1, 1):
                change = (_class_evidence(model, healthy + sign * spot) - before).square().sum(dim=1).double()
                total = change.sum(dim=(1, 2))
                seen = (change.sum(dim=2) @ cells / total, change.sum(dim=1) @ cells / total)
                distance = torch.stack([down - seen[0], right - seen[1]], dim=1) / (side / before.shape[2])
                offsets.append(distance)
    return {"blob_offset": [round(value, 3) for value in torch.cat(offsets).median(dim=0).values.tolist()]}


def _class_evidence(model: SelfExplaining, images: Tensor) -> Tensor:
    evidence = model.head(model.forward_features(images), kind="evidence")[1]
    return evidence - evidence.mean(dim=1, keepdim=True)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS, help="networks to measure")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "alignment", help="folder of the networks")
    parser.add_argument("--output", type=Path, default=ROWS, help="file of the rows")
    arguments = parser.parse_args()
    keep_freed_memory()
    for name in arguments.networks:
        network = NETWORKS[name]
        side = network.get("image_size", SIDE)
        validation = [draw(index, "validation", side).image for index in range(MEASURED)]
        test = [draw(index, "test", side) for index in range(IMAGES)]
        model = trained(name, arguments.folder)
        measurement = measure_alignment(model, validation)
        row = {"network": name, **network, "offset": list(measurement.offset), "accepted": list(measurement.accepted)}
        row |= {"spread": list(measurement.spread), "correlation": list(measurement.correlation)}
        metrics = json.loads((folder_of(name, arguments.folder) / "metrics.json").read_text())
        row |= (
            {"accuracy": round(metrics["test_accuracy"], 3)}
            | best_pointing(model, side)
            | moved_blob(model, test, side)
        )
        for method in ("best", "blob"):
            triples = zip(row["offset"], row[f"{method}_offset"], row["accepted"], strict=True)
            near = [abs(first - second) <= TOLERANCE for first, second, counts in triples if counts]
            row[f"{method}_agrees"] = all(near) if near else None
        print(json.dumps(row))
        found = {other["network"]: other for other in read_rows(arguments.output)} | {name: row}
        write_rows([found[one] for one in NETWORKS if one in found], arguments.output)


if __name__ == "__main__":
    main()
