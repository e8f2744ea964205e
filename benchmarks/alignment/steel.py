"""Measure what aligned heat maps gain on photographs of steel, with real ImageNet weights.

python -m benchmarks.alignment.steel --photographs FOLDER    # five minutes of two cores; rows go to benchmarks/results/

The folder is that of NEU-DET with its manifest.csv. A linear classifier is fitted to the pooled, frozen features of
EfficientNet-Lite0 at two strides. The maps are SoftCAM's evidence for the true class, and Layer-CAM of the same
features. The places are measured on training images. The scores are means over the test images of the four classes
whose boxes do not fill the image: the share of images whose hottest pixel lies in a box (pointing game), and the share
of the heat inside the boxes (mass), beside the share of the image that the boxes cover. The gain of alignment is the
mean difference on the same images. All have 95 % intervals over the images.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import softcam_hub
from softcam_hub.evaluation.statistics import bootstrap_means
from softcam_hub.explanation_scores.localization import activation_precision, box_masks
from softcam_hub.models.alignment import Grid
from softcam_hub.models.flip_registration import measure_alignment
from softcam_hub.models.images import read_user_image

from ..timing import Row
from .photographs import choose_files, load_network, measure_strides

ROWS = Path(__file__).parents[1] / "results" / "alignment_steel.jsonl"
SMALL = ("scratches", "inclusion", "rolled-in_scale", "patches")
"""Classes whose boxes cover less than half of the image."""

SIDE = 224


@torch.no_grad()
def extract(model: Any, rows: list[Row]) -> Tensor:
    """Compute the features (N, K, H, W) of images."""
    transform = timm.data.create_transform(
        input_size=(3, SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bicubic"
    )
    parts = []
    for start in range(0, len(rows), 32):
        images = [transform(read_user_image(row["file"]).image) for row in rows[start : start + 32]]
        parts.append(model.forward_features(torch.stack(images)))
    return torch.cat(parts)


def fit_classifier(features: Tensor, labels: Tensor, classes: int) -> nn.Linear:
    """Fit a linear classifier to pooled features with a little weight decay, to the end (L-BFGS)."""
    torch.manual_seed(0)
    linear = nn.Linear(features.shape[1], classes)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(linear(features), labels) + 1e-3 * linear.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return linear


def measure(stride: int, photographs: list[Row]) -> Iterator[Row]:
    """Yield a row for every method, aligned and not."""
    splits: dict[str, list[Row]] = {}
    for row in photographs:
        splits.setdefault(row["split"], []).append(row)
    model: Any = softcam_hub.convert(load_network(stride))
    names = sorted({row["label"] for row in splits["train"]})
    labels = {split: torch.tensor([names.index(row["label"]) for row in rows]) for split, rows in splits.items()}
    pooled = torch.cat(
        [extract(model, splits["train"][i : i + 256]).mean(dim=(2, 3)) for i in range(0, len(splits["train"]), 256)]
    )
    linear = fit_classifier(pooled, labels["train"], len(names))
    model.reset_classifier(len(names))
    model.head.load_state_dict(linear.state_dict())
    measurement = measure_alignment(model, choose_files(splits["train"]))

    # maps of the true class of every test image with small boxes
    kept = [index for index, row in enumerate(splits["test"]) if row["label"] in SMALL]
    features = extract(model, splits["test"])
    accuracy = float((linear(features.mean(dim=(2, 3))).argmax(dim=1) == labels["test"]).float().mean())
    features, classes = features[kept], labels["test"][kept]
    weight = linear.weight.detach()[classes]
    maps = {
        "softcam": torch.einsum("bk,bkhw->bhw", weight, features) + linear.bias.detach()[classes][:, None, None],
        "layer-cam": torch.einsum("bk,bkhw->bhw", weight.relu(), features),
    }
    masks = torch.cat([_mask(splits["test"][index]) for index in kept])
    settings = {
        "offset": list(measurement.offset),
        "accepted": list(measurement.accepted),
        "images": len(kept),
        "accuracy": round(100 * accuracy, 1),
        "area": round(100 * float(masks.float().mean()), 1),
    }
    for method, values in maps.items():
        scores = {}
        for aligned in (False, True):
            grid = Grid((SIDE, SIDE), (values.shape[1], values.shape[2]), measurement.alignment if aligned else None)
            heat = grid.upsample(values.relu()[:, None], (SIDE, SIDE))[:, 0]
            hits = masks.flatten(1).gather(1, heat.flatten(1).argmax(dim=1, keepdim=True))[:, 0]
            scores[aligned] = {"pointing_game": hits, "mass": activation_precision(heat, masks)}
        for aligned, of in scores.items():
            row = {"stride": stride, "method": method, "aligned": aligned, **settings}
            for name, values_of_images in of.items():
                row |= _with_interval(name, values_of_images)
                if aligned:
                    row |= _with_interval(f"{name}_gain", values_of_images.double() - scores[False][name].double())
            yield row


def _with_interval(name: str, values: Tensor) -> Row:
    """Return the mean of the values of all images in percent, and its 95 % interval by a bootstrap over the images."""
    found = bootstrap_means([100 * values.double().numpy()[None]])
    low, high = found.interval()
    return {
        name: round(float(found.estimate[0]), 1),
        f"{name}_interval": [round(float(low[0]), 1), round(float(high[0]), 1)],
    }


def _mask(row: Row) -> Tensor:
    """Return the boxes of an image as a mask (1, H, W) of the size that the model sees."""
    boxes = torch.tensor(json.loads(row["boxes"]), dtype=torch.float64).view(1, -1, 4)
    side = read_user_image(row["file"]).image.width
    scaled = (boxes * SIDE / side).round().clamp(0, SIDE)
    return box_masks(scaled, (SIDE, SIDE))


if __name__ == "__main__":
    measure_strides(__doc__, measure, ROWS)
