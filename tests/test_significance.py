"""Differences of methods: a permutation test by hand and transcribed, its error rate, Holm, groups and ranks."""

from itertools import product

import numpy as np
import pytest
from helpers.random_values import skewed
from scipy.stats import false_discovery_control, permutation_test
from statsmodels.stats.multitest import multipletests

from softcam_hub.evaluation.significance import (
    best_group,
    compare_methods,
    compare_sums,
    holm,
    permutation_p_values,
    significant_ranks,
)
from softcam_hub.evaluation.statistics import means

NAN = np.nan


# --- the permutation test ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [(6,), (3, 4), (2, 1, 5)])
def test_p_is_the_share_of_all_signs_with_a_mean_as_large(images):
    generator = np.random.default_rng(0)
    differences = [generator.normal(0.5, 1, (3, count)) for count in images]
    differences[0][1, 0] = NAN
    found = permutation_p_values(differences, 20000)
    for method in range(3):
        own = [stratum[method][~np.isnan(stratum[method])] for stratum in differences]
        mean = np.mean([one.mean() for one in own])
        as_large = []
        for signs in product((1, -1), repeat=sum(map(len, own))):
            left, moved = list(signs), []
            for one in own:
                moved.append(np.mean([left.pop() * value for value in one]))
            as_large.append(abs(np.mean(moved)) >= abs(mean) - 1e-12)
        assert found[method] == pytest.approx(np.mean(as_large), abs=0.012)


def test_p_is_that_of_scipy():
    first, second = skewed(np.random.default_rng(1), 2, 30)
    theirs = permutation_test(
        (first, second), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=20000, rng=0
    ).pvalue
    assert permutation_p_values([(first - second)[None]], 20000)[0] == pytest.approx(theirs, abs=0.012)


@pytest.mark.parametrize("images", [2, 3, 5, 8, 20, 100])
def test_equal_methods_are_told_apart_in_5_of_100_data_sets_at_most(images):
    generator, simulations = np.random.default_rng(4), 2000
    image = skewed(generator, simulations, images)  # what the methods share, as images are easy or hard for all
    first, second = (image + 0.3 * skewed(generator, simulations, images) for _ in range(2))
    share = (permutation_p_values([first - second]) <= 0.05).mean()
    assert share <= 0.065
    assert share >= 0.035 or images < 8
    if images < 6:
        assert share == 0, "of 2^n signs, at least two have a mean as large"


def test_two_images_tell_nothing_apart_however_far_they_are():
    assert compare_methods([np.array([1.0, 1.0])], [np.array([9.0, 9.0])]).p == pytest.approx(0.5, abs=0.05)


def test_blocks_of_draws_change_nothing(monkeypatch):
    differences = [skewed(np.random.default_rng(15), 3, 40) - 0.15]
    expected = permutation_p_values(differences)
    monkeypatch.setattr("softcam_hub.evaluation.statistics.AT_ONCE", 999)
    assert np.allclose(permutation_p_values(differences), expected, rtol=1e-12)


def test_a_mean_is_a_statistic_of_sums():
    first, second = skewed(np.random.default_rng(2), 2, 25)
    second = second + 0.05
    ours = compare_sums(first[:, None], second[:, None], lambda sums: sums[:, 0] / 25)
    theirs = compare_methods([first], [second])
    assert ours[:4] == pytest.approx(theirs[:4])
    assert ours[4:] == pytest.approx(theirs[4:], abs=0.02)


def test_a_statistic_of_sums_by_all_exchanges():
    """The share of all pixels that are hits, and not the mean of shares: images count by their pixels."""
    generator = np.random.default_rng(3)
    pixels = generator.integers(5, 50, (7, 2)).astype(float)
    hits = np.floor(pixels * generator.uniform(0.2, 0.9, (7, 2)))
    sides = [np.stack([hits[:, side], pixels[:, side]], axis=1) for side in (0, 1)]
    sides[0][2, 1] = NAN  # this image is left out
    found = compare_sums(*sides, lambda sums: sums[:, 0] / sums[:, 1])
    first, second = (np.delete(side, 2, axis=0) for side in sides)
    assert found.images == 6
    assert found.difference == pytest.approx(found.first - found.second)
    assert found.first == pytest.approx(first[:, 0].sum() / first[:, 1].sum())
    as_large = []
    for swapped in product((False, True), repeat=6):
        chosen = np.array(swapped)[:, None]
        a, b = (np.where(chosen, *pair).sum(axis=0) for pair in ((second, first), (first, second)))
        as_large.append(abs(a[0] / a[1] - b[0] / b[1]) >= abs(found.difference) - 1e-12)
    assert found.p == pytest.approx(np.mean(as_large), abs=0.03)


# --- what tells nothing apart ------------------------------------------------------------------------------------------


def test_one_image_tells_nothing_apart():
    assert best_group([np.array([[0.2], [0.9]])], True).tolist() == [True, True]
    assert significant_ranks([np.array([[0.2], [0.9]])], True).tolist() == [1.0, 1.0]
    one = compare_methods([np.array([0.2])], [np.array([0.9])])
    assert one[:4] == (1, 0.2, 0.9, pytest.approx(-0.7))
    assert np.isnan(one.low)
    assert np.isnan(one.high)
    assert one.p == 1


def test_a_method_without_values_has_no_rank():
    values = [np.array([[NAN] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]])]
    assert np.isnan(permutation_p_values(values)).tolist() == [True, False]
    assert best_group(values, True).tolist() == [False, True]
    assert best_group([np.full((2, 5), NAN)], True).tolist() == [False, False]
    assert np.isnan(significant_ranks(values, True)).tolist() == [True, False]


def test_an_infinite_value_tells_nothing_apart():
    values = np.stack([np.linspace(0, 1, 20), np.linspace(2, 3, 20), np.full(20, 5.0), np.full(20, 6.0)])
    values[2:, 3] = np.inf
    assert best_group([values], True).tolist() == [True] * 4
    assert best_group([values], False).tolist() == [True, False, True, True]


def test_equal_methods_share_everything_and_rounding_noise_is_no_difference():
    values = skewed(np.random.default_rng(7), 50)
    noisy = np.stack([values, values + 1e-6, values - 0.3])
    assert best_group([noisy], True).tolist() == [True, True, False]
    assert best_group([noisy], False).tolist() == [False, False, True]
    assert significant_ranks([100 * noisy], True).tolist() == [1, 1, 2], "in percent as well"
    same = compare_methods([values], [values + 1e-6])
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_one_large_value_hides_no_difference():
    first, second = np.append(np.ones(99), 1e6), np.append(np.full(99, 2.0), 1e6)
    found = compare_methods([first], [second])
    assert found.difference == pytest.approx(found.first - found.second)
    assert found.high < 0
    assert found.p <= 0.01


def test_a_method_that_is_ahead_on_the_images_of_both_is_not_worse():
    """The first method has only easy images, on which the second is better still."""
    easy, hard = np.linspace(0.7, 0.8, 20), np.linspace(0.1, 0.2, 20)
    values = np.stack([np.concatenate([easy, np.full(20, NAN)]), np.concatenate([easy + 0.1, hard])])
    assert means([values])[0] > means([values])[1]
    assert best_group([values], True).tolist() == [True, True]
    assert best_group([-values], False).tolist() == [True, True]


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
    assert found.p == pytest.approx(2 / 16, abs=0.03), "all four differences keep their sign, or all change it"


def test_the_group_of_the_best_holds_the_best_method():
    """Among six methods that are equally good, the first is told from the best of the others in few data sets only."""
    generator = np.random.default_rng(5)
    found = [best_group([skewed(generator, 6, 60)], True)[0] for _ in range(200)]
    assert np.mean(found) >= 0.95


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


def test_holm_is_that_of_statsmodels():
    p_values = np.random.default_rng(17).uniform(size=40) ** 5
    assert np.allclose(holm(p_values), multipletests(p_values, method="holm")[1])


def test_holm_lies_between_bonferroni_and_benjamini_hochberg():
    p_values = np.random.default_rng(11).uniform(size=50) ** 4
    found = holm(p_values)
    assert (found <= np.minimum(50 * p_values, 1) + 1e-12).all()
    assert (found >= false_discovery_control(p_values) - 1e-12).all()
