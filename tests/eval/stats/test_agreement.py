import numpy as np
import pytest
from scipy import stats as scipy_stats

from eval.stats import agreement


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
