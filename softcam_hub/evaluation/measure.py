"""Measure the maps of every explainer on one batch, with one value per image.

- Methods whose heat maps agree to 1e-6 everywhere (CAM and Grad-CAM on a pooled linear head, Grad-CAM++ and
  its smooth version there) see the same masked images, so that one forward pass over these images serves all
  of them.
- The pass over E⊙x gives both the confidence that is kept and the features of coherency's second map.
- AD, IC, ADD, ADCC, mIoU, sensitivity and the perturbation measures concern the class that the explained
  model predicts. Localisation is in a module of its own.
- Maps are heat maps: positive part, upsampled to the image, min-max scaled. Cells are drawn where they look, see
  `ClassifierWithExplainers.grid`.
- Single deletion, IDSDS and the measures of evidence alone take signed maps. Single deletion and IDSDS compare them
  with the drop of the logit. These drops are computed once per image, for all explainers.
- IDSDS concerns the true label, as published.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..explanation_scores.faithfulness import coherency, completeness_error, complexity, gini_sparseness, top_two_iou
from ..explanation_scores.idsds import cell_drops, cell_means
from ..explanation_scores.maps import patch_means, patch_side
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
from .batch import Batch, for_some
from .config import EVIDENCE, IDSDS, LOCALISATION, OF_REGIONS, SENSITIVITY, SINGLE_DELETION, TABLE, BenchmarkConfig
from .localisation import REGIONS, measure_evidence, measure_localisation

Values = dict[str, dict[str, Tensor]]
"""Explainer -> measure -> values (B,) or (B, n), which are NaN where an image has none."""

TOLERANCE = 1e-6
"""Largest difference between heat maps that count as the same."""

PERTURBATIONS: dict[str, Callable[..., Tensor]] = {
    "insertion": insertion_auc,
    "deletion": deletion_auc,
    "road": road,
}


def measure(batch: Batch, measures: Sequence[str], config: BenchmarkConfig) -> Values:
    """Compute the values of the measures, by explainer."""
    values: Values = {name: {"confidence": batch.confidence} for name in batch.classifier.names}
    for group in group_equal({name: heats[:, 0] for name, heats in batch.heats.items()}):
        shared = _measure_heat(batch, batch.heats[group[0]][:, 0], measures, config)
        if TABLE in measures:
            shared["kept"], coherencies = _measure_kept(batch, group)
            for name in group:
                values[name]["coherency"] = coherencies[name]
        for name in group:
            values[name] |= shared | _measure_maps(batch, name, measures, config)
    for measured, function in {SINGLE_DELETION: _single_deletions, IDSDS: _idsds}.items():
        if measured in measures:
            for name, column in function(batch, config).items():
                values[name][measured] = column
    return values


def group_equal(heats: dict[str, Tensor]) -> list[list[str]]:
    """Group the names of equal maps."""
    groups: list[list[str]] = []
    for name, maps in heats.items():
        for group in groups:
            if torch.allclose(maps, heats[group[0]], rtol=0, atol=TOLERANCE):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _measure_kept(batch: Batch, group: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Run the images times their heat map through the network.

    Args:
        batch: Images.
        group: Methods that share this heat map.

    Returns:
        The confidence that is kept, (B,), and the coherency (B,) of every method.
    """
    classifier, first = batch.classifier, batch.heats[group[0]][:, 0]
    kept = classifier.explained.record(batch.images * first[:, None])
    coherencies = {}
    for name, maps in classifier.maps(group, kept, batch.predicted[:, None]).items():
        coherencies[name] = coherency(batch.heats[name][:, 0], batch.heat(name, maps[:, 0]))
    return batch.of_predicted(classifier.probabilities(kept.logits)), coherencies


def _measure_heat(batch: Batch, maps: Tensor, measures: Sequence[str], config: BenchmarkConfig) -> dict[str, Tensor]:
    """Compute measures that follow from heat maps (B, H, W) of the predicted class and from predictions alone."""
    predict, images = batch.classifier.predict, batch.images
    options: dict[str, Any] = {"classes": batch.predicted, "batch": config.batch_size}
    values = {}
    if TABLE in measures:
        values["removed"] = batch.of_predicted(predict(images * (1 - maps)[:, None]))
        values["complexity"] = complexity(maps)
    if SENSITIVITY in measures:
        some = batch.annotated
        options_of_some = options | {"classes": batch.predicted[some], "patch": config.patch}
        values["topk_sensitivity"] = for_some(
            some, topk_sensitivity, predict, images[some], maps[some], **options_of_some
        )
    for name, function in PERTURBATIONS.items():
        if name in measures:
            seed = {"seed": config.seed} if name == "road" else {}
            values[name] = function(predict, images, maps, **options, **seed)
    return values


def _measure_maps(batch: Batch, name: str, measures: Sequence[str], config: BenchmarkConfig) -> dict[str, Tensor]:
    """Compute measures that need the maps of this explainer."""
    values = {}
    if TABLE in measures:
        if batch.top.shape[1] == 2:  # a model of one class has no second class to tell apart
            values["iou"] = top_two_iou(batch.heats[name][:, 0], batch.heats[name][:, 1])
        if describe_kind(name).composition is not None:
            values["completeness_error"] = _completeness(batch, name)
    if LOCALISATION in measures:
        values |= measure_localisation(batch, name, config.patch)
    if EVIDENCE in measures and describe_kind(name).signed:
        values |= measure_evidence(batch, name, config.patch)
    for measured in OF_REGIONS:
        if measured in measures:
            values |= REGIONS[measured](batch, name)
    if "gini" in measures:
        values["gini"] = gini_sparseness(batch.maps[name][:, 0].relu())
    if "max_sensitivity" in measures:
        options = {"seed": config.seed, "batch": config.batch_size}
        explain = _heat_explainer(batch, name)
        values["max_sensitivity"] = max_sensitivity(explain, batch.images, batch.predicted, **options)
    return values


def _single_deletions(batch: Batch, config: BenchmarkConfig) -> dict[str, Tensor]:
    """Compute single deletion (B,) of every explainer: signed maps against the drops of the logit."""
    patch = patch_side(batch.images, config.patch)
    options = {"classes": batch.predicted, "batch": config.batch_size}
    drops = patch_drops(batch.classifier.explained.logits, batch.images, patch, **options)
    values = {}
    for name, maps in batch.maps.items():
        values[name] = spearman(patch_means(batch.enlarge(name, maps[:, 0]), patch).flatten(1), drops)
    return values


def _idsds(batch: Batch, config: BenchmarkConfig) -> dict[str, Tensor]:
    """Compute IDSDS (B,) of every explainer: signed maps of the true label against the drops of its logit."""
    options = {"classes": batch.true_classes, "batch": config.batch_size}
    drops = cell_drops(batch.classifier.explained.logits, batch.images, **options)
    values = {}
    for name, maps in batch.maps.items():
        values[name] = spearman(cell_means(batch.enlarge(name, batch.of_label(maps))), drops)
    return values


def _heat_explainer(batch: Batch, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function from images and one class per image to heat maps (B, H, W)."""

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        activations = batch.classifier.explained.record(images)
        maps = batch.classifier.maps([name], activations, classes[:, None])[name]
        return batch.heat(name, maps[:, 0])

    return explain


def _completeness(batch: Batch, name: str) -> Tensor:
    """Compute the difference between each prediction and the sum or mean of the map that it is made of."""
    kind = describe_kind(name)
    predicted = batch.of_predicted(kind.target(batch.logits, batch.probabilities))
    return completeness_error(kind.compose(batch.maps[name][:, 0]), predicted)
