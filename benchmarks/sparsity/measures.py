"""Measure predictions and maps: accuracy, exact zeros, sparseness, place and cancellation.

Zeros, sparseness and cancellation are those of the map of the predicted class, which a user sees. Localisation
concerns the map of the true label, as in the package's benchmarks, with cells drawn where they look.
"""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Row, rounded
from softcam_hub.data.samples import ImageDataset
from softcam_hub.explainers.create import create_explainer
from softcam_hub.explainers.methods import CLASS_ACTIVATION
from softcam_hub.explanation_scores.faithfulness import gini_sparseness
from softcam_hub.explanation_scores.localization import activation_precision, localization_precision
from softcam_hub.explanation_scores.maps import min_max
from softcam_hub.models.alignment import Grid

from .features import Features
from .heads import BATCH, Heads

POST_HOC = tuple(name for name in CLASS_ACTIVATION if name != "score-cam")
"""Post-hoc CAMs that need features only. Score-CAM needs a forward pass of the backbone for every channel."""


def measure(logits: Tensor, maps: Tensor, features: Features) -> Row:
    """Return all measures of a head.

    Args:
        logits: Logits, (N, C).
        maps: Maps, (N, C, H, W).
        features: Labels, masks and located images.
    """
    labels, rows = features.labels, torch.arange(len(maps))
    predicted = logits.argmax(dim=1)
    right = (predicted == labels).float()
    recalls = [right[labels == label].mean() for label in labels.unique()]
    shown = maps[rows, predicted]
    positive = shown.relu()
    numbers = {
        "accuracy": right.mean(),
        "balanced_accuracy": torch.stack(recalls).mean(),
        "zeros": (shown == 0).float().mean(),
        "zeros_all_classes": (maps == 0).float().mean(),
        "positive": (shown > 0).float().mean(),
        "empty": (shown == 0).flatten(1).all(dim=1).float().mean(),
        "gini": gini_sparseness(shown).mean(),
        "gini_positive": gini_sparseness(positive).mean(),
        "cancellation": _cancellation(shown),
        **locate(maps[rows, labels], features),
    }
    return rounded_row(numbers)


def _cancellation(maps: Tensor) -> Tensor:
    """Return mean|M| / |mean M|, of sums over images: 1 where nothing cancels."""
    return maps.abs().mean() / maps.mean(dim=(1, 2)).abs().mean().clamp_min(1e-12)


def locate(maps: Tensor, features: Features) -> dict[str, Tensor]:
    """Return top-k localisation precision and the share of the map inside masks, means over located images.

    The precision is the mean over k = 1 to 30, and beside it that of k = 1 and k = 10: where a map has fewer patches
    with evidence than k, the rest of the k are patches of zeros in reading order.

    Args:
        maps: Maps of the true labels, (N, H, W).
        features: Masks and located images.
    """
    masks = features.masks[features.located]
    large = heat(maps, features)
    curve = localization_precision(large, masks).mean(dim=0)
    precision = {"precision": curve.mean(), "precision_1": curve[0], "precision_10": curve[9]}
    return {**precision, "mass": activation_precision(large, masks).mean()}


def heat(maps: Tensor, features: Features) -> Tensor:
    """Return heat maps of the located images, given maps (N, H, W): positive part, upsampled, scaled to [0, 1]."""
    size = features.masks.shape[1], features.masks.shape[2]
    grid = Grid(size, (maps.shape[1], maps.shape[2]), features.alignment)
    return min_max(grid.upsample(maps[features.located].float().relu(), size))


def hits(logits: Tensor, features: Features) -> str:
    """Return a 1 for every image that is classified right, and a 0 for every other."""
    return "".join(str(int(hit)) for hit in logits.argmax(dim=1) == features.labels)


def precisions(maps: Tensor, features: Features) -> list[float]:
    """Return the top-k localisation precision of each located image, given the maps (N, H, W) of the true labels."""
    masks = features.masks[features.located]
    curves = localization_precision(heat(maps, features), masks)
    return [round(float(value), 4) for value in curves.mean(dim=1)]


class VanillaClassifier(nn.Module):
    """A vanilla classifier, as explainers take it.

    Args:
        heads: Heads, of which the one at `index` is the classifier.
        index: Number of the head.
        model: Model whose `forward_features` reads images. Without it the images are features.
    """

    def __init__(self, heads: Heads, index: int = 0, model: Any = None) -> None:
        super().__init__()
        self.model = model
        weight, bias = heads.weights[index], heads.biases[index]
        self.classifier = nn.Linear(*weight.shape[::-1])
        self.classifier.load_state_dict({"weight": weight, "bias": bias})

    def forward_features(self, images: Tensor) -> Tensor:
        """Return features, (B, K, H, W)."""
        return images if self.model is None else self.model.forward_features(images)

    def forward_head(self, features: Tensor) -> Tensor:
        """Pool the features and classify them."""
        return self.classifier(features.mean(dim=(2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C)."""
        return self.forward_head(self.forward_features(images))


def post_hoc(heads: Heads, index: int, features: Features) -> dict[str, Tensor]:
    """Return the maps (N, H, W) of every post-hoc CAM of the vanilla classifier with the weights of a head."""
    explain = create_explainer(list(POST_HOC), VanillaClassifier(heads, index))
    maps: dict[str, list[Tensor]] = {name: [] for name in POST_HOC}
    for values, labels in zip(features.values.split(BATCH), features.labels.split(BATCH), strict=True):
        grid = values.float().mT.unflatten(2, (features.side, -1))
        for name, found in explain(grid, labels).items():
            maps[name].append(found[:, 0])
    return {name: torch.cat(found) for name, found in maps.items()}


def score_cam(vanilla: VanillaClassifier, images: ImageDataset, features: Features, count: int) -> Tensor:
    """Return Score-CAM's maps (count, H, W) of the first located images.

    Args:
        vanilla: Vanilla classifier of images.
        images: All images.
        features: Labels and located images.
        count: Number of images.
    """
    explain = create_explainer("score-cam", vanilla)
    chosen = features.located.nonzero().flatten()[:count].tolist()
    maps = [explain(images[index]["pixel_values"][None], features.labels[index : index + 1])[0] for index in chosen]
    return torch.cat(maps)


def first_located(features: Features, count: int) -> Features:
    """Return the features of the first located images."""
    chosen = features.located.nonzero().flatten()[:count]
    parts = (features.values, features.labels, features.masks, features.located)
    values, labels, masks, located = (part[chosen] for part in parts)
    return Features(values, labels, features.side, masks, located, features.alignment)


def rounded_row(numbers: dict[str, Tensor]) -> Row:
    """Return numbers with four digits, as columns of a row."""
    return {name: rounded(float(value)) for name, value in numbers.items()}
