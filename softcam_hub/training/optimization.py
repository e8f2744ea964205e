"""Optimizer and learning rate, both timm's: which parameters decay, and how large a step is when."""

from collections.abc import Callable
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

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
