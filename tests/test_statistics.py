"""Bootstrap of means over images: numbers worked out by hand, a slow transcription, and coverage."""

import time

import numpy as np
import pytest
from helpers.random_values import skewed

from softcam_hub.evaluation.statistics import (
    RESAMPLES,
    Bootstrap,
    bootstrap_means,
    bootstrap_of_counts,
    bootstrap_of_sums,
    draw_counts,
    join_seeds,
    mean_intervals,
    means,
)

NAN = np.nan


# --- intervals and p-values, by hand -----------------------------------------------------------------------------------


def test_the_interval_leaves_out_a_fortieth_at_each_end():
    found = Bootstrap(np.array(50.0), np.arange(1.0, 80.0))  # 79 resamples: 80 / 40 = 2 places at each end
    assert found.interval().tolist() == [2.0, 78.0]
    assert np.isnan(Bootstrap(np.array(1.0), np.arange(1.0, 39.0)).interval()).all(), "38 resamples have no 2.5 %"


def test_resamples_without_a_value_are_left_out():
    resampled = np.concatenate([np.full(500, NAN), np.arange(1.0, 80.0)])
    assert Bootstrap(np.array(50.0), resampled).interval().tolist() == [2.0, 78.0]
    found = Bootstrap(np.array(30.0), resampled).without_bias()  # the mean of the resamples is 40, 10 too large
    assert found.estimate == 30
    assert found.interval().tolist() == [2.0 - 20, 78.0 - 20]


def test_means_are_over_images_first_and_then_over_seeds():
    values = [np.array([[1.0, 2.0, NAN]]), np.array([[5.0, 6.0, 10.0, NAN]])]
    assert means(values).tolist() == [(1.5 + 7) / 2]
    assert bootstrap_means(values).estimate.tolist() == [(1.5 + 7) / 2]
    missing = [np.array([[1.0, 3.0]]), np.array([[NAN, NAN]])]
    assert means(missing).tolist() == [2.0], "a seed without values does not count"
    assert bootstrap_means(missing).estimate.tolist() == [2.0]


def test_draws_are_the_same_for_all_methods_and_in_every_call():
    values = skewed(np.random.default_rng(1), 1, 40)
    twice = bootstrap_means([np.concatenate([values, values, values + 0.25])])
    assert np.allclose(twice.resampled[:, 0], twice.resampled[:, 1], rtol=1e-12)
    assert np.allclose(twice.resampled[:, 2] - twice.resampled[:, 0], 0.25, atol=1e-12)
    again = bootstrap_means([values])
    assert (again.resampled == bootstrap_means([values]).resampled).all()
    assert np.allclose(again.resampled[:, 0], twice.resampled[:, 0], rtol=1e-12)
    assert (again.resampled != bootstrap_means([values], seed=1).resampled).any()
    difference = bootstrap_means([values + 0.25]) - again
    assert np.allclose(difference.interval(), 0.25, atol=1e-12)
    nothing = bootstrap_means([values / 3]) - bootstrap_means([np.concatenate([values] * 5) / 3])
    assert (nothing.resampled == 0).all(), "rounding is no difference"


def test_all_draws_of_two_images():
    """Of two images, a resample has the means 0, 0.5 and 1 with the probabilities 1/4, 1/2 and 1/4."""
    found = bootstrap_means([np.array([[0.0, 1.0]])])
    shares = [(found.resampled == value).mean() for value in (0, 0.5, 1)]
    assert np.allclose(shares, [0.25, 0.5, 0.25], atol=0.03)
    assert found.interval()[:, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("images", [(3,), (40, 7), (5, 2, 11)])
def test_a_slow_transcription_with_the_same_draws(images):
    generator = np.random.default_rng(2)
    values = [skewed(generator, 4, count) for count in images]
    values[0][1, 0] = NAN
    expected = np.zeros((RESAMPLES, 4))
    for number, stratum in enumerate(values):
        draws = np.random.default_rng([0, number])
        for resample in range(RESAMPLES):
            chosen = draws.integers(stratum.shape[1], size=stratum.shape[1])
            for method in range(4):
                drawn = [value for value in stratum[method, chosen] if not np.isnan(value)]
                expected[resample, method] += (np.mean(drawn) if drawn else NAN) / len(images)
    found = bootstrap_means(values)
    assert np.allclose(found.resampled, expected, equal_nan=True)
    low, high = found.interval()
    for method in range(4):
        ordered = sorted(value for value in expected[:, method] if not np.isnan(value))
        place = (len(ordered) + 1) // 40
        assert np.isclose(low[method], ordered[place - 1])
        assert np.isclose(high[method], ordered[-place])


def test_counts_are_of_as_many_images_as_there_are():
    counts = draw_counts(7, 100, np.random.default_rng(0))
    assert counts.shape == (100, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert abs(counts.mean(axis=0) - 1).max() < 0.4
    assert draw_counts(0, 3, np.random.default_rng(0)).shape == (3, 0)


# --- coverage ----------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_largest_value_over_thresholds_covers_without_its_bias():
    """A tenth of the images is found at each of 21 thresholds, so that the best of them looks better than it is."""
    generator, covered = np.random.default_rng(16), []
    for _ in range(300):
        hits = (generator.uniform(size=(100, 21)) < 0.1).astype(float)
        found = bootstrap_of_sums([hits], lambda sums: sums.max(axis=1) / 100, resamples=399)
        ends = [one.interval() for one in (found, found.without_bias())]
        covered.append([low <= 0.1 <= high for low, high in ends])
    plain, corrected = np.mean(covered, axis=0)
    assert plain < 0.1
    assert corrected > plain + 0.3


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover_the_true_mean_in_95_of_100_data_sets(seeds):
    """All simulated data sets are the methods of one call: its draws are independent of the data."""
    generator, simulations = np.random.default_rng(3), 4000
    true = np.linspace(0, 0.2, seeds).mean() + 0.7 / 3.7  # every seed has a mean of its own
    values = [skewed(generator, simulations, 100) + shift for shift in np.linspace(0, 0.2, seeds)]
    low, high = bootstrap_means(values).interval()
    assert 0.93 <= ((low <= true) & (true <= high)).mean() <= 0.97


def test_seeds_with_the_same_images_are_no_further_images():
    """What is easy for one network is easy for the others: each value is that of its image, and some noise."""
    generator, simulations = np.random.default_rng(4), 2000
    of_images = generator.normal(size=(simulations, 60))
    values = [of_images + 0.3 * generator.normal(size=of_images.shape) for _ in range(3)]
    covered = []
    for given in (values, join_seeds(values)):
        low, high = bootstrap_means(given).interval()
        covered.append(((low <= 0) & (high >= 0)).mean())
    assert covered[0] < 0.8
    assert 0.92 <= covered[1] <= 0.97


def test_joined_seeds_are_the_mean_of_every_image():
    first, second = np.array([[1.0, 2.0, NAN], [5.0, NAN, NAN]]), np.array([[3.0, NAN, NAN], [6.0, 7.0, NAN]])
    (found,) = join_seeds([first, second])
    np.testing.assert_array_equal(found, [[2, 2, NAN], [5.5, 7, NAN]])
    one = bootstrap_means([first[:, :2]])
    twice = bootstrap_means(join_seeds([first[:, :2], first[:, :2]]))
    np.testing.assert_array_equal(one.resampled, twice.resampled)
    with pytest.raises(ValueError, match=r"different numbers of images, \[3, 2\]: only values of the same images"):
        join_seeds([first, second[:, :2]])


# --- one image, constant values, missing values, ties ------------------------------------------------------------------


def test_one_image_has_no_interval():
    found = bootstrap_means([np.array([[0.2], [0.9]])])
    assert found.estimate.tolist() == [0.2, 0.9]
    assert np.isnan(found.interval()).all()


def test_one_image_with_a_value_in_a_seed_gives_no_interval():
    values = [skewed(np.random.default_rng(6), 2, 30), np.full((2, 30), NAN)]
    values[1][:, 4] = 0.5
    assert np.isnan(bootstrap_means(values).interval()).all()
    values[1][0, 5] = 0.7
    assert np.isnan(bootstrap_means(values).interval()).tolist() == [[False, True]] * 2


def test_values_that_are_all_the_same_tell_nothing_about_other_images():
    values = np.stack([np.full(20, 0.25), np.zeros(20), np.linspace(0, 1, 20)])
    low, high = mean_intervals([values])
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [True, True, False]
    assert bootstrap_means([values]).interval()[:, 0].tolist() == [0.25, 0.25], "of a difference it says something"
    assert low[2] < 0.5 < high[2]


def test_a_method_without_values_has_no_mean():
    values = [np.array([[NAN] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]])]
    found = bootstrap_means(values)
    assert np.isnan(found.estimate).tolist() == [True, False]
    assert np.isnan(found.interval()).tolist() == [[True, False]] * 2


def test_an_infinite_value_leaves_no_interval():
    values = np.stack([np.linspace(0, 1, 20), np.linspace(2, 3, 20), np.full(20, 5.0), np.full(20, 6.0)])
    values[2:, 3] = np.inf
    found = bootstrap_means([values])
    assert found.estimate.tolist() == [0.5, 2.5, np.inf, np.inf]
    assert np.isnan(found.interval()).tolist() == [[False, False, True, True]] * 2


def test_no_image_at_all():
    found = bootstrap_means([np.zeros((2, 0))])
    assert np.isnan(found.estimate).all()
    assert np.isnan(found.interval()).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "for every seed"),
        ([np.zeros(3)], r"got the shapes \[\(3,\)\]"),
        ([np.zeros((2, 3)), np.zeros((1, 3))], "with the same methods"),
    ],
)
def test_bad_values_are_refused_with_a_sentence(values, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_means(values)


# --- statistics that are no means over images --------------------------------------------------------------------------


def test_a_mean_is_a_statistic_of_sums():
    values = [skewed(np.random.default_rng(12), 2, count) for count in (30, 20)]
    sums = [np.stack([stratum.T, np.ones_like(stratum.T)], axis=1) for stratum in values]
    found = bootstrap_of_sums(sums, lambda sums: sums[:, 0] / sums[:, 1])
    expected = bootstrap_means(values)
    assert np.allclose(found.estimate, expected.estimate)
    assert np.allclose(found.resampled, expected.resampled)


def test_an_area_under_a_pooled_curve_against_a_slow_transcription():
    """Precision over thresholds of the pixels of all images, as PxAP: no mean of the images' own precisions."""
    generator = np.random.default_rng(13)
    inside, outside = generator.integers(0, 9, (25, 6)), generator.integers(0, 9, (25, 6))
    histograms = np.stack([inside, outside], axis=1).astype(float)
    histograms[3, 0, 2] = NAN  # this image is left out

    def area(sums):
        above = sums[:, :, ::-1].cumsum(axis=2)
        return (above[:, 0] / above.sum(axis=1)).mean(axis=1)

    found = bootstrap_of_sums([histograms], area)
    draws = np.random.default_rng([0, 0])
    for resample in range(50):
        hits = pixels = np.zeros(6)
        for image in draws.integers(25, size=25):
            if image != 3:
                hits, pixels = hits + inside[image], pixels + inside[image] + outside[image]
        expected = np.mean([hits[place:].sum() / pixels[place:].sum() for place in range(6)])
        assert np.isclose(found.resampled[resample], expected)
    kept = np.delete(np.stack([inside, outside], axis=1), 3, axis=0)
    assert np.isclose(found.estimate, area(kept.sum(axis=0)[None])[0])
    low, high = found.interval()
    assert low < found.estimate < high
    better = histograms + np.stack([np.full((25, 6), 2.0), np.zeros((25, 6))], axis=1)
    assert (bootstrap_of_sums([better], area) - found).interval()[0] > 0, "the same images are drawn for both"


def test_one_histogram_has_no_interval_and_no_seed_is_refused():
    assert np.isnan(bootstrap_of_sums([np.ones((1, 4))], lambda sums: sums.sum(axis=1)).interval()).all()
    with pytest.raises(ValueError, match="there is no seed"):
        bootstrap_of_sums([], lambda sums: sums)


# --- speed -------------------------------------------------------------------------------------------------------------


def test_thirty_methods_and_five_hundred_images_take_well_under_a_second():
    values = [skewed(np.random.default_rng(14), 30, 500)]
    began = time.process_time()
    bootstrap_means(values).interval()
    assert time.process_time() - began < 1


def test_blocks_of_draws_change_nothing(monkeypatch):
    values = [skewed(np.random.default_rng(15), 3, 40)]
    expected = bootstrap_means(values).resampled
    of_counts = bootstrap_of_counts(40, lambda counts: counts @ values[0][0]).resampled
    monkeypatch.setattr("softcam_hub.evaluation.statistics.AT_ONCE", 999)
    assert np.allclose(bootstrap_means(values).resampled, expected, rtol=1e-12)
    assert np.allclose(bootstrap_of_counts(40, lambda counts: counts @ values[0][0]).resampled, of_counts, rtol=1e-12)
