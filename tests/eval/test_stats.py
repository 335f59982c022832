import numpy as np
import pytest
from scipy import stats as scipy_stats

from eval.stats import benjamini_hochberg, mean_interval, minimum_detectable, sign_flip_p, win_rate_interval


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_equal_values_give_the_point():
    assert mean_interval(array(2, 2, 2)) == (2, 2)
    assert mean_interval(array(5)) == (5, 5)


def test_the_interval_of_two_values_reaches_both_and_no_further():
    assert mean_interval(array(0, 1)) == (0, 1)


def test_the_interval_is_the_same_every_time_and_moves_with_the_data():
    values = np.random.default_rng(3).normal(size=40)
    low, high = mean_interval(values)
    assert mean_interval(values) == (low, high)
    assert mean_interval(values + 1) == pytest.approx((low + 1, high + 1))
    assert mean_interval(-values) != (low, high)


def test_the_interval_of_normal_data_is_students():
    values = np.random.default_rng(1).normal(size=25)
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    low, high = mean_interval(values)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.04)


@pytest.mark.parametrize("prompts", [30, 144])
def test_the_interval_covers_the_true_difference_nine_and_a_half_times_of_ten(prompts):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        deltas = rng.choice([-1.0, 0.0, 1.0], size=prompts, p=[0.05, 0.75, 0.2])
        low, high = mean_interval(deltas, resamples=999)
        covered += low <= 0.15 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_averaging_over_seeds_first_keeps_the_coverage_that_pooling_images_loses():
    rng = np.random.default_rng(0)
    averaged = pooled = 0
    for _ in range(300):
        images = rng.normal(size=(50, 1)) + 0.5 * rng.normal(size=(50, 4))
        low, high = mean_interval(images.mean(axis=1), resamples=499)
        averaged += low <= 0 <= high
        low, high = mean_interval(images.ravel(), resamples=499)
        pooled += low <= 0 <= high
    assert averaged / 300 > 0.92
    assert pooled / 300 < 0.75


def test_wins_without_ties_have_wilsons_interval():
    shares = array(*[1] * 30, *[0] * 10)
    expected = scipy_stats.binomtest(30, 40).proportion_ci(0.95, method="wilson")
    assert win_rate_interval(shares) == pytest.approx((expected.low, expected.high))
    low, high = win_rate_interval(array(*[1] * 10))
    assert 0.7 < low < 0.75
    assert high == pytest.approx(1)


def test_ties_make_the_interval_narrower_than_coin_tosses():
    low, high = win_rate_interval(array(*[0.5] * 80, *[1] * 12, *[0] * 8))
    wide_low, wide_high = win_rate_interval(array(*[1] * 52, *[0] * 48))
    assert 0 < high - low < 0.6 * (wide_high - wide_low)


def test_sign_flip_p_is_exact_for_few_prompts():
    assert sign_flip_p(array(1, 2, 3)) == 2 / 8
    assert sign_flip_p(array(1, 1, -1)) == 1.0
    assert sign_flip_p(array(0, 0)) == 1.0
    assert sign_flip_p(array(1, 2, 3, 0, 0)) == 2 / 8


def test_sign_flip_p_agrees_with_scipys_permutation_test():
    deltas = np.random.default_rng(5).normal(0.35, 1, 40)
    expected = scipy_stats.permutation_test(
        (deltas,), np.sum, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(1)
    ).pvalue
    assert sign_flip_p(deltas) == pytest.approx(expected, abs=0.01)


def test_sign_flip_p_is_uniform_when_the_models_are_equal():
    rng = np.random.default_rng(0)
    p = [sign_flip_p(rng.normal(size=30), resamples=199) for _ in range(400)]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.08


def test_benjamini_hochberg_by_hand():
    assert benjamini_hochberg([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert benjamini_hochberg([0.5, 0.9]) == pytest.approx([0.9, 0.9])
    assert benjamini_hochberg([]) == []


def test_minimum_detectable_effect_by_hand():
    deltas = array(-1, 1).repeat(50)
    spread = np.sqrt(100 / 99)
    assert minimum_detectable(deltas) == pytest.approx((1.959964 + 0.841621) * spread / 10, rel=1e-6)
    assert minimum_detectable(array(1)) is None
    assert minimum_detectable(array(0, 0, 0)) is None
