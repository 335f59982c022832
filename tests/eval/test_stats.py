import numpy as np
import pytest
from scipy import stats as scipy_stats

from eval.stats import (
    agreement,
    benjamini_hochberg,
    bradley_terry,
    least_p,
    mean_interval,
    minimum_detectable,
    share_interval,
    sign_flip_p,
    sign_test_p,
    win_rate_interval,
)


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


@pytest.mark.parametrize(("prompts", "expected"), [(8, 1.1560), (24, 0.5972), (72, 0.3347), (400, 0.1404)])
def test_the_detectable_effect_is_the_power_of_the_t_test(prompts, expected):
    """Expected: what statsmodels 0.15 gives as TTestPower().solve_power(nobs, alpha=0.05, power=0.8)."""
    deltas = scipy_stats.norm.ppf((np.arange(prompts) + 0.5) / prompts)
    assert minimum_detectable(deltas / deltas.std(ddof=1)) == pytest.approx(expected, abs=1e-4)


def test_a_lone_difference_among_many_claims_must_be_larger():
    deltas = scipy_stats.norm.ppf((np.arange(72) + 0.5) / 72)
    deltas /= deltas.std(ddof=1)
    assert minimum_detectable(deltas, claims=10) == pytest.approx(0.4423, abs=1e-4)  # statsmodels, alpha 0.005


def test_where_nothing_could_be_shown_there_is_no_detectable_effect():
    assert minimum_detectable(array(1)) is None
    assert minimum_detectable(array(0, 0, 0)) is None
    assert minimum_detectable(array(-1, 0, 1, 2, 3)) is None  # five signs alone cannot give p < 0.05
    assert minimum_detectable(array(-1, 0, 1, 2, 3, 4)) is not None
    assert minimum_detectable(array(-1, 0, 1, 2, 3, 4), claims=2) is None
    assert least_p(5) == sign_flip_p(array(1, 2, 3, 4, 5))
    assert least_p(30) == sign_flip_p(np.arange(1.0, 31.0))


def test_shares_that_hardly_change_have_the_doubt_of_their_interval_in_the_detectable_effect_too():
    one = np.append(np.zeros(71), 1.0)
    plain, doubtful = minimum_detectable(one), minimum_detectable(one, bound=1.0)
    assert plain is not None
    assert doubtful is not None
    assert doubtful == minimum_detectable(np.append(one, [1.0, -1.0]))
    assert doubtful > 1.5 * plain


@pytest.mark.parametrize("claims", [1, 10])
def test_the_detectable_effect_is_seen_in_four_of_five_repeats(claims):
    rng, seen, repeats = np.random.default_rng(2), 0, 300
    spread = scipy_stats.norm.ppf((np.arange(72) + 0.5) / 72)
    effect = minimum_detectable(spread / spread.std(ddof=1), claims=claims)
    assert effect is not None
    for _ in range(repeats):
        deltas = [rng.normal(effect if claim == 0 else 0.0, 1, 72) for claim in range(claims)]
        seen += benjamini_hochberg([sign_flip_p(values, resamples=1999) for values in deltas])[0] < 0.05
    assert 0.74 <= seen / repeats <= 0.87


def test_the_sign_test_counts_only_prompts_that_are_decided():
    assert sign_test_p(8, 0) == pytest.approx(2 / 256)
    assert sign_test_p(5, 5) == 1.0
    assert sign_test_p(0, 0) == 1.0


def test_benjamini_hochberg_names_no_winner_among_equals_more_than_once_in_twenty():
    rng = np.random.default_rng(0)
    named = sum(min(benjamini_hochberg(rng.random(8).tolist())) < 0.05 for _ in range(2000)) / 2000
    assert 0.035 <= named <= 0.065


def battles(rng, strength, prompts, shared=0.8):
    """Win tables of models on shared prompts; ``shared`` is how much a prompt favours a model all by itself."""
    taste = shared * rng.normal(size=(prompts, len(strength)))
    wins = np.zeros((prompts, len(strength), len(strength)))
    for i in range(len(strength)):
        for j in range(i):
            odds = strength[i] - strength[j] + taste[:, i] - taste[:, j]
            wins[:, i, j] = (rng.random((4, prompts)) < 1 / (1 + np.exp(-odds))).mean(axis=0)
            wins[:, j, i] = 1 - wins[:, i, j]
    return wins


def test_ratings_of_two_models_are_the_log_odds_of_their_wins():
    wins = np.zeros((1000, 2, 2))
    wins[:750, 1, 0] = wins[750:, 0, 1] = 1
    (base, low, high), (rating, *_) = bradley_terry(wins)
    assert (base, low, high) == (0, 0, 0)
    assert rating == pytest.approx(400 * np.log10(3), abs=0.5)


def test_ratings_agree_with_scipys_maximum_likelihood():
    from scipy.optimize import minimize

    wins = battles(np.random.default_rng(4), [0, 0.5, -0.3, 1.0], 300)
    won = wins.sum(axis=0) + 0.25 * (1 - np.eye(4))

    def loss(free):
        theta = np.array([0, *free])
        return (won * np.log1p(np.exp(theta[None] - theta[:, None]))).sum()

    expected = minimize(loss, np.zeros(3)).x * 400 / np.log(10)
    assert [row[0] for row in bradley_terry(wins)[1:]] == pytest.approx(expected, abs=0.05)


def test_intervals_of_ratings_resample_prompts_and_so_hold_the_truth():
    rng, strength = np.random.default_rng(0), [0.0, 0.2, 0.5]
    truth = [row[0] for row in bradley_terry(battles(rng, strength, 100_000), resamples=2)]
    covered = 0
    for _ in range(300):
        rows = bradley_terry(battles(rng, strength, 100), resamples=300)
        covered += sum(low <= true <= high for true, (_, low, high) in zip(truth[1:], rows[1:], strict=True))
    assert 0.92 <= covered / 600 <= 0.975


def test_a_model_that_always_wins_keeps_a_finite_rating():
    wins = np.zeros((20, 2, 2))
    wins[:, 1, 0] = 1
    assert 400 < bradley_terry(wins)[1][0] < 1000


def test_scorers_that_agree_correlate_and_those_that_do_not_do_not():
    rng = np.random.default_rng(0)
    one, noise = rng.normal(size=200), rng.normal(size=200)
    same, apart, turned = agreement(one, one**3), agreement(one, noise), agreement(one, -one)
    assert same is not None
    assert apart is not None
    assert turned is not None
    assert (same[0], same[3]) == (pytest.approx(1), 1.0)
    assert turned[0] == pytest.approx(-1)
    assert same[4] == 200
    assert apart[1] < 0 < apart[2]
    assert apart[0] == pytest.approx(scipy_stats.spearmanr(one, noise)[0])
    assert agreement(one, np.zeros(200)) is None


def test_the_models_of_a_prompt_are_no_further_evidence_of_agreement():
    rng = np.random.default_rng(1)
    one = rng.normal(size=(40, 1))
    other = one + rng.normal(size=(40, 1))
    single, copied = agreement(one[:, 0], other[:, 0]), agreement(one.repeat(4, axis=1), other.repeat(4, axis=1))
    assert single is not None
    assert copied is not None
    assert copied[:4] == pytest.approx(single[:4], abs=0.02)
    assert (single[4], copied[4]) == (40, 160)
