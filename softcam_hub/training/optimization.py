"""Optimizer and learning rate, both timm's: which parameters decay, and how large a step is when."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.utils.data import Sampler

from .config import OptimizationConfig


def make_optimizer(model: nn.Module, settings: OptimizationConfig) -> torch.optim.Optimizer:
    """timm's optimizer of that name; biases, norms and temperature do not decay."""
    network = getattr(model, "vanilla", model)
    options = {"opt": settings.optimizer, "lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.layer_decay is not None:
        options["layer_decay"] = settings.layer_decay
    return create_optimizer_v2(network, momentum=settings.momentum, **options)


def make_schedule(optimizer: Any, settings: OptimizationConfig, updates: int) -> Callable[[int], None]:
    """Sets the learning rate for what follows a number of updates, of which an epoch has `updates`."""
    clipped = settings.schedule == "clipped-cosine"
    names = {"clipped-cosine": "cosine", "linear": "poly"}
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=names.get(settings.schedule, settings.schedule),
        num_epochs=settings.epochs,
        decay_epochs=settings.decay_epochs,
        decay_rate=1.0 if settings.schedule == "linear" else settings.decay_rate,  # the power of poly
        min_lr=0.0 if clipped else settings.min_lr,
        warmup_epochs=settings.warmup_epochs,
        warmup_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )

    def update(step: int) -> None:
        scheduler.step_update(step)
        if clipped:
            for group in optimizer.param_groups:
                group["lr"] = max(group["lr"], settings.min_lr * group.get("lr_scale", 1.0))

    update(0)
    return update


def seed_of(*numbers: int) -> int:
    """One seed for torch from several numbers, so that neighbouring numbers give unrelated streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, index) of the images of an epoch, in random order.

    Args:
        count: of the images.
        take: how many of them make an epoch, a whole number of updates.
        seed: of the run.
        weights: (count,) how often an image is drawn, with replacement; every image once without them.
    """

    def __init__(self, count: int, take: int, seed: int, weights: torch.Tensor | None = None) -> None:
        self.count, self.take, self.seed, self.weights = count, take, seed, weights
        self.epoch, self.skip = 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.take - self.skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.count, generator=generator)
        else:
            order = torch.multinomial(self.weights, self.count, replacement=True, generator=generator)
        return iter([(self.epoch, index) for index in order[self.skip : self.take].tolist()])
