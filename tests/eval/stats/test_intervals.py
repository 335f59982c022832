import numpy as np
import pytest
from scipy import stats as scipy_stats

from eval.stats import mean_interval, share_interval, win_rate_interval


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_equal_values_give_the_point():
    assert mean_interval(array(2, 2, 2)) == (2, 2)
    assert mean_interval(array(5)) == (5, 5)


def test_the_interval_of_values_is_students():
    values = np.random.default_rng(1).normal(size=25)
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    low, high = mean_interval(values)
    assert mean_interval(values + 1) == pytest.approx((low + 1, high + 1))


def test_where_hardly_a_prompt_changes_two_more_count_at_the_bounds():
    assert mean_interval(np.zeros(72)) == (0, 0)
    still = mean_interval(np.zeros(72), bound=1.0)
    assert still == pytest.approx((-0.038, 0.038), abs=0.001)
    three, four = (array(*[1] * k, *[0] * (72 - k)) for k in (3, 4))
    assert mean_interval(three, bound=1.0) == mean_interval(np.append(three, [1, -1]))
    assert mean_interval(four, bound=1.0) == mean_interval(four)


def deltas_of_shares(rng, prompts):
    """Differences of two right-or-wrong scores, mean 0.15."""
    return rng.choice([-1.0, 0.0, 1.0], size=prompts, p=[0.05, 0.75, 0.2]), 0.15


def deltas_of_four_images(rng, prompts):
    """A prompt's own effect, seen through four noisy images, averaged: mean 0.3."""
    return 0.3 + rng.normal(size=prompts) + 0.5 * rng.normal(size=(prompts, 4)).mean(axis=1), 0.3


def skewed_deltas(rng, prompts):
    """Small losses and now and then a large gain: mean 1."""
    return rng.gamma(2.0, 0.5, size=prompts), 1.0


def deltas_with_few_changes(rng, prompts):
    """Two equal models on 0/1 scores that differ on one prompt in ten."""
    return rng.choice([-1.0, 0.0, 1.0], size=prompts, p=[0.05, 0.9, 0.05]), 0.0


def shares_of_four_images(rng, prompts):
    """Four 0/1 images a prompt, hard and easy prompts: 0.1 more where there is room, mean 0.072."""
    chance = rng.choice([0.02, 0.5, 0.98], size=(prompts, 1), p=[0.35, 0.3, 0.35])
    better, base = rng.random((prompts, 4)) < np.minimum(1, chance + 0.1), rng.random((prompts, 4)) < chance
    return better.mean(axis=1) - base.mean(axis=1), 0.65 * 0.1 + 0.35 * 0.02


def tied_deltas(rng, prompts):
    """Real-valued scores of two models that drew mostly the same: mean 0.09."""
    return np.where(rng.random(prompts) < 0.7, 0.0, rng.normal(0.3, 1, prompts)), 0.09


@pytest.mark.parametrize("prompts", [72, 144, 500])
@pytest.mark.parametrize(
    "draw",
    [
        deltas_of_shares,
        deltas_with_few_changes,
        deltas_of_four_images,
        shares_of_four_images,
        tied_deltas,
        skewed_deltas,
    ],
)
def test_intervals_hold_the_truth_93_to_97_times_in_100(draw, prompts):
    rng, repeats, covered = np.random.default_rng(0), 3000, 0
    for _ in range(repeats):
        values, truth = draw(rng, prompts)
        low, high = mean_interval(values, bound=None if draw is skewed_deltas else 1.0)
        covered += low <= truth <= high
    assert 0.93 <= covered / repeats <= 0.97


@pytest.mark.parametrize("truth", [0.05, 0.5, 0.9])
def test_intervals_of_shares_hold_the_truth_93_to_97_times_in_100(truth):
    rng = np.random.default_rng(2)
    intervals = [share_interval((rng.random(144) < truth).astype(float)) for _ in range(3000)]
    assert 0.93 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.97


@pytest.mark.parametrize("ties", [0.0, 0.4])
def test_win_rate_intervals_hold_the_truth_93_to_97_times_in_100(ties):
    rng, repeats, covered = np.random.default_rng(1), 3000, 0
    truth = 0.6 * (1 - ties) + 0.5 * ties
    for _ in range(repeats):
        shares = (rng.random(120) < 0.6).astype(float)
        shares[rng.random(120) < ties] = 0.5
        low, high = win_rate_interval(shares)
        covered += low <= truth <= high
    assert 0.93 <= covered / repeats <= 0.97


def test_averaging_over_seeds_first_keeps_the_coverage_that_pooling_images_loses():
    rng = np.random.default_rng(0)
    averaged = pooled = 0
    for _ in range(300):
        images = rng.normal(size=(50, 1)) + 0.5 * rng.normal(size=(50, 4))
        low, high = mean_interval(images.mean(axis=1))
        averaged += low <= 0 <= high
        low, high = mean_interval(images.ravel())
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
