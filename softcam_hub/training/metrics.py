"""How good the predictions of a whole data set are. Pure functions on all its predictions at once.

- A class that no image has is left out of the means over classes.
- With one label per image, AUC is one class against the rest, averaged over classes.
"""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor, nn

from ..explanation_scores.faithfulness import completeness_error, gini_sparseness
from ..models.evaluation_mode import evaluation_mode
from ..models.losses import cross_entropy


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


def prediction_statistics(
    model: nn.Module, logits: Tensor, teacher_logits: Tensor | None, labels: Tensor
) -> dict[str, Tensor]:
    """Per image (B,): whether it is right and how sure, for the model and its teacher, and whether they disagree."""
    found = _hits("", model.probabilities(logits), labels)
    if teacher_logits is not None:
        teacher = teacher_logits.detach().float().softmax(dim=1)
        found |= _hits("teacher_", teacher, labels)
        found["disagreement"] = logits.argmax(dim=1) != teacher.argmax(dim=1)
    return found


def _hits(prefix: str, probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    if labels.ndim == 2:
        return {f"{prefix}accuracy": ((probabilities > 0.5) == labels.bool()).float().mean(dim=1)}
    confidence, predicted = probabilities.max(dim=1)
    return {f"{prefix}accuracy": predicted == labels, f"{prefix}confidence": confidence}


def map_statistics(kind: str, maps: Tensor, logits: Tensor, probabilities: Tensor) -> dict[str, Tensor]:
    """Per image (B,), of the map of the most probable class: sparseness, and what it misses of the prediction.

    Args:
        kind: of the maps; `cape` adds up to probabilities, evidence averages to logits.
        maps: (B, C, H, W).
        logits: (B, C).
        probabilities: (B, C).
    """
    top = probabilities.argmax(dim=1, keepdim=True)
    shown = maps.gather(1, top[:, :, None, None].expand(-1, 1, *maps.shape[2:]))[:, 0].float()
    composed = shown.sum(dim=(1, 2)) if kind == "cape" else shown.mean(dim=(1, 2))
    predicted = (probabilities if kind == "cape" else logits.float()).gather(1, top)[:, 0]
    return {"sparseness": gini_sparseness(shown), "completeness_error": completeness_error(composed, predicted)}


def score_names(model: nn.Module, multi_label: bool) -> list[str]:
    """The names of what `score_model` gives for a model, with one or with several labels per image."""
    names = ["loss", "accuracy", "auc"]
    if not multi_label:
        names += ["balanced_accuracy", "kappa", "calibration_error", "confidence"]
    if getattr(model, "teacher", None) is not None:
        names += ["teacher_accuracy", "teacher_confidence", "disagreement"]
    return names if model.family is None else [*names, "sparseness", "completeness_error"]


@torch.no_grad()
def score_model(model: nn.Module, loader: Any, accelerator: Accelerator) -> dict[str, float]:
    """All scores of a model on the samples of a loader.

    Args:
        model: the bare network.
        loader: prepared by the accelerator; gives `pixel_values` or `features`, `labels` and `index`.
        accelerator: of this process.
    """
    parts = []
    with evaluation_mode(model):
        for batch in tqdm(loader, desc="evaluation", leave=False):
            parts.append(accelerator.gather_for_metrics(_predict(model, batch, accelerator)))
    columns = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
    labels, logits, probabilities = (columns.pop(name) for name in ("labels", "logits", "probabilities"))
    columns.pop("accuracy")  # is among the scores
    scores = {"loss": float(cross_entropy(logits, labels, multi_label=labels.ndim == 2))}
    scores |= classification_scores(probabilities, labels)
    return scores | {name: float(values.double().mean()) for name, values in columns.items()}


def _predict(model: nn.Module, batch: dict[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    inputs = {name: batch[name] for name in ("pixel_values", "features") if name in batch}
    with accelerator.autocast():
        output = model(**inputs, output_maps=True)
    logits = output.logits.float()
    row = {"labels": batch["labels"], "logits": logits, "probabilities": model.probabilities(logits)}
    row |= prediction_statistics(model, logits, output.teacher_logits, batch["labels"])
    if output.maps is not None:
        row |= map_statistics(model.family, output.maps, logits, row["probabilities"])
    return row
