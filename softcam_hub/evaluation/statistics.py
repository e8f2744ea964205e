"""Intervals of means over images: a bootstrap over images, conditional on the seeds.

- Values are given as a list with an array (methods, images) for every seed. A resample draws images with replacement
  within every seed, the same images for all methods. The statistic is the mean over seeds of the mean over images.
- Where the seeds have the same images, as networks of several seeds that are tested on one data set, `join_seeds` makes
  them one seed with the mean of every image, so that an image is drawn in all seeds at once.
- Seeds are not drawn. An interval says how far a result depends on the images that happened to be measured, and nothing
  about networks of other seeds: three seeds are too few for that.
- NaN stands for an image without a value, which is left out of means. Where a seed has a single image, or a value is
  infinite, there is no interval.
- With 1,999 resamples, 2.5 % of the 2,000 places between them are 50, a whole number (Davison and Hinkley, 1997, sec.
  4.2.5). The percentile interval is short for few images: it covers about 94 % with 100 skewed values, and less with
  fewer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

RESAMPLES = 1999
"""Number of resamples."""

TAIL = 40
"""One in 40 resamples lies beyond each end of an interval, which therefore holds 95 % of them."""

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

    def without_bias(self) -> "Bootstrap":
        """Return the statistic for an interval without the bias of resampling.

        A largest value over thresholds is larger in resamples than in the images, and larger in these than in all
        images that might have been measured. Both biases are about the same, and twice the first is taken away.
        """
        bias = mean_of_known(self.resampled) - self.estimate
        return Bootstrap(self.estimate, self.resampled - 2 * bias)


def means(values: Sequence[Array]) -> Array:
    """Return the mean over seeds of the means over images, (methods,); NaN for a method without values.

    Args:
        values: Values of every seed, (methods, images).
    """
    return mean_of_known(np.stack([mean_of_known(stratum.T) for stratum in check_strata(values)]))


def join_seeds(values: Sequence[Array]) -> list[Array]:
    """Average the values of the same images over the seeds; return them as the only seed, (methods, images).

    Seeds that were measured on the same images are no further images. If each of them drew its own images, an interval
    would be too narrow, as what is easy for one network is easy for another.

    Args:
        values: Values of every seed, (methods, images), of the same methods and images in the same order.
    """
    strata = check_strata(values)
    if len({stratum.shape for stratum in strata}) > 1:
        raise ValueError(
            f"the seeds have different numbers of images, {[stratum.shape[1] for stratum in strata]}: only values of "
            "the same images can be joined"
        )
    return [mean_of_known(np.stack(strata))]


def bootstrap_means(
    values: Sequence[Array], resamples: int = RESAMPLES, seed: int = 0, same_images: bool = False
) -> Bootstrap:
    """Bootstrap the mean over seeds of the means over images, (methods,).

    Args:
        values: Values of every seed, (methods, images). The methods are the same, the numbers of images may differ.
        resamples: Number of resamples.
        seed: Seed of the draws. Equal numbers of images are drawn alike, whatever their values are.
        same_images: Whether all seeds have the same images, so that an image is drawn in all of them at once. Unlike
            `join_seeds`, this leaves the mean of every seed as it is where seeds lack values of different images.
    """
    strata = check_strata(values)
    finite = [np.isfinite(stratum) for stratum in strata]
    pairs = zip(strata, finite, strict=True)
    sums = [np.stack([np.where(known, stratum, 0.0).T, known.T], axis=1) for stratum, known in pairs]
    found = bootstrap_of_sums(sums, _ratio, resamples, seed, same_images)
    single = np.any([known.sum(axis=1) == 1 for known in finite], axis=0)
    infinite = np.any([np.isinf(stratum).any(axis=1) for stratum in strata], axis=0)
    return Bootstrap(means(strata), np.where(single | infinite, np.nan, found.resampled))


def mean_intervals(values: Sequence[Array], same_images: bool = False) -> Array:
    """Return both ends of the 95 % interval of the mean of every method, (2, methods).

    Arguments are those of `bootstrap_means`.

    Where all images have the same value, such as a hit, so have all resamples, and nothing is known about other images:
    there is no interval.
    """
    ends = bootstrap_means(values, same_images=same_images).interval()
    return np.where(ends[0] == ends[1], np.nan, ends)


def bootstrap_of_sums(
    histograms: Sequence[Array],
    function: Callable[[Array], Array],
    resamples: int = RESAMPLES,
    seed: int = 0,
    same_images: bool = False,
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
        same_images: Whether all seeds have the same images, as for `bootstrap_means`.
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
            generator = np.random.default_rng([seed, 0 if same_images else number])
            drawn = drawn_sums(flat, resamples, generator, draw_counts)
            estimates.append(np.asarray(function(flat.sum(axis=0).reshape(1, *shape)))[0])
            found = np.asarray(function(drawn.reshape(resamples, *shape)))
        single = whole.sum() == 1  # draws of one image are all the same
        resampled.append(np.where(single, np.nan, found))
    return Bootstrap(mean_of_known(np.stack(estimates)), _mean_of_all(np.stack(resampled), np.stack(estimates)))


def bootstrap_of_counts(
    images: int, function: Callable[[Array], Array], resamples: int = RESAMPLES, seed: int = 0
) -> Bootstrap:
    """Bootstrap a statistic of one seed that does not follow from sums, such as one with a median.

    Args:
        images: Number of images.
        function: Function of how often every image is drawn, (n, images), that returns numbers (n,).
        resamples: Number of resamples.
        seed: Seed of the draws, as for `bootstrap_means`.
    """
    generator, block = np.random.default_rng([seed, 0]), max(1, AT_ONCE // max(images, 1))
    sizes = [min(block, resamples - first) for first in range(0, resamples, block)]
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.concatenate([function(draw_counts(images, size, generator)) for size in sizes])
        return Bootstrap(function(np.ones((1, images), dtype=int))[0], drawn)


def draw_counts(images: int, resamples: int, generator: np.random.Generator) -> Array:
    """Draw how often every image is in each resample, (resamples, images)."""
    drawn = generator.integers(images, size=(resamples, images)) if images else np.zeros((resamples, 0), dtype=int)
    places = drawn + images * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=resamples * images).reshape(resamples, images)


def check_strata(values: Sequence[Array]) -> list[Array]:
    """Return the values of all seeds as numbers, after a check of their shapes."""
    strata = [np.asarray(stratum, dtype=np.float64) for stratum in values]
    shapes = [stratum.shape for stratum in strata]
    if not strata or any(len(shape) != 2 for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"expected an array (methods, images) for every seed, with the same methods, got the shapes {shapes}"
        )
    return strata


def drawn_sums(
    rows: Array, resamples: int, generator: np.random.Generator, draw: Callable[[int, int, np.random.Generator], Array]
) -> Array:
    """Return sums (resamples, columns) of rows (images, columns), each with the factor that is drawn for it."""
    block = max(1, AT_ONCE // max(len(rows), 1))
    sizes = [min(block, resamples - first) for first in range(0, resamples, block)]
    return np.concatenate([draw(len(rows), size, generator).astype(np.float64) @ rows for size in sizes])


def _ratio(sums: Array) -> Array:
    """Divide sums of values by the numbers of values, (n, 2, methods)."""
    return sums[:, 0] / sums[:, 1]


def mean_of_known(values: Array) -> Array:
    """Average over the first axis without NaN; NaN where nothing else is there."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)


def _mean_of_all(resampled: Array, estimates: Array) -> Array:
    """Average resamples (seeds, resamples, ...) over the seeds that have an estimate; NaN if one of these has none."""
    measured = ~np.isnan(estimates)
    with np.errstate(invalid="ignore"):
        return np.where(measured[:, None], resampled, 0.0).sum(axis=0) / measured.sum(axis=0)
