import numpy as np
import pytest

from eval.stats import bradley_terry


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


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
