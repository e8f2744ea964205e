"""How good the predictions of a whole data set are. Pure functions on all its predictions at once.

- A class that no image has is left out of the means over classes.
- With one label per image, AUC is one class against the rest, averaged over classes.
"""

import torch
from torch import Tensor


def classification_scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """All scores of predictions (N, C) for labels (N,), or for multi-hot labels (N, C)."""
    if labels.ndim == 2:
        hits = (probabilities > 0.5) == labels.bool()
        return {"accuracy": float(hits.float().mean()), "auc": auc(probabilities, labels)}
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
    """(C, C) counts, rows by label."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def balanced_accuracy(confusion: Tensor) -> float:
    """Mean over classes of the share of their images that is found."""
    counts = confusion.sum(dim=1)
    return float((confusion.diag() / counts.clamp_min(1))[counts > 0].double().mean())


def quadratic_kappa(confusion: Tensor) -> float:
    """Cohen's kappa with weights (i - j)², for classes that are ordered; 0 where chance alone explains everything."""
    counts = confusion.double()
    index = torch.arange(len(counts), dtype=torch.float64)
    weights = (index[:, None] - index) ** 2
    by_chance = counts.sum(dim=1)[:, None] * counts.sum(dim=0) / counts.sum()
    expected = (weights * by_chance).sum()
    return float(1 - (weights * counts).sum() / expected) if expected > 0 else 0.0


def auc(scores: Tensor, present: Tensor) -> float:
    """Area under the ROC curve, mean over classes that some images have and others do not; NaN if there is none.

    It is the share of (present, absent) pairs that the scores put in order; ties count half.

    Args:
        scores: (N, C).
        present: (N, C), 0 or 1.
    """
    values = [_auc(scores[:, c].double(), present[:, c].bool()) for c in range(scores.shape[1])]
    valid = [value for value in values if value is not None]
    return sum(valid) / len(valid) if valid else float("nan")


def _auc(scores: Tensor, present: Tensor) -> float | None:
    positives, negatives = int(present.sum()), int((~present).sum())
    if not positives or not negatives:
        return None
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(dim=0) - (counts - 1) / 2)[inverse]  # mean rank of equal scores
    return float((ranks[present].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: |confidence - accuracy| over bins of equal width, weighted by their images."""
    confidence, predicted = probabilities.double().max(dim=1)
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64)
    gaps.scatter_add_(0, index, confidence - (predicted == labels).double())
    return float(gaps.abs().sum() / len(labels))
