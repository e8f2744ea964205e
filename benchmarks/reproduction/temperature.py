"""Measure the effect of a temperature on the confidence of CAPE, and of the vanilla classifier beside it.

- CAPE's T' is measured as it was learnt, divided by the teacher's T, and fitted to validation images. It acts on the
  evidence alone, so that every image passes through the network once.
- The vanilla classifier is measured as it was trained, and with its logits divided by a temperature that is fitted to
  validation images.
"""

import math
from collections.abc import Iterator

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
    model = classifier.model
    evidence, labels = [], []
    for pixels, some_labels in _batches(classifier, samples):
        evidence.append(model.head(model.forward_features(pixels), kind="evidence")[1])
        labels.append(some_labels)
    return torch.cat(evidence), torch.cat(labels)


@torch.no_grad()
def logits_of(classifier: LoadedClassifier, samples: Samples) -> tuple[Tensor, Tensor]:
    """Compute the logits (N, C) of a whole split, and return them with the labels (N,)."""
    parts = [(classifier.model(pixels), labels) for pixels, labels in _batches(classifier, samples)]
    logits, labels = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(labels)


def _batches(classifier: LoadedClassifier, samples: Samples) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images and the labels of a split in batches, on the device of the model."""
    images = make_dataset(classifier.preprocessing, samples)
    device = next(classifier.model.parameters()).device
    for first in range(0, len(images), BATCH):
        some = [images[index] for index in range(first, min(first + BATCH, len(images)))]
        pixels, labels = stack_samples(some, ("pixel_values", "labels"), device)
        yield pixels, labels


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
    error = float((maps.sum(dim=(2, 3)) - logits.softmax(dim=1)).abs().max())
    return {**_scores(logits, labels), "completeness_error": error}


def vanilla_calibrations(classifier: LoadedClassifier, splits: Splits) -> list[Row]:
    """Return a row for the vanilla classifier as it was trained, and one with a fitted temperature.

    Args:
        classifier: Vanilla classifier.
        splits: Validation images to fit the temperature to, and test images to measure on.
    """
    known, (logits, labels) = logits_of(classifier, splits.validation), logits_of(classifier, splits.test)
    choices = {"as trained": 1.0, "fitted": fitted_to_logits(*known)}
    return [{"temperature": name, "value": value, **_scores(logits / value, labels)} for name, value in choices.items()]


def fitted_to_logits(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature by which logits are divided for the least cross-entropy on these images."""
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=200, line_search_fn="strong_wolfe")
    logits, labels = logits.double().cpu(), labels.cpu()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(logits / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(log_temperature.detach().exp())


def _scores(logits: Tensor, labels: Tensor) -> Row:
    """Compare confidence and accuracy."""
    probabilities = logits.softmax(dim=1)
    return {
        "accuracy": float((logits.argmax(dim=1) == labels).double().mean()),
        "confidence": float(probabilities.max(dim=1).values.double().mean()),
        "calibration_error": calibration_error(probabilities.cpu(), labels.cpu()),
        "loss": float(nn.functional.cross_entropy(logits, labels)),
    }
