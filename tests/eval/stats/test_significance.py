import numpy as np
import pytest
from scipy import stats as scipy_stats

from eval.stats import benjamini_hochberg, sign_flip_p, sign_test_p


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


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


def test_the_sign_test_counts_only_prompts_that_are_decided():
    assert sign_test_p(8, 0) == pytest.approx(2 / 256)
    assert sign_test_p(5, 5) == 1.0
    assert sign_test_p(0, 0) == 1.0


def test_benjamini_hochberg_names_no_winner_among_equals_more_than_once_in_twenty():
    rng = np.random.default_rng(0)
    named = sum(min(benjamini_hochberg(rng.random(8).tolist())) < 0.05 for _ in range(2000)) / 2000
    assert 0.035 <= named <= 0.065
