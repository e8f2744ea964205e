"""Predictions and maps of a whole split, every image once over all processes."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor, nn

from ..explanation_scores.faithfulness import completeness_error, gini_sparseness
from ..models.evaluation_mode import evaluation_mode
from ..models.losses import cross_entropy
from .metrics import classification_scores


def agreement(model: nn.Module, logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
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
    """The names of what `evaluate` gives for a model, with one or with several labels per image."""
    names = ["loss", "accuracy", "auc"]
    if not multi_label:
        names += ["balanced_accuracy", "kappa", "calibration_error", "confidence"]
    if getattr(model, "teacher", None) is not None:
        names += ["teacher_accuracy", "teacher_confidence", "disagreement"]
    return names if model.family is None else [*names, "sparseness", "completeness_error"]


@torch.no_grad()
def evaluate(model: nn.Module, loader: Any, accelerator: Accelerator) -> dict[str, float]:
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
    row |= agreement(model, logits, output.teacher_logits, batch["labels"])
    if output.maps is not None:
        row |= map_statistics(model.family, output.maps, logits, row["probabilities"])
    return row
