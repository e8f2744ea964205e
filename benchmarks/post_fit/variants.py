"""Variants of post-fitting: start, loss and the order in which the parts of the head learn."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softcam_hub.models.heads import CAPEHead
from softcam_hub.post_fitting import FEWEST_UPDATES, LARGEST_GRADIENT

BATCH, RATE, MOMENTUM = 32, 0.1, 0.9
"""Settings of the recipe of post-fitting: SGD with Nesterov momentum and a cosine schedule after one warm-up epoch."""


@dataclass(frozen=True)
class Variant:
    """A way to fit CAPE's head to a vanilla classifier on the same features.

    Args:
        alpha: Weight of the cross-entropy with the labels.
        balanced: Give every class of the teacher the same weight in the divergence.
        centred: Start from W − mean_c W, which is naive CAPE exactly; the start of the paper keeps W.
        shared_first: Share of the epochs in which only a vector that all rows of W have in common is learnt. It
            changes the saliency, and no probability at a location.
        temperature: Temperature T of the teacher.
        clipped: Scale gradients down to a norm of `LARGEST_GRADIENT`, as `softcam_hub.post_fit` does.
        updates: Smallest number of updates; more epochs are run where those of the vanilla classifier make fewer.
    """

    alpha: float = 0.0
    balanced: bool = False
    centred: bool = False
    shared_first: float = 0.0
    temperature: float = 2.0
    clipped: bool = False
    updates: int = 0


VARIANTS = {
    "paper": Variant(),
    "alpha 0.5": Variant(alpha=0.5),
    "alpha 1": Variant(alpha=1.0),
    "balanced": Variant(balanced=True),
    "centred": Variant(centred=True),
    "shared first": Variant(shared_first=0.5),
    "shared only": Variant(shared_first=1.0),
    "centred, shared first": Variant(centred=True, shared_first=0.5),
    "centred, balanced": Variant(centred=True, balanced=True),
    "centred, alpha 1": Variant(centred=True, alpha=1.0),
    "centred, balanced, alpha 1": Variant(centred=True, balanced=True, alpha=1.0),
    "centred, shared first, balanced": Variant(centred=True, shared_first=0.5, balanced=True),
    "centred, T 1": Variant(centred=True, temperature=1.0),
    "clipped": Variant(clipped=True),
    "clipped, longer": Variant(clipped=True, updates=FEWEST_UPDATES),
    "clipped, longer, balanced": Variant(clipped=True, updates=FEWEST_UPDATES, balanced=True),
    "clipped, longer, alpha 1": Variant(clipped=True, updates=FEWEST_UPDATES, alpha=1.0),
    "clipped, longer, shared first": Variant(clipped=True, updates=FEWEST_UPDATES, shared_first=0.5),
}


def fit(variant: Variant, teacher: nn.Linear, features: Tensor, labels: Tensor, epochs: int, seed: int) -> CAPEHead:
    """Fit a head.

    Args:
        variant: How it learns.
        teacher: Classifier of pooled features.
        features: Features of the training images, (N, K, H, W).
        labels: Class indices, (N,).
        epochs: Number of epochs, or 0 for the head as it starts.
        seed: Seed of the order of images.
    """
    head = CAPEHead(features.shape[1], teacher.out_features)
    weight, bias = teacher.weight.detach(), teacher.bias.detach()
    if variant.centred:
        weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
    head.load_state_dict({"weight": weight, "bias": bias, "log_temperature": torch.zeros(1)})
    with torch.no_grad():
        targets = teacher(pooled(features))
    weights = class_weights(targets) if variant.balanced else torch.ones(teacher.out_features)
    optimizer = torch.optim.SGD(head.parameters(), RATE, MOMENTUM, nesterov=True)
    steps = -(-len(labels) // BATCH)
    epochs = max(epochs, -(-variant.updates // steps)) if epochs else 0
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps, epochs))
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for some in torch.randperm(len(labels), generator=generator).split(BATCH):
            logits = head(features[some].float())
            loss = divergence(logits, targets[some], weights, variant.temperature)
            if variant.alpha:
                loss = loss + variant.alpha * F.cross_entropy(logits, labels[some])
            optimizer.zero_grad()
            loss.backward()
            if epoch < variant.shared_first * epochs:
                share(head)
            if variant.clipped:
                nn.utils.clip_grad_norm_(head.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
    return head.eval()


def rate(step: int, steps: int, epochs: int) -> float:
    """Return the learning rate of an update: it rises during the first epoch, and falls along a cosine after it."""
    if step < steps:
        return (step + 1) / steps
    left = (step - steps) / max(1, steps * (epochs - 1))
    return 0.5 * (1 + float(torch.cos(torch.tensor(left * torch.pi))))


def pooled(features: Tensor) -> Tensor:
    """Return the features, averaged over locations in parts, as they may be kept in half precision."""
    return torch.cat([part.float().mean(dim=(2, 3)) for part in features.split(64)])


def class_weights(teacher_logits: Tensor) -> Tensor:
    """Return weights by which each class that the teacher predicts counts the same, with a mean of 1 over images."""
    counts = torch.bincount(teacher_logits.argmax(dim=1), minlength=teacher_logits.shape[1]).float()
    return torch.where(counts > 0, len(teacher_logits) / (counts.clamp_min(1) * (counts > 0).sum()), 0.0)


def divergence(logits: Tensor, teacher_logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Compute T²·KL(softmax(teacher/T) ‖ p̂), each image with the weight of the class that the teacher predicts."""
    target = (teacher_logits / temperature).log_softmax(dim=1)
    of_images = F.kl_div(logits, target, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * (weights[teacher_logits.argmax(dim=1)] * of_images).mean()


def share(head: CAPEHead) -> None:
    """Leave of the gradient what all rows of W have in common: it moves the saliency alone, with T' fixed."""
    for parameter in (head.weight, head.bias):
        assert parameter.grad is not None
        parameter.grad.copy_(parameter.grad.mean(dim=0, keepdim=True).expand_as(parameter.grad))
    assert head.log_temperature.grad is not None
    head.log_temperature.grad.zero_()
