"""Choose the images, the optimizer and the learning rate of every update.

- The order of the images is a function of (seed, epoch) alone, so that it is the same in every process and
  after a restart.
- Optimizers and schedules are those of timm.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.utils.data import Sampler

from .config import OptimizationConfig


def derive_seed(*numbers: int) -> int:
    """Derive one seed for torch from several numbers, so that neighbouring numbers give unrelated streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


class EpochSampler(Sampler[tuple[int, int]]):
    """Sampler that yields (epoch, index) of the images of an epoch, in random order.

    Args:
        count: Number of images in the data set.
        length: Number of images in an epoch, a whole number of updates.
        seed: Seed of the run.
        weights: Relative frequencies (count,) with which images are drawn, with replacement. Without weights,
            no image is drawn twice.
    """

    def __init__(self, count: int, length: int, seed: int, weights: Tensor | None = None) -> None:
        self.count, self.length, self.seed, self.weights = count, length, seed, weights
        self.epoch, self.skip = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is sampled next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length - self.skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.count, generator=generator, device="cpu")
        else:
            order = torch.multinomial(self.weights, self.count, replacement=True, generator=generator)
        return iter([(self.epoch, index) for index in order[self.skip : self.length].tolist()])


def class_balancing_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Return weights (C,) with which every class counts the same, with mean 1 over the images.

    For multi-hot labels (N, C), the weight of a class says how much more often it is absent than present.
    """
    if labels.ndim == 2:
        present = labels.mean(axis=0)
        return torch.as_tensor((1 - present) / np.clip(present, 1 / len(labels), None), dtype=torch.float32)
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.clip(counts, 1, None))
    return torch.as_tensor(weights, dtype=torch.float32)


def make_optimizer(model: nn.Module, settings: OptimizationConfig) -> torch.optim.Optimizer:
    """Create the optimizer; biases, norms and CAPE's temperature have no weight decay."""
    network = getattr(model, "vanilla", model)
    options = {"opt": settings.optimizer, "lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.layer_decay is not None:
        options["layer_decay"] = settings.layer_decay
    optimizer = create_optimizer_v2(network, momentum=settings.momentum, **options)
    if settings.fine_lr_scale != 1:
        _scale_learning_rate(optimizer, _fine_weight(network), settings.fine_lr_scale)
    return optimizer


def _fine_weight(network: nn.Module) -> nn.Parameter:
    """Return the weights of finer features, or raise ValueError for a network that reads none."""
    weight = getattr(getattr(network, "head", None), "fine_weight", None)
    if weight is None:
        raise ValueError(
            "fine_lr_scale is the rate of finer features, and this model reads none: leave it out, or make a "
            "self-explaining model with --model_args scales=3"
        )
    return weight


def _scale_learning_rate(optimizer: torch.optim.Optimizer, weight: nn.Parameter, scale: float) -> None:
    """Give one parameter a group of its own, with a factor of the learning rate that timm's schedules know."""
    for group in optimizer.param_groups:
        others = [one for one in group["params"] if one is not weight]
        if len(others) < len(group["params"]):
            group["params"] = others
            optimizer.add_param_group({**group, "params": [weight], "lr_scale": scale * group.get("lr_scale", 1.0)})
            return


def make_schedule(optimizer: Any, settings: OptimizationConfig, updates: int) -> Callable[[int], None]:
    """Return a function that sets the learning rate for the update after a given number of updates.

    Args:
        optimizer: Optimizer whose learning rate is set.
        settings: Settings of the schedule.
        updates: Number of updates in an epoch.
    """
    clipped = settings.schedule == "clipped-cosine"
    names = {"clipped-cosine": "cosine", "linear": "poly"}
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=names.get(settings.schedule, settings.schedule),
        num_epochs=settings.epochs,
        decay_epochs=settings.decay_epochs,
        decay_rate=1.0 if settings.schedule == "linear" else settings.decay_rate,  # the exponent of poly
        min_lr=0.0 if clipped else settings.min_lr,
        warmup_epochs=settings.warmup_epochs,
        warmup_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )

    def set_learning_rate(step: int) -> None:
        scheduler.step_update(step)
        if clipped:
            for group in optimizer.param_groups:
                group["lr"] = max(group["lr"], settings.min_lr * group.get("lr_scale", 1.0))

    set_learning_rate(0)
    return set_learning_rate
