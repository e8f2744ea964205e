"""Measure how well a model predicts a whole split, and how well its maps explain the predictions.

- The scores of a split are pure functions of all its predictions at once. A class that no image has is left
  out of the means over classes.
- `score_model` collects the predictions of all processes, in which every image counts once.
"""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor, nn

from ..explanation_scores.faithfulness import cancelled_share, completeness_error, gini_sparseness
from ..models.evaluation_mode import evaluation_mode
from ..models.heads import TERMS, select
from ..models.losses import cross_entropy
from ..models.map_kind import MapKind


@torch.no_grad()
def score_model(model: nn.Module, loader: Any, accelerator: Accelerator) -> dict[str, float]:
    """Return all scores of a model on the images of a loader.

    Args:
        model: Bare network, without the wrappers of Accelerate.
        loader: Loader prepared by the accelerator, with `pixel_values` or `features`, `labels` and `index`.
        accelerator: Accelerator of this process.
    """
    with evaluation_mode(model):
        batches = [
            accelerator.gather_for_metrics(_predict(model, batch, accelerator))
            for batch in tqdm(loader, desc="evaluation", leave=False)
        ]
    values = {name: torch.cat([batch[name].cpu() for batch in batches]) for name in batches[0]}
    labels, logits, probabilities = values.pop("labels"), values.pop("logits"), values.pop("probabilities")
    values.pop("accuracy")  # is one of the classification scores
    loss = float(cross_entropy(logits, labels, multi_label=labels.ndim == 2))
    means = {name: float(one.double().mean()) for name, one in values.items()}
    return {"loss": loss, **classification_scores(probabilities, labels), **means}


def _predict(model: nn.Module, batch: dict[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Return labels, logits, probabilities and statistics of the images of a batch."""
    inputs = {name: batch[name] for name in ("pixel_values", "features") if name in batch}
    reads_finer = model.family is not None and bool(model.anatomy.finer)
    with accelerator.autocast():
        if reads_finer and "features" not in inputs:
            inputs = {"features": model.forward_features(inputs["pixel_values"])}
        output = model(**inputs, output_maps=True)
    logits = output.logits.float()
    probabilities = model.probabilities(logits)
    values = {"labels": batch["labels"], "logits": logits, "probabilities": probabilities}
    values |= prediction_statistics(model, logits, output.teacher_logits, batch["labels"])
    if output.maps is not None:
        values |= map_statistics(model.head_class.map_kinds[0], output.maps, logits, probabilities)
    if reads_finer:
        with accelerator.autocast():
            _, terms = model.head(inputs["features"], kind=TERMS)
        top = probabilities.argmax(dim=1, keepdim=True)
        values |= shares_of_depths([select(term, top) for term in terms], model.anatomy.stride)
    return values


def shares_of_depths(terms: list[Tensor], stride: float) -> dict[str, Tensor]:
    """Return the share of the evidence (B,) that each depth of a network has: mean |term|, over the sum for all depths.

    Args:
        terms: Evidence (B, 1, H, W) of each depth, the coarsest first.
        stride: Pixels for a cell of the coarsest.
    """
    sizes = torch.stack([term.float().abs().mean(dim=(1, 2, 3)) for term in terms])
    shares = sizes / sizes.sum(dim=0).clamp_min(torch.finfo(sizes.dtype).tiny)
    return {f"evidence_share_at_stride_{stride / 2**depth:g}": share for depth, share in enumerate(shares)}


def score_names(model: nn.Module, multi_label: bool) -> list[str]:
    """Return the names of the scores that `score_model` gives for a model.

    Args:
        model: Self-explaining model, or a `VanillaForTraining`.
        multi_label: The data have several labels per image.
    """
    names = ["loss", "accuracy", "auc"]
    if not multi_label:
        names += ["balanced_accuracy", "kappa", "calibration_error", "confidence"]
    if getattr(model, "teacher", None) is not None:
        names += ["teacher_accuracy", "teacher_confidence", "disagreement"]
    if model.family is not None:
        names.append("sparseness")
        if model.head_class.map_kinds[0].composition is not None:
            names.append("completeness_error")
        if model.head_class.map_kinds[0].signed:
            names.append("cancelled_share")
    return names


def prediction_statistics(
    model: nn.Module, logits: Tensor, teacher_logits: Tensor | None, labels: Tensor
) -> dict[str, Tensor]:
    """Return accuracy and confidence of each image (B,), of model and teacher, and where they disagree."""
    statistics = _accuracy_and_confidence(model.probabilities(logits), labels)
    if teacher_logits is not None:
        teacher = teacher_logits.detach().float().softmax(dim=1)
        for name, values in _accuracy_and_confidence(teacher, labels).items():
            statistics[f"teacher_{name}"] = values
        statistics["disagreement"] = logits.argmax(dim=1) != teacher.argmax(dim=1)
    return statistics


def _accuracy_and_confidence(probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    if labels.ndim == 2:
        return {"accuracy": ((probabilities > 0.5) == labels.bool()).float().mean(dim=1)}
    confidence, predicted = probabilities.max(dim=1)
    return {"accuracy": predicted == labels, "confidence": confidence}


def map_statistics(kind: MapKind, maps: Tensor, logits: Tensor, probabilities: Tensor) -> dict[str, Tensor]:
    """Return sparseness, completeness error and cancelled share of each image (B,), of the map of its likeliest class.

    Maps that the prediction is not made of have no completeness error, and only signed maps have a share that cancels.

    Args:
        kind: Description of the maps.
        maps: Maps (B, C, H, W).
        logits: Logits (B, C).
        probabilities: Probabilities (B, C).
    """
    top = probabilities.argmax(dim=1, keepdim=True)
    top_maps = maps.gather(1, top[:, :, None, None].expand(-1, 1, *maps.shape[2:]))[:, 0].float()  # (B, H, W)
    statistics = {"sparseness": gini_sparseness(top_maps)}
    if kind.composition is not None:
        predicted = kind.target(logits.float(), probabilities).gather(1, top)[:, 0]
        statistics["completeness_error"] = completeness_error(kind.compose(top_maps), predicted)
    if kind.signed:
        statistics["cancelled_share"] = cancelled_share(top_maps)
    return statistics


def classification_scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return all scores of predictions (N, C) for labels (N,), or for multi-hot labels (N, C)."""
    if labels.ndim == 2:
        correct = (probabilities > 0.5) == labels.bool()
        return {"accuracy": float(correct.float().mean()), "auc": auc(probabilities, labels)}
    predicted = probabilities.argmax(dim=1)
    confusion = confusion_matrix(predicted, labels, probabilities.shape[1])
    return {
        "accuracy": float((predicted == labels).float().mean()),
        "balanced_accuracy": balanced_accuracy(confusion),
        "auc": auc(probabilities, torch.nn.functional.one_hot(labels, probabilities.shape[1])),
        "kappa": quadratic_kappa(confusion),
        "calibration_error": calibration_error(probabilities, labels),
    }


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count images (C, C) by label, in rows, and by predicted class, in columns."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def balanced_accuracy(confusion: Tensor) -> float:
    """Compute the mean recall of the classes."""
    counts = confusion.sum(dim=1)
    return float((confusion.diag() / counts.clamp_min(1))[counts > 0].double().mean())


def quadratic_kappa(confusion: Tensor) -> float:
    """Compute Cohen's kappa with weights (i - j)², for ordered classes.

    It is 0 where chance alone explains every prediction.
    """
    counts = confusion.double()
    index = torch.arange(len(counts), dtype=torch.float64)
    weights = (index[:, None] - index) ** 2
    by_chance = counts.sum(dim=1)[:, None] * counts.sum(dim=0) / counts.sum()
    expected = (weights * by_chance).sum()
    return float(1 - (weights * counts).sum() / expected) if expected > 0 else 0.0


def auc(scores: Tensor, present: Tensor) -> float:
    """Compute the area under the ROC curve of one class against the rest, averaged over classes.

    The area is the share of (present, absent) pairs of images that the scores put in the right order; ties
    count half. Classes that all images have, or none, are left out. The result is NaN if no class is left.

    Args:
        scores: Scores (N, C).
        present: 1 (N, C) where an image has a class, and 0 where it has not.
    """
    values = [_auc_of_class(scores[:, c].double(), present[:, c].bool()) for c in range(scores.shape[1])]
    valid = [value for value in values if value is not None]
    return sum(valid) / len(valid) if valid else float("nan")


def _auc_of_class(scores: Tensor, present: Tensor) -> float | None:
    positives, negatives = int(present.sum()), int((~present).sum())
    if not positives or not negatives:
        return None
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(dim=0) - (counts - 1) / 2)[inverse]  # equal scores share their mean rank
    return float((ranks[present].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Compute the expected calibration error.

    It is the mean of |confidence - accuracy| over bins of equal width, weighted by their numbers of images.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64)
    gaps.scatter_add_(0, index, confidence - (predicted == labels).double())
    return float(gaps.abs().sum() / len(labels))
