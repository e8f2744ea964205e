"""Train the heads of many settings at once on the same frozen features and the same batches.

All heads read one matrix product of the features with all their weights. Losses are added, so that each head gets the
gradient of its own loss, and AdamW changes every number by its own gradient: the heads learn as if alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .candidates import CANDIDATES
from .features import Features

EPOCHS, BATCH, RATE, DECAY = 20, 64, 1e-3, 1e-4


@dataclass(frozen=True)
class Setting:
    """A candidate with a value of its parameter."""

    candidate: str
    value: float

    def compose(self, evidence: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and maps (B, C, H, W)."""
        return CANDIDATES[self.candidate].compose(evidence, bias, self.value)

    def loss(self, evidence: Tensor, bias: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Return the loss of a batch.

        Args:
            evidence: Evidence without bias, (B, C, H, W).
            bias: Bias, (C,).
            labels: Class indices, (B,).
            progress: Share of the training that is done.
        """
        candidate = CANDIDATES[self.candidate]
        value = self.value * min(1.0, 2 * progress) if candidate.annealed else self.value
        logits, maps = candidate.compose(evidence, bias, value)
        return F.cross_entropy(logits, labels) + candidate.loss(maps, self.value)


@dataclass(frozen=True)
class Heads:
    """Weights (S, C, K) and biases (S, C) of the heads of S settings."""

    weights: Tensor
    biases: Tensor

    def evidence(self, features: Tensor, side: int) -> Tensor:
        """Compute the evidence without bias of every head: (B, H·W, K) -> (S, B, C, H, W)."""
        heads, classes, _ = self.weights.shape
        product = features.float() @ self.weights.flatten(0, 1).T  # (B, H·W, S·C)
        return product.mT.unflatten(1, (heads, classes)).unflatten(3, (side, -1)).transpose(0, 1)


def fresh(classes: int, channels: int) -> Heads:
    """Return one head of zeros."""
    return Heads(torch.zeros(1, classes, channels), torch.zeros(1, classes))


def train(settings: list[Setting], start: Heads, features: Features, seed: int, epochs: int = EPOCHS) -> Heads:
    """Train a head for every setting, with AdamW and a cosine schedule.

    Args:
        settings: Settings to train.
        start: The one head from which all settings start.
        features: Features of the training images.
        seed: Seed of the order of images.
        epochs: Number of passes over the images.
    """
    count = len(settings)
    heads = Heads(start.weights.repeat(count, 1, 1).requires_grad_(), start.biases.repeat(count, 1).requires_grad_())
    optimizer = torch.optim.AdamW([heads.weights, heads.biases], lr=RATE, weight_decay=DECAY)
    batches = -(-len(features.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for chosen in torch.randperm(len(features.labels), generator=generator).split(BATCH):
            evidence = heads.evidence(features.values[chosen], features.side)
            labels = features.labels[chosen]
            losses = [
                setting.loss(evidence[index], heads.biases[index], labels, epoch / epochs)
                for index, setting in enumerate(settings)
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    return Heads(heads.weights.detach(), heads.biases.detach())


@torch.no_grad()
def predict(setting: Setting, heads: Heads, index: int, features: Features) -> tuple[Tensor, Tensor]:
    """Return logits (N, C) and maps (N, C, H, W) of one head on all images."""
    head = Heads(heads.weights[index : index + 1], heads.biases[index : index + 1])
    parts = [
        setting.compose(head.evidence(values, features.side)[0], head.biases[0])
        for values in features.values.split(BATCH)
    ]
    logits, maps = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(maps)
