"""Divide images into parts with the same shares of every class, without dividing a group.

The parts are a held-out part of the training split, or the folds of a cross-validation.

- Without groups the images of each class are assigned to the parts in turn, so that every part has its share
  of every class to within one image.
- With groups (all images of a person) whole groups are assigned, the largest first, each to the part where it
  brings the numbers of images per class closest to their targets: `Σ (count - target)² / target` grows least.
- The same seed gives the same parts in every process.
"""

import math
from collections.abc import Sequence

import numpy as np


def assign_parts(
    labels: np.ndarray, shares: Sequence[float], seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Return the index (N,) of the part that each image belongs to.

    Args:
        labels: Class indices (N,) or multi-hot labels (N, C). Images with equal labels form a class.
        shares: Share of each part. The shares sum to 1.
        seed: Seed of the random division.
        groups: Group names (N,). Images of one group stay together.
    """
    strata = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    rng = np.random.default_rng([seed, len(labels)])
    if groups is None:
        return _assign_images(strata, np.asarray(shares), rng)
    return _assign_groups(strata, np.asarray(shares), rng, np.unique(groups, return_inverse=True)[1])


def _assign_images(strata: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shuffle the images within their classes, and assign them class after class to the parts in turn."""
    shuffled = rng.permutation(len(strata))
    by_class = shuffled[np.argsort(strata[shuffled], kind="stable")]
    parts = np.empty(len(strata), dtype=np.int64)
    parts[by_class] = round_robin(shares, len(strata))
    return parts


def round_robin(shares: np.ndarray, count: int) -> np.ndarray:
    """Return the parts (count,) in weighted turns: the i-th turn of part j is due at (i + 1/2) / share_j."""
    turns = [np.arange(math.ceil(count * share) + 1) for share in shares]
    due = np.concatenate([(turn + 0.5) / share for turn, share in zip(turns, shares, strict=True)])
    part = np.repeat(np.arange(len(shares)), [len(turn) for turn in turns])
    return part[np.argsort(due, kind="stable")][:count]


def _assign_groups(strata: np.ndarray, shares: np.ndarray, rng: np.random.Generator, groups: np.ndarray) -> np.ndarray:
    """Assign whole groups to parts, the largest group first."""
    group_counts = np.zeros((groups.max() + 1, strata.max() + 1))  # images of each group in each class
    np.add.at(group_counts, (groups, strata), 1)
    targets = shares[:, None] * group_counts.sum(axis=0)  # images of each class that each part should have
    counts = np.zeros_like(targets)
    part_of = np.empty(len(group_counts), dtype=np.int64)
    shuffled = rng.permutation(len(group_counts))
    for group in shuffled[np.argsort(-group_counts[shuffled].sum(axis=1), kind="stable")]:
        added = group_counts[group]
        # The increase of Σ (count - target)² / target when this group joins each part.
        increase = (added * (2 * (counts - targets) + added) / targets).sum(axis=1)
        part = int(increase.argmin())
        part_of[group] = part
        counts[part] += added
    return part_of[groups]
