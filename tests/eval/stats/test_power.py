import numpy as np
import pytest
from scipy import stats as scipy_stats

from eval.stats import benjamini_hochberg, least_p, minimum_detectable, sign_flip_p


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


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
