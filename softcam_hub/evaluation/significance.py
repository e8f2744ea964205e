"""Tell methods apart: a permutation test of paired differences, Holm's adjustment, groups and ranks of methods.

- Values are given as a list with an array (methods, images) for every seed, as for the intervals of `statistics.py`. A
  difference of two methods is taken on the images that have both values.
- If it does not matter which of two methods a value is of, the difference of an image may as well have the other sign.
  The p-value is the share of draws of all signs whose mean is as far from 0. Few images therefore find nothing: with n
  of them, no p-value is below 2^(1 - n), but for the chance of the draws.
- An infinite value tells nothing apart.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .statistics import (
    RESAMPLES,
    ROUNDING,
    Array,
    bootstrap_means,
    bootstrap_of_sums,
    check_strata,
    drawn_sums,
    mean_of_known,
    means,
)

SIGNIFICANT = 0.05
"""Largest p-value of a difference that counts."""

NEGLIGIBLE = 1e-4
"""Differences of an image below this fraction of the values are rounding noise, and count as none. Two methods with the
same maps, such as CAM and Grad-CAM on a pooled linear head, would otherwise differ by it reliably."""


class Difference(NamedTuple):
    """The comparison of two methods on the images that have a value of both.

    Args:
        images: Number of images, of all seeds together.
        first: Mean of the first method.
        second: Mean of the second method.
        difference: Mean of the first minus the second.
        low: Lower end of the 95 % interval of the difference, NaN for a single image.
        high: Upper end of the interval.
        p: Two-sided p-value of the permutation test.
    """

    images: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


def compare_methods(first: Sequence[Array], second: Sequence[Array]) -> Difference:
    """Compare two methods on the same images.

    Args:
        first: Values of the first method in every seed, (images,).
        second: Values of the second method, in the same order.
    """
    pairs = check_strata([np.stack(pair) for pair in zip(first, second, strict=True)])
    pairs = [np.where(np.isnan(pair).any(axis=0), np.nan, pair) for pair in pairs]
    differences = [stratum[1:] for stratum in _differences(pairs, 0)]
    found = bootstrap_means(differences)
    images = int(sum((~np.isnan(pair[0])).sum() for pair in pairs))
    numbers = (*means(pairs), found.estimate[0], *found.interval()[:, 0], permutation_p_values(differences)[0])
    return Difference(images, *map(float, numbers))


def compare_sums(first: Array, second: Array, function: Callable[[Array], Array]) -> Difference:
    """Compare two methods by a statistic that follows from sums over the same images.

    Args:
        first: Histograms or curves of the first method, (images, ...). An image with a NaN of one method is left out.
        second: Those of the second method.
        function: Function of sums (n, ...) over images that returns numbers (n,), as for `bootstrap_of_sums`.
    """

    def differences(sums: Array) -> Array:
        return function(sums[:, 0]) - function(sums[:, 1])

    pairs = np.stack([np.asarray(side, dtype=np.float64) for side in (first, second)], axis=1)
    pairs = pairs[~np.isnan(pairs).any(axis=tuple(range(1, pairs.ndim)))]
    sums = pairs.sum(axis=0)[None]
    found = bootstrap_of_sums([pairs], differences).without_bias()
    exchanged = (pairs[:, ::-1] - pairs).reshape(len(pairs), -1)
    moved = drawn_sums(exchanged, RESAMPLES, np.random.default_rng([0, 0]), _draw_bits)
    p_values = _share_as_large(differences(sums + moved.reshape(-1, *sums.shape[1:]))[:, None], found.estimate[None])
    sides = [float(function(sums[:, side])[0]) for side in (0, 1)]
    return Difference(len(pairs), *sides, float(found.estimate), *map(float, found.interval()), float(p_values[0]))


def permutation_p_values(differences: Sequence[Array], resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Test whether it matters which of two methods a value is of, (methods,); NaN where there is nothing to test.

    The signs of all differences are drawn at random. The p-value is the share of draws whose mean over seeds of means
    over images is as far from 0 as that of the differences themselves, (1 + number) / (1 + resamples).

    Args:
        differences: Differences of values in every seed, (methods, images); NaN for none.
        resamples: Number of draws.
        seed: Seed of the draws.
    """
    strata = check_strata(differences)
    drawn = []
    for number, stratum in enumerate(strata):
        finite = np.isfinite(stratum)
        generator = np.random.default_rng([seed, number])
        sums = drawn_sums(np.where(finite, stratum, 0.0).T, resamples, generator, _draw_signs)
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn.append(sums / finite.sum(axis=1))
    infinite = np.any([np.isinf(stratum).any(axis=1) for stratum in strata], axis=0)
    estimates = means(strata)
    found = _share_as_large(mean_of_known(np.stack(drawn)), estimates)
    return np.where(infinite | np.isnan(estimates), np.nan, found)


def holm(p_values: Sequence[float] | Array) -> Array:
    """Adjust p-values (tests,) for the number of tests by Holm's method; NaN, no test, stays NaN.

    The k-th smallest of m values is multiplied by m - k + 1, and no value is below a smaller one's (Holm, 1979).
    """
    values = np.asarray(p_values, dtype=np.float64)
    adjusted, tests = np.full(values.shape, np.nan), np.flatnonzero(~np.isnan(values))
    order = tests[np.argsort(values[tests], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.minimum(factors * values[order], 1.0))
    return adjusted


def best_group(values: Sequence[Array], higher_is_better: bool) -> Array:
    """Tell which methods cannot be told from the best, (methods,) of booleans; the best is one of them.

    The method with the best mean is compared with every other one, and the p-values of `permutation_p_values` are
    adjusted by Holm's method. A method is outside of the group if its adjusted p-value is at most 0.05 and it is the
    worse of the two, or if it has no values. So chosen, the group is not a proof that its members are equally good:
    with few images nearly all belong to it.

    Args:
        values: Values of every seed, (methods, images).
        higher_is_better: Whether a higher value is better.
    """
    strata = check_strata(values)
    averages = means(strata)
    known = ~np.isnan(averages)
    if known.sum() < 2:
        return known
    best = int(np.nanargmax(averages if higher_is_better else -averages))
    rivals = known & (np.arange(len(averages)) != best)
    # enough resamples for the smallest p-value to be significant after the adjustment
    resamples = max(RESAMPLES, round(2 * rivals.sum() / SIGNIFICANT))
    differences = _differences(strata, best)
    # methods with values of other images may be ahead on common ones
    behind = (means(differences) > 0) == higher_is_better
    p_values = permutation_p_values(differences, resamples)
    worse = (holm(np.where(rivals, p_values, np.nan)) <= SIGNIFICANT) & behind
    return known & ~worse


def significant_ranks(values: Sequence[Array], higher_is_better: bool) -> Array:
    """Rank methods so that those which cannot be told apart share a rank, (methods,); NaN for one without values.

    Rank 1 is the group of methods that cannot be told from the best. Rank 2 is the group of those among the rest that
    cannot be told from the best of the rest, and so on. Arguments as for `best_group`.
    """
    strata = check_strata(values)
    left = np.flatnonzero(~np.isnan(means(strata)))
    ranks, rank = np.full(len(strata[0]), np.nan), 0
    while len(left):
        rank += 1
        group = best_group([stratum[left] for stratum in strata], higher_is_better)
        ranks[left[group]] = rank
        left = left[~group]
    return ranks


def _differences(strata: list[Array], best: int) -> list[Array]:
    """Return the values of one method minus those of every method, (methods, images), without rounding noise.

    What is noise for an image is judged by its own largest value, and by that of half of the images, so that values
    near 0 have noise as well, and a single large one hides nothing.
    """
    largest = [np.where(np.isfinite(stratum), np.abs(stratum), 0.0).max(axis=0) for stratum in strata]
    every = np.concatenate(largest)
    usual = float(np.median(every[every > 0])) if every.any() else 0.0
    with np.errstate(invalid="ignore"):  # of two infinite values
        differences = [stratum[best] - stratum for stratum in strata]
    pairs = zip(differences, largest, strict=True)
    return [np.where(np.abs(one) < NEGLIGIBLE * np.maximum(own, usual), 0.0, one) for one, own in pairs]


def _draw_bits(images: int, resamples: int, generator: np.random.Generator) -> Array:
    """Draw 0 or 1 for every image in each resample, (resamples, images)."""
    return generator.integers(2, size=(resamples, images))


def _draw_signs(images: int, resamples: int, generator: np.random.Generator) -> Array:
    """Draw 1 or -1 for every image in each resample, (resamples, images)."""
    return 1 - 2 * _draw_bits(images, resamples, generator)


def _share_as_large(drawn: Array, estimates: Array) -> Array:
    """Return the share of draws (resamples, methods) as far from 0 as an estimate (methods,), itself among them."""
    with np.errstate(invalid="ignore"):
        as_large = np.abs(drawn) >= np.abs(estimates) * (1 - ROUNDING)
    return (1 + as_large.sum(axis=0)) / (1 + len(drawn))
