"""Bootstrap of means over images: numbers worked out by hand, a slow transcription, coverage, Holm, groups and ranks."""

import time

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from softcam_hub.evaluation.statistics import (
    RESAMPLES,
    Bootstrap,
    best_group,
    bootstrap_means,
    bootstrap_of_sums,
    compare_methods,
    draw_counts,
    holm,
    means,
    significant_ranks,
)

NAN = np.nan


def skewed(generator, *shape):
    """Values in [0, 1] with a skewness of about 1.3, as shares of a map in a small lesion have."""
    return generator.beta(0.7, 3, size=shape)


# --- intervals and p-values, by hand -----------------------------------------------------------------------------------


def test_the_interval_leaves_out_a_fortieth_at_each_end():
    found = Bootstrap(np.array(50.0), np.arange(1.0, 80.0))  # 79 resamples: 80 / 40 = 2 places at each end
    assert found.interval().tolist() == [2.0, 78.0]
    assert np.isnan(Bootstrap(np.array(1.0), np.arange(1.0, 39.0)).interval()).all(), "38 resamples have no 2.5 %"


def test_resamples_without_a_value_are_left_out():
    resampled = np.concatenate([np.full(500, NAN), np.arange(1.0, 80.0)])
    assert Bootstrap(np.array(50.0), resampled).interval().tolist() == [2.0, 78.0]
    assert Bootstrap(np.array(50.0), resampled).p_value() == 2 * 1 / 80


@pytest.mark.parametrize(("negative", "p"), [(0, 2 / 80), (1, 4 / 80), (2, 6 / 80), (70, 20 / 80), (79, 2 / 80)])
def test_p_is_twice_the_share_beyond_zero(negative, p):
    resampled = np.where(np.arange(79) < negative, -1.0, 1.0)
    assert Bootstrap(np.array(0.5), resampled).p_value() == p


def test_the_interval_excludes_zero_exactly_where_p_is_significant():
    generator = np.random.default_rng(0)
    shifts = np.linspace(-4, 4, 400)
    found = Bootstrap(shifts, generator.normal(size=(RESAMPLES, 400)) + shifts)
    low, high = found.interval()
    outside, p = (low > 0) | (high < 0), found.p_value()
    assert (outside == (p <= 0.05)).all()
    assert 0 < outside.sum() < 400


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
    assert nothing.p_value().tolist() == [1] * 5, "rounding is no difference"


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


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover_the_true_mean_in_95_of_100_data_sets(seeds):
    """All simulated data sets are the methods of one call: its draws are independent of the data."""
    generator, simulations = np.random.default_rng(3), 4000
    true = np.linspace(0, 0.2, seeds).mean() + 0.7 / 3.7  # every seed has a mean of its own
    values = [skewed(generator, simulations, 100) + shift for shift in np.linspace(0, 0.2, seeds)]
    low, high = bootstrap_means(values).interval()
    assert 0.93 <= ((low <= true) & (true <= high)).mean() <= 0.97


def test_a_difference_of_equal_methods_is_significant_in_5_of_100_data_sets():
    generator, simulations = np.random.default_rng(4), 2000
    image = skewed(generator, simulations, 100)  # what the methods share, as images are easy or hard for all
    first, second = (image + 0.3 * skewed(generator, simulations, 100) for _ in range(2))
    p_values = bootstrap_means([first - second]).p_value()
    assert 0.03 <= (p_values <= 0.05).mean() <= 0.07


def test_the_group_of_the_best_holds_the_best_method():
    """Among six methods that are equally good, the first is told from the best of the others in few data sets only."""
    generator = np.random.default_rng(5)
    found = [best_group([skewed(generator, 6, 60)], True)[0] for _ in range(200)]
    assert np.mean(found) >= 0.95


# --- one image, constant values, missing values, ties ------------------------------------------------------------------


def test_one_image_has_no_interval_and_tells_nothing_apart():
    found = bootstrap_means([np.array([[0.2], [0.9]])])
    assert found.estimate.tolist() == [0.2, 0.9]
    assert np.isnan(found.interval()).all()
    assert found.p_value().tolist() == [1.0, 1.0]
    assert best_group([np.array([[0.2], [0.9]])], True).tolist() == [True, True]
    assert significant_ranks([np.array([[0.2], [0.9]])], True).tolist() == [1.0, 1.0]
    one = compare_methods([np.array([0.2])], [np.array([0.9])])
    assert one[:4] == (1, 0.2, 0.9, pytest.approx(-0.7))
    assert np.isnan(one.low)
    assert np.isnan(one.high)
    assert one.p == 1


def test_one_image_with_a_value_in_a_seed_gives_no_interval():
    values = [skewed(np.random.default_rng(6), 2, 30), np.full((2, 30), NAN)]
    values[1][:, 4] = 0.5
    assert np.isnan(bootstrap_means(values).interval()).all()
    values[1][0, 5] = 0.7
    assert np.isnan(bootstrap_means(values).interval()).tolist() == [[False, True]] * 2


def test_constant_values_have_an_interval_without_width():
    found = bootstrap_means([np.full((1, 20), 0.25)])
    assert found.interval()[:, 0].tolist() == [0.25, 0.25]
    assert found.p_value().tolist() == [2 / 2000]
    zero = bootstrap_means([np.zeros((1, 20))])
    assert zero.interval()[:, 0].tolist() == [0, 0]
    assert zero.p_value().tolist() == [1]


def test_a_method_without_values_has_no_mean_and_no_rank():
    values = [np.array([[NAN] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]])]
    found = bootstrap_means(values)
    assert np.isnan(found.estimate).tolist() == [True, False]
    assert np.isnan(found.interval()).tolist() == [[True, False]] * 2
    assert np.isnan(found.p_value()).tolist() == [True, False]
    assert best_group(values, True).tolist() == [False, True]
    assert best_group([np.full((2, 5), NAN)], True).tolist() == [False, False]
    assert np.isnan(significant_ranks(values, True)).tolist() == [True, False]


def test_equal_methods_share_everything_and_rounding_noise_is_no_difference():
    values = skewed(np.random.default_rng(7), 50)
    noisy = np.stack([values, values + 1e-6, values - 0.3])
    assert best_group([noisy], True).tolist() == [True, True, False]
    assert best_group([noisy], False).tolist() == [False, False, True]
    assert significant_ranks([100 * noisy], True).tolist() == [1, 1, 2], "in percent as well"
    same = compare_methods([values], [values + 1e-6])
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_an_infinite_value_leaves_no_interval_and_tells_nothing_apart():
    values = np.stack([np.linspace(0, 1, 20), np.linspace(2, 3, 20), np.full(20, 5.0), np.full(20, 6.0)])
    values[2:, 3] = np.inf
    found = bootstrap_means([values])
    assert found.estimate.tolist() == [0.5, 2.5, np.inf, np.inf]
    assert np.isnan(found.interval()).tolist() == [[False, False, True, True]] * 2
    assert best_group([values], True).tolist() == [True] * 4
    assert best_group([values], False).tolist() == [True, False, True, True]


def test_a_method_that_is_ahead_on_the_images_of_both_is_not_worse():
    """The first method has only easy images, on which the second is better still."""
    easy, hard = np.linspace(0.7, 0.8, 20), np.linspace(0.1, 0.2, 20)
    values = np.stack([np.concatenate([easy, np.full(20, NAN)]), np.concatenate([easy + 0.1, hard])])
    assert means([values])[0] > means([values])[1]
    assert best_group([values], True).tolist() == [True, True]
    assert best_group([-values], False).tolist() == [True, True]


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


# --- comparisons, groups and ranks -------------------------------------------------------------------------------------


def test_two_methods_are_compared_on_the_images_that_both_have():
    first = [np.array([0.5, 0.7, NAN, 0.9]), np.array([0.2, 0.4])]
    second = [np.array([0.4, NAN, 0.1, 0.5]), np.array([0.1, 0.1])]
    found = compare_methods(first, second)
    assert found.images == 4
    assert found.first == pytest.approx((0.7 + 0.3) / 2)
    assert found.second == pytest.approx((0.45 + 0.1) / 2)
    assert found.difference == pytest.approx(found.first - found.second)
    # (0.1, 0.4) in the first seed and (0.1, 0.3) in the second, each drawn with replacement
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.35)
    assert 2 / 2000 <= found.p < 2 / 1800, "some resamples of the first seed have neither of its two images"
    assert found.low > 0


def test_the_best_group_is_that_of_holm_over_all_other_methods():
    generator = np.random.default_rng(8)
    values = skewed(generator, 7, 80) + np.array([0.3, 0.28, 0.22, 0.24, 0.2, 0.0, 0.25])[:, None]
    best = int(values.mean(axis=1).argmax())
    others = [method for method in range(7) if method != best]
    p_values = np.array([compare_methods([values[best]], [values[other]]).p for other in others])
    expected = {best} | {other for other, p in zip(others, holm(p_values), strict=True) if p > 0.05}
    found = set(np.flatnonzero(best_group([values], True)).tolist())
    assert found == expected
    assert 1 < len(found) < 7


def test_many_methods_can_be_told_apart():
    values = skewed(np.random.default_rng(9), 1, 50) + np.linspace(0, 3, 121)[:, None]
    assert best_group([values], True).sum() == 1, "with 1,999 resamples, 120 times the smallest p would be 0.12"


def test_significant_ranks_by_hand():
    base = np.linspace(0, 1, 60)
    turned = np.roll(base, 30)  # the same values on other images
    values = np.stack([base, base + 5, turned + 5.01, base + 2, base - 3])
    assert significant_ranks([values], True).tolist() == [3, 1, 1, 2, 4]
    assert significant_ranks([values], False).tolist() == [2, 4, 4, 3, 1]
    assert significant_ranks([values, values[:, ::-1] + 1], True).tolist() == [3, 1, 1, 2, 4]


# --- Holm --------------------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    assert np.allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert np.allclose(holm([0.6, 0.5]), [1, 1])
    assert np.allclose(holm([0.02, NAN, 0.02]), [0.04, NAN, 0.04], equal_nan=True)
    assert holm([]).tolist() == []
    assert holm([0.3]).tolist() == [0.3]


def test_holm_is_a_slow_transcription():
    generator = np.random.default_rng(10)
    for tests in (2, 5, 12):
        p_values = generator.uniform(size=tests) ** 3
        adjusted = []
        for own in p_values:  # the largest over the smaller or equal values of (number that is at least as large) · p
            smaller = [p for p in p_values if p <= own]
            adjusted.append(min(1.0, max(p * (p_values >= p).sum() for p in smaller)))
        assert np.allclose(holm(p_values), adjusted)


def test_holm_lies_between_bonferroni_and_benjamini_hochberg():
    p_values = np.random.default_rng(11).uniform(size=50) ** 4
    found = holm(p_values)
    assert (found <= np.minimum(50 * p_values, 1) + 1e-12).all()
    assert (found >= false_discovery_control(p_values) - 1e-12).all()


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
    monkeypatch.setattr("softcam_hub.evaluation.statistics.AT_ONCE", 999)
    assert np.allclose(bootstrap_means(values).resampled, expected, rtol=1e-12)
