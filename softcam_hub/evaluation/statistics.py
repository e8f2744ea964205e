"""Intervals, tests and groups of methods: a paired bootstrap over images, conditional on the seeds.

- Values are given as a list with an array (methods, images) for every seed. A resample draws images with replacement
  within every seed, the same images for all methods. The statistic is the mean over seeds of the mean over images.
- Seeds are not drawn. An interval says how far a result depends on the images that happened to be measured, and nothing
  about networks of other seeds: three seeds are too few for that.
- NaN stands for an image without a value, which is left out of means. A difference of two methods is taken on the
  images that have both values. Where a seed has a single image, or a value is infinite, there is no interval, and
  nothing is told apart.
- With 1,999 resamples, 2.5 % of the 2,000 places between them are 50, a whole number. The interval of a difference
  therefore excludes 0 exactly where the p-value is at most 0.05 (Davison and Hinkley, 1997, sec. 4.2.5).
- The percentile interval is a little short for few images: it covers about 94 % with 100 skewed values.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

RESAMPLES = 1999
"""Number of resamples."""

TAIL = 40
"""One in 40 resamples lies beyond each end of an interval, which therefore holds 95 % of them."""

SIGNIFICANT = 2 / TAIL
"""Largest p-value of a difference that counts."""

NEGLIGIBLE = 1e-4
"""Differences of an image below this fraction of the measure's largest value are rounding noise, and count as none. Two
methods with the same maps, such as CAM and Grad-CAM on a pooled linear head, would otherwise differ by it reliably."""

ROUNDING = 1e-12
"""Relative error of sums, which depends on the number of methods that are summed together."""

AT_ONCE = 2**22
"""Number of counts that are drawn at once, which bounds the memory."""


@dataclass(frozen=True)
class Bootstrap:
    """A statistic with its values in resamples of the images.

    Args:
        estimate: Value of the images themselves, of any shape (...).
        resampled: Values of the resamples, (resamples, ...), NaN for a resample without a value.
    """

    estimate: Array
    resampled: Array

    def __sub__(self, other: "Bootstrap") -> "Bootstrap":
        """Return the difference of two statistics of the same images, whose resamples are the same images."""
        pairs = ((self.estimate, other.estimate), (self.resampled, other.resampled))
        return Bootstrap(*(np.where(np.isclose(a, b, rtol=ROUNDING, atol=0), 0.0, a - b) for a, b in pairs))

    def interval(self) -> Array:
        """Return both ends of the 95 % percentile interval, (2, ...); NaN where there are too few resamples."""
        ordered = np.sort(self.resampled, axis=0)  # NaN comes last
        count = (~np.isnan(ordered)).sum(axis=0)
        beyond = (count + 1) // TAIL
        ends = np.stack([beyond - 1, count - beyond])
        values = np.take_along_axis(ordered, ends.clip(0, len(ordered) - 1), axis=0)
        return np.where((beyond > 0) & ~np.isnan(self.estimate), values, np.nan)

    def p_value(self) -> Array:
        """Return two-sided p-values (...) of the hypothesis that the statistic is 0; NaN where there is no statistic.

        p is twice the share of resamples on the other side of 0, 2·(1 + number) / (1 + resamples), and at most 1.
        """
        count = (~np.isnan(self.resampled)).sum(axis=0)
        beyond = np.minimum((self.resampled <= 0).sum(axis=0), (self.resampled >= 0).sum(axis=0))
        return np.where(np.isnan(self.estimate), np.nan, np.minimum(2 * (1 + beyond) / (1 + count), 1.0))


class Difference(NamedTuple):
    """The comparison of two methods on the images that have a value of both.

    Args:
        images: Number of images, of all seeds together.
        first: Mean of the first method.
        second: Mean of the second method.
        difference: Mean of the first minus the second.
        low: Lower end of the 95 % interval of the difference, NaN for a single image.
        high: Upper end of the interval.
        p: Two-sided p-value.
    """

    images: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


def means(values: Sequence[Array]) -> Array:
    """Return the mean over seeds of the means over images, (methods,); NaN for a method without values.

    Args:
        values: Values of every seed, (methods, images).
    """
    return _mean_of_known(np.stack([_mean_of_known(stratum.T) for stratum in _check_strata(values)]))


def bootstrap_means(values: Sequence[Array], resamples: int = RESAMPLES, seed: int = 0) -> Bootstrap:
    """Bootstrap the mean over seeds of the means over images, (methods,).

    Args:
        values: Values of every seed, (methods, images). The methods are the same, the numbers of images may differ.
        resamples: Number of resamples.
        seed: Seed of the draws. Equal numbers of images are drawn alike, whatever their values are.
    """
    strata = _check_strata(values)
    finite = [np.isfinite(stratum) for stratum in strata]
    pairs = zip(strata, finite, strict=True)
    sums = [np.stack([np.where(known, stratum, 0.0).T, known.T], axis=1) for stratum, known in pairs]
    found = bootstrap_of_sums(sums, _ratio, resamples, seed)
    single = np.any([known.sum(axis=1) == 1 for known in finite], axis=0)
    infinite = np.any([np.isinf(stratum).any(axis=1) for stratum in strata], axis=0)
    return Bootstrap(means(strata), np.where(single | infinite, np.nan, found.resampled))


def bootstrap_of_sums(
    histograms: Sequence[Array], function: Callable[[Array], Array], resamples: int = RESAMPLES, seed: int = 0
) -> Bootstrap:
    """Bootstrap a statistic that follows from sums over images, such as the area under a pooled curve.

        def precision(sums):  # (n, 2): pixels of all maps that lie in masks, and all pixels of the maps
            return sums[:, 0] / sums[:, 1]

        bootstrap_of_sums([hits_and_pixels], precision).interval()  # hits_and_pixels is (images, 2)

    Args:
        histograms: Histograms or curves of every seed, (images, ...). An image with a NaN is left out.
        function: Function of sums (n, ...) over images that returns numbers (n,), or (n, k) for several statistics.
            The statistic is the mean of its results over the seeds.
        resamples: Number of resamples.
        seed: Seed of the draws, as for `bootstrap_means`.
    """
    if not histograms:
        raise ValueError("there is no seed to resample: expected an array for every seed, got none")
    estimates, resampled = [], []
    for number, stratum in enumerate(histograms):
        rows = np.asarray(stratum, dtype=np.float64)
        shape = rows.shape[1:]
        flat = rows.reshape(len(rows), math.prod(shape))
        whole = np.logical_not(np.isnan(flat).any(axis=1))
        flat = np.where(whole[:, None], flat, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = _resample_sums(flat, resamples, np.random.default_rng([seed, number]))
            estimates.append(np.asarray(function(flat.sum(axis=0).reshape(1, *shape)))[0])
            found = np.asarray(function(drawn.reshape(resamples, *shape)))
        single = whole.sum() == 1  # draws of one image are all the same
        resampled.append(np.where(single, np.nan, found))
    return Bootstrap(_mean_of_known(np.stack(estimates)), _mean_of_all(np.stack(resampled), np.stack(estimates)))


def draw_counts(images: int, resamples: int, generator: np.random.Generator) -> Array:
    """Draw how often every image is in each resample, (resamples, images)."""
    drawn = generator.integers(images, size=(resamples, images)) if images else np.zeros((resamples, 0), dtype=int)
    places = drawn + images * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=resamples * images).reshape(resamples, images)


def compare_methods(first: Sequence[Array], second: Sequence[Array]) -> Difference:
    """Compare two methods on the same images.

    Args:
        first: Values of the first method in every seed, (images,).
        second: Values of the second method, in the same order.
    """
    pairs = _check_strata([np.stack(pair) for pair in zip(first, second, strict=True)])
    pairs = [np.where(np.isnan(pair).any(axis=0), np.nan, pair) for pair in pairs]
    differences = bootstrap_means(_differences(pairs, 0))
    low, high = differences.interval()[:, 1]
    images = int(sum((~np.isnan(pair[0])).sum() for pair in pairs))
    numbers = (*means(pairs), differences.estimate[1], low, high, differences.p_value()[1])
    return Difference(images, *map(float, numbers))


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

    The method with the best mean is compared with every other one, and the p-values are adjusted by Holm's method. A
    method is outside of the group if its adjusted p-value is at most 0.05 and it is the worse of the two, or if it has
    no values. So chosen, the group is not a proof that its members are equally good: with few images nearly all belong
    to it.

    Args:
        values: Values of every seed, (methods, images).
        higher_is_better: Whether a higher value is better.
    """
    strata = _check_strata(values)
    averages = means(strata)
    known = ~np.isnan(averages)
    if known.sum() < 2:
        return known
    best = int(np.nanargmax(averages if higher_is_better else -averages))
    rivals = known & (np.arange(len(averages)) != best)
    # enough resamples for the smallest p-value to be significant after the adjustment
    resamples = max(RESAMPLES, 2 * TAIL * int(rivals.sum()) - 1)
    found = bootstrap_means(_differences(strata, best), resamples)
    behind = (found.estimate > 0) == higher_is_better  # methods with values of other images may be ahead on common ones
    worse = (holm(np.where(rivals, found.p_value(), np.nan)) <= SIGNIFICANT) & behind
    return known & ~worse


def significant_ranks(values: Sequence[Array], higher_is_better: bool) -> Array:
    """Rank methods so that those which cannot be told apart share a rank, (methods,); NaN for one without values.

    Rank 1 is the group of methods that cannot be told from the best. Rank 2 is the group of those among the rest that
    cannot be told from the best of the rest, and so on. Arguments as for `best_group`.
    """
    strata = _check_strata(values)
    left = np.flatnonzero(~np.isnan(means(strata)))
    ranks, rank = np.full(len(strata[0]), np.nan), 0
    while len(left):
        rank += 1
        group = best_group([stratum[left] for stratum in strata], higher_is_better)
        ranks[left[group]] = rank
        left = left[~group]
    return ranks


def _check_strata(values: Sequence[Array]) -> list[Array]:
    """Return the values of all seeds as numbers, after a check of their shapes."""
    strata = [np.asarray(stratum, dtype=np.float64) for stratum in values]
    shapes = [stratum.shape for stratum in strata]
    if not strata or any(len(shape) != 2 for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"expected an array (methods, images) for every seed, with the same methods, got the shapes {shapes}"
        )
    return strata


def _differences(strata: list[Array], best: int) -> list[Array]:
    """Return the values of one method minus those of every method, (methods, images), without rounding noise."""
    largest = max(float(np.abs(stratum[np.isfinite(stratum)]).max(initial=0.0)) for stratum in strata)
    with np.errstate(invalid="ignore"):  # of two infinite values
        differences = [stratum[best] - stratum for stratum in strata]
    return [np.where(np.abs(one) < NEGLIGIBLE * largest, 0.0, one) for one in differences]


def _resample_sums(rows: Array, resamples: int, generator: np.random.Generator) -> Array:
    """Return the sums (resamples, columns) of resamples of rows (images, columns)."""
    block = max(1, AT_ONCE // max(len(rows), 1))
    sizes = [min(block, resamples - first) for first in range(0, resamples, block)]
    return np.concatenate([draw_counts(len(rows), size, generator).astype(np.float64) @ rows for size in sizes])


def _ratio(sums: Array) -> Array:
    """Divide sums of values by the numbers of values, (n, 2, methods)."""
    return sums[:, 0] / sums[:, 1]


def _mean_of_known(values: Array) -> Array:
    """Average over the first axis without NaN; NaN where nothing else is there."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)


def _mean_of_all(resampled: Array, estimates: Array) -> Array:
    """Average resamples (seeds, resamples, ...) over the seeds that have an estimate; NaN if one of these has none."""
    measured = ~np.isnan(estimates)
    with np.errstate(invalid="ignore"):
        return np.where(measured[:, None], resampled, 0.0).sum(axis=0) / measured.sum(axis=0)
