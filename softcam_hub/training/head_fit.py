"""Fit a head to its teacher on cached features, without labels: the updates of a run with `--mode post-fit`.

- Loss, optimizer, schedule and order of images are those of a run. With the same features and settings, the weights
  after every update are the same.
- A run chooses its best epoch by labels of validation images. Here there are none, and the last epoch counts.
- Dropout before the head is left out. It would need random numbers of the device, which belong to the caller.
"""

import logging
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..models.heads import EvidenceHead
from ..models.losses import Bootstrap
from .config import OptimizationConfig
from .feature_cache import CachedFeatures
from .loop import NotFinite
from .optimization import EpochSampler, make_optimizer, make_schedule

logger = logging.getLogger(__name__)

LINES = 30
"""Number of epochs that are logged, about, of those of a fit."""


class Comparison(NamedTuple):
    """Distance of a head from its teacher, as means over images.

    Args:
        divergence: Loss of post-fitting, T²·KL(teacher/T ‖ p̂).
        disagreement: Share of the images for which the two predict different classes.
    """

    divergence: float
    disagreement: float


class HeadFit:
    """A head, its teacher, and the features that both read.

    Args:
        head: Head to train, in float32.
        teacher: Vanilla classifier of pooled features.
        features: Features of all images.
        bootstrap: Loss.
    """

    def __init__(self, head: EvidenceHead, teacher: nn.Linear, features: CachedFeatures, bootstrap: Bootstrap) -> None:
        self.head, self.teacher, self.features, self.bootstrap = head, teacher, features, bootstrap

    @torch.no_grad()
    def start_from_teacher(self) -> None:
        """Give the head the weights of the teacher, as it has them when a vanilla classifier is converted."""
        if self.head.finer:
            self.head.fine_weight.zero_()
        self.head.weight.copy_(self.teacher.weight)
        self.head.bias.copy_(self.teacher.bias)
        if self.head.has_temperature:
            self.head.log_temperature.zero_()

    def run(self, images: list[int], settings: OptimizationConfig, seed: int) -> None:
        """Train the head.

        Args:
            images: Indices of the images to learn from.
            settings: Settings of a run, of which those of optimizer, schedule, batches and `clip_grad` count.
            seed: Seed of the order of images.
        """
        size = settings.batch_size
        updates = len(images) // size
        optimizer = make_optimizer(self.head, settings)
        schedule = make_schedule(optimizer, settings, updates)
        sampler = EpochSampler(len(images), updates * size, seed)
        step = 0
        self.head.train()
        for epoch in range(settings.epochs):
            sampler.set_epoch(epoch)
            batches = torch.tensor([images[index] for _, index in sampler]).split(size)
            losses = []
            for batch in batches:
                loss = self._loss(*self._predict(batch.tolist()))
                losses.append(float(loss.detach()))
                if not loss.isfinite():
                    raise NotFinite(f"the loss is {losses[-1]} at update {step + 1} (epoch {epoch + 1}): lower lr")
                optimizer.zero_grad()
                loss.backward()
                if settings.clip_grad is not None:
                    nn.utils.clip_grad_norm_(self.head.parameters(), settings.clip_grad)
                optimizer.step()
                step += 1
                schedule(step)
            if (epoch + 1) % max(1, settings.epochs // LINES) == 0:
                logger.info("epoch %d/%d  loss %.4f", epoch + 1, settings.epochs, sum(losses) / len(losses))
        self.head.eval()

    @torch.no_grad()
    def compare(self, images: list[int], batch_size: int) -> Comparison:
        """Compare the predictions of head and teacher.

        Args:
            images: Indices of the images.
            batch_size: Number of images at once.
        """
        divergence, disagreement = 0.0, 0
        for batch in torch.tensor(images).split(batch_size):
            logits, teacher_logits = self._predict(batch.tolist())
            divergence += len(batch) * float(self._loss(logits, teacher_logits))
            disagreement += int((logits.argmax(dim=1) != teacher_logits.argmax(dim=1)).sum())
        return Comparison(divergence / len(images), disagreement / len(images))

    def _predict(self, images: list[int]) -> tuple[Tensor, Tensor]:
        """Return the logits (B, C) of the head and of the teacher."""
        features = self.features.__getitems__(images)["features"].to(self.teacher.weight.device)
        return self.head(features), self.teacher(features[:, : self.head.in_features].mean(dim=(2, 3)))

    def _loss(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return self.bootstrap.loss(logits, teacher_logits, targets=None)
