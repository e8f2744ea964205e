"""Which image comes when, as a function of (seed, epoch) alone: the same in every process and after a restart."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


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
