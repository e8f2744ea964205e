"""Measure the effect of CAPE's temperature T' on its confidence.

T' is measured as it was learnt, divided by the teacher's T, and fitted to validation images.

The temperature acts on the evidence alone, so that every image passes through the network once.
"""

import math

import torch
from torch import Tensor, nn

from softcam_hub.data.samples import Samples
from softcam_hub.data.splits import Splits
from softcam_hub.evaluation.shards import make_dataset, stack_samples
from softcam_hub.loading import LoadedClassifier
from softcam_hub.temperature import candidate_losses, set_temperature
from softcam_hub.training.metrics import calibration_error

from ..timing import Row

BATCH = 50
"""Number of images that are computed together."""


def calibrations(classifier: LoadedClassifier, splits: Splits, teacher_temperature: float | None) -> list[Row]:
    """Return a row for each choice of T', measured on the test split.

    Args:
        classifier: Model of the CAPE family.
        splits: Validation images to fit T' to, and test images to measure on.
        teacher_temperature: Temperature T of the teacher, or None where there was no teacher.
    """
    head = classifier.model.head
    known, test = evidence_of(classifier, splits.validation), evidence_of(classifier, splits.test)
    learnt = float(head.log_temperature.detach())
    choices = {"learnt": learnt, "fitted": math.log(fitted(head, *known))}
    if teacher_temperature is not None:
        choices["divided by T"] = learnt - math.log(teacher_temperature)
    return [
        {"temperature": name, "value": math.exp(value), **calibration(head, value, *test)}
        for name, value in choices.items()
    ]


@torch.no_grad()
def evidence_of(classifier: LoadedClassifier, samples: Samples) -> tuple[Tensor, Tensor]:
    """Compute the evidence (N, C, H, W) of a whole split, and return it with the labels (N,)."""
    model, images = classifier.model, make_dataset(classifier.preprocessing, samples)
    device = next(model.parameters()).device
    evidence, labels = [], []
    for first in range(0, len(images), BATCH):
        some = [images[index] for index in range(first, min(first + BATCH, len(images)))]
        pixels, some_labels = stack_samples(some, ("pixel_values", "labels"), device)
        evidence.append(model.head(model.forward_features(pixels), kind="evidence")[1])
        labels.append(some_labels)
    return torch.cat(evidence), torch.cat(labels)


@torch.no_grad()
def with_temperature(head: nn.Module, value: float, evidence: Tensor) -> Tensor:
    """Compute log P (N, C, H, W) with T' = exp(value)."""
    head.log_temperature.fill_(value)
    return torch.cat([head.log_parts(part) for part in evidence.split(BATCH)])


def fitted(head: nn.Module, evidence: Tensor, labels: Tensor) -> float:
    """Fit T' to the least cross-entropy on these images."""
    parts = zip(evidence.split(BATCH), labels.split(BATCH), strict=True)
    return set_temperature(head, torch.cat([candidate_losses(head, *part) for part in parts]))


def calibration(head: nn.Module, value: float, evidence: Tensor, labels: Tensor) -> Row:
    """Compare confidence and accuracy at one temperature, and check that the maps still add up."""
    parts = with_temperature(head, value, evidence)
    logits, maps = head.compose(evidence).detach(), parts.exp()
    probabilities = logits.softmax(dim=1)
    return {
        "accuracy": float((logits.argmax(dim=1) == labels).double().mean()),
        "confidence": float(probabilities.max(dim=1).values.double().mean()),
        "calibration_error": calibration_error(probabilities.cpu(), labels.cpu()),
        "loss": float(nn.functional.nll_loss(logits, labels)),
        "completeness_error": float((maps.sum(dim=(2, 3)) - probabilities).abs().max()),
    }
