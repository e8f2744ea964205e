"""Dividing a training split: a held-out part, or the folds of a cross-validation; by class, and never within a group.

- Without groups each class is dealt out in turn, so that every part has its share of every class to within one image.
- With groups (all images of a person) whole groups are dealt out, the largest first, each to the part where it brings
  the numbers of images per class closest to their shares: `Σ (found - wanted)² / wanted` grows least.
- The same seed gives the same parts, in every process.
"""

import math
from collections.abc import Sequence

import numpy as np


def assign_parts(
    labels: np.ndarray, shares: Sequence[float], seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """The part (N,) that each image goes to.

    Args:
        labels: (N,) class indices or (N, C) multi-hot.
        shares: of each part, summing to 1.
        seed: another seed gives another division.
        groups: (N,) names; images of one name stay together.
    """
    strata = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    rng = np.random.default_rng([seed, len(labels)])
    if groups is None:
        return _assign_images(strata, np.asarray(shares), rng)
    return _assign_groups(strata, np.asarray(shares), rng, np.unique(groups, return_inverse=True)[1])


def _assign_images(strata: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shuffled within classes, then class after class the parts in turn."""
    shuffled = rng.permutation(len(strata))
    parts = np.empty(len(strata), dtype=np.int64)
    parts[shuffled[np.argsort(strata[shuffled], kind="stable")]] = round_robin(shares, len(strata))
    return parts


def round_robin(shares: np.ndarray, count: int) -> np.ndarray:
    """(count,) parts in turn: part j at its i-th turn is due at (i + 1/2) / share_j."""
    numbers = [np.arange(math.ceil(count * share) + 1) for share in shares]
    due = np.concatenate([(number + 0.5) / share for number, share in zip(numbers, shares, strict=True)])
    part = np.repeat(np.arange(len(shares)), [len(number) for number in numbers])
    return part[np.argsort(due, kind="stable")][:count]


def _assign_groups(strata: np.ndarray, shares: np.ndarray, rng: np.random.Generator, groups: np.ndarray) -> np.ndarray:
    sizes = np.zeros((groups.max() + 1, strata.max() + 1))
    np.add.at(sizes, (groups, strata), 1)
    wanted = shares[:, None] * sizes.sum(axis=0)
    found = np.zeros_like(wanted)
    part_of = np.empty(len(sizes), dtype=np.int64)
    shuffled = rng.permutation(len(sizes))
    for group in shuffled[np.argsort(-sizes[shuffled].sum(axis=1), kind="stable")]:
        growth = (sizes[group] * (2 * (found - wanted) + sizes[group]) / wanted).sum(axis=1)
        part_of[group] = part = int(growth.argmin())
        found[part] += sizes[group]
    return part_of[groups]
