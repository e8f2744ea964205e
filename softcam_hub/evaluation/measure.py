"""The values of one batch: what every explainer's maps are worth, image by image.

- Methods whose heat maps agree (CAM and Grad-CAM on a pooled linear head, Grad-CAM++ and its smooth version there) see
  the same masked images, so that one pass over them serves all of them. "Agree" is: to 1e-6 everywhere.
- The pass over E⊙x gives both the confidence that is kept and the features of coherency's second map.
- AD, IC, ADD, ADCC, mIoU, sensitivity and the perturbation measures are of the class that the explained model
  predicts. Localisation is of the map of the *true* label (with several labels per image: of the predicted class), and
  of the images with an annotation.
- Maps are heat maps: positive part, upsampled to the image, min-max scaled. Single deletion alone ranks signed maps,
  against the drop of the logit; the drops belong to the image, and are asked for once for all explainers.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..explanation_scores.faithfulness import coherency, completeness_error, complexity, gini_sparseness, top_two_iou
from ..explanation_scores.localization import (
    activation_precision,
    activation_sensitivity,
    energy_pointing_game,
    grid_pointing_game,
    localization_precision,
    mosaics,
)
from ..explanation_scores.maps import heat, patch_means, patch_side
from ..explanation_scores.perturbation import (
    deletion_auc,
    insertion_auc,
    max_sensitivity,
    patch_drops,
    spearman,
    topk_sensitivity,
)
from ..explanation_scores.road import road
from ..models.heads import describe_kind
from .config import GRID, LOCALISATION, SENSITIVITY, SINGLE_DELETION, TABLE, BenchmarkConfig
from .models import Explained

Values = dict[str, dict[str, Tensor]]
"""explainer -> measure -> (B,) or (B, n); NaN where an image has no value."""

SAME = 1e-6

PERTURBATIONS: dict[str, Callable[..., Tensor]] = {
    "insertion": insertion_auc,
    "deletion": deletion_auc,
    "road": road,
}


class Batch:
    """Images of one explained model, with what is known and computed of them once for all explainers.

    Args:
        explained: the model and its explainers.
        images: (B, 3, H, W).
        labels: (B,) indices or (B, C) multi-hot.
        masks: (B, H, W) annotations, empty ones among them; None where the data has none.
    """

    def __init__(self, explained: Explained, images: Tensor, labels: Tensor, masks: Tensor | None) -> None:
        self.labels = labels
        self.explained, self.images, self.masks = explained, images, masks
        self.size = tuple(images.shape[-2:])
        activations = explained.explained_model.record(images)
        self.logits, self.probabilities = (
            activations.logits.detach().float(),
            explained.probabilities(activations.logits),
        )
        self.top = self.probabilities.topk(min(2, self.probabilities.shape[1]), dim=1).indices
        classes = self.top if labels.ndim == 2 else torch.cat([self.top, labels[:, None]], dim=1)
        self.maps = explained.maps(explained.names, activations, classes)
        self.heats = {name: heat(maps, self.size) for name, maps in self.maps.items()}  # (B, 2 or 3, H, W)
        self.predicted = self.top[:, 0]
        self.confidence = self.of_predicted(self.probabilities)
        everything = torch.ones(len(images), dtype=torch.bool, device=images.device)
        self.annotated = everything if masks is None else masks.flatten(1).any(dim=1)

    def of_predicted(self, answers: Tensor) -> Tensor:
        return answers.gather(1, self.predicted[:, None])[:, 0]

    def of_label(self, name: str) -> Tensor:
        """The heat map (B, H, W) of the true label, or of the predicted class where there are several labels."""
        heats = self.heats[name]
        return heats[:, -1] if heats.shape[1] > self.top.shape[1] else heats[:, 0]


def measure(batch: Batch, asked: Sequence[str], settings: BenchmarkConfig) -> Values:
    """The values of the measures asked for, by explainer."""
    found: Values = {name: {"confidence": batch.confidence} for name in batch.explained.names}
    for group in alike({name: heats[:, 0] for name, heats in batch.heats.items()}):
        shared = _of_heat(batch, batch.heats[group[0]][:, 0], asked, settings)
        if TABLE in asked:
            kept, coherencies = _kept(batch, group)
            shared["kept"] = kept
            for name in group:
                found[name]["coherency"] = coherencies[name]
        for name in group:
            found[name] |= shared | _of_maps(batch, name, asked, settings)
    if SINGLE_DELETION in asked:
        for name, values in _single_deletions(batch, settings).items():
            found[name][SINGLE_DELETION] = values
    return found


def alike(heats: dict[str, Tensor]) -> list[list[str]]:
    """Names, those with the same maps together."""
    groups: list[list[str]] = []
    for name, maps in heats.items():
        for group in groups:
            if torch.allclose(maps, heats[group[0]], rtol=0, atol=SAME):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _kept(batch: Batch, group: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """o (B,), and the coherency (B,) of every method whose map of the images is this one."""
    explained, first = batch.explained, batch.heats[group[0]][:, 0]
    kept = explained.explained_model.record(batch.images * first[:, None])
    second = explained.maps(group, kept, batch.predicted[:, None])
    coherencies = {
        name: coherency(batch.heats[name][:, 0], heat(maps[:, 0], batch.size)) for name, maps in second.items()
    }
    return batch.of_predicted(explained.probabilities(kept.logits)), coherencies


def _of_heat(batch: Batch, maps: Tensor, asked: Sequence[str], settings: BenchmarkConfig) -> dict[str, Tensor]:
    """What follows from the map of the predicted class (B, H, W) and the model's answers alone."""
    predict, images = batch.explained.predict, batch.images
    options: dict[str, Any] = {"classes": batch.predicted, "batch": settings.batch_size}
    found = {}
    if TABLE in asked:
        found["removed"] = batch.of_predicted(predict(images * (1 - maps)[:, None]))
        found["complexity"] = complexity(maps)
    if SENSITIVITY in asked:
        of = batch.annotated
        options_of = options | {"classes": batch.predicted[of], "patch": settings.patch}
        found["topk_sensitivity"] = _spread(of, topk_sensitivity, predict, images[of], maps[of], **options_of)
    for name, function in PERTURBATIONS.items():
        if name in asked:
            extra = {"seed": settings.seed} if name == "road" else {}
            found[name] = function(predict, images, maps, **options, **extra)
    return found


def _of_maps(batch: Batch, name: str, asked: Sequence[str], settings: BenchmarkConfig) -> dict[str, Tensor]:
    """What needs this explainer's own maps."""
    found = {}
    if TABLE in asked:
        if batch.top.shape[1] == 2:  # a model of one class has no second one to tell apart
            found["iou"] = top_two_iou(batch.heats[name][:, 0], batch.heats[name][:, 1])
        if describe_kind(name).composition is not None:
            found["completeness_error"] = _completeness(batch, name)
    if LOCALISATION in asked:
        found |= _localisation(batch, batch.of_label(name), settings.patch)
    if "gini" in asked:
        found["gini"] = gini_sparseness(batch.maps[name][:, 0].relu())
    if "max_sensitivity" in asked:
        options = {"seed": settings.seed, "batch": settings.batch_size}
        found["max_sensitivity"] = max_sensitivity(_explain(batch, name), batch.images, batch.predicted, **options)
    return found


def _single_deletions(batch: Batch, settings: BenchmarkConfig) -> dict[str, Tensor]:
    """IDSDS (B,) of every explainer: signed maps against the drops of the logit."""
    patch = patch_side(batch.images, settings.patch)
    options = {"classes": batch.predicted, "batch": settings.batch_size}
    drops = patch_drops(batch.explained.explained_model.logits, batch.images, patch, **options)
    found = {}
    for name, maps in batch.maps.items():
        signed = F.interpolate(maps[:, :1].float(), size=batch.size, mode="bilinear", align_corners=False)[:, 0]
        found[name] = spearman(patch_means(signed, patch).flatten(1), drops)
    return found


def _explain(batch: Batch, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Heat maps (B, H, W) of one class per image."""

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        activations = batch.explained.explained_model.record(images)
        maps = batch.explained.maps([name], activations, classes[:, None])[name]
        return heat(maps[:, 0], tuple(images.shape[-2:]))

    return explain


def _completeness(batch: Batch, name: str) -> Tensor:
    """Compute the difference between each prediction and the sum or mean of the map that it is made of."""
    kind = describe_kind(name)
    predicted = batch.of_predicted(kind.target(batch.logits, batch.probabilities))
    return completeness_error(kind.compose(batch.maps[name][:, 0]), predicted)


def _localisation(batch: Batch, maps: Tensor, patch: int | None) -> dict[str, Tensor]:
    of = batch.annotated
    masks = batch.masks[of]
    return {
        "localization_precision": _spread(of, localization_precision, maps[of], masks, patch=patch),
        "activation_precision": _spread(of, activation_precision, maps[of], masks),
        "activation_sensitivity": _spread(of, activation_sensitivity, maps[of], masks),
        "energy_pointing": _spread(of, lambda: energy_pointing_game(maps[of], around(masks))),
    }


def around(masks: Tensor) -> Tensor:
    """The smallest box around each annotation, (B, 4): left, top, right, bottom."""
    edges = []
    for axis in (1, 2):  # rows any: columns that are touched, and the other way round
        touched = masks.any(dim=axis).int()
        edges.append((touched.argmax(dim=1), touched.shape[1] - touched.flip(1).argmax(dim=1)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1)


def _spread(of: Tensor, function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """The values of some images, (B,) or (B, n), NaN for the others."""
    if not of.any():
        return torch.full((len(of),), torch.nan, device=of.device)
    values = function(*args, **options)
    found = values.new_full((len(of), *values.shape[1:]), torch.nan)
    found[of] = values
    return found


def grid_pointing(explained: Explained, images: Tensor, labels: Tensor) -> Values:
    """Grid pointing game on the mosaic of four images of different classes: how much of each class's map of the mosaic
    is in its cell, on average over the four, (1,) by explainer.

    A mosaic is as large as one image, so that a model of fixed size can look at it.

    Args:
        explained: the model and its explainers.
        images: (4, 3, H, W).
        labels: (4,).
    """
    pictures, classes = mosaics(images, labels)
    size = (images.shape[2] // 2 * 2, images.shape[3] // 2 * 2)
    small = F.interpolate(pictures, size=images.shape[-2:], mode="area")
    maps = explained.maps(explained.names, explained.explained_model.record(small), classes)
    return {name: {GRID: grid_pointing_game(heat(drawn, size)).mean(dim=1)} for name, drawn in maps.items()}


def quartets(labels: Sequence[int]) -> list[list[int]]:
    """Places of four images of four classes each, as many as there can be, also where classes come one after another.

    Each takes the next image of the four classes of which most are left.
    """
    waiting: dict[int, deque[int]] = {}
    for place, label in enumerate(labels):
        waiting.setdefault(label, deque()).append(place)
    found = []
    while len(largest := [places for places in heapq.nlargest(4, waiting.values(), key=len) if places]) == 4:
        found.append(sorted(places.popleft() for places in largest))
    return found
