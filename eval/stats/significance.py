"""Could it be chance? Tests on paired deltas, and what to make of many of them at once."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from eval.stats.intervals import RESAMPLES, SEED, Values

EXACT = 13
"""Differing prompts up to which every pattern of signs is tried."""


def sign_flip_p(deltas: Values, *, resamples: int = RESAMPLES, seed: int = SEED) -> float:
    """Two-sided p of the paired permutation test: were the models equal, every delta's sign would be a coin toss.

    Exact for up to ``EXACT`` differing prompts; else from ``resamples`` random sign patterns, so never below
    1 / (1 + ``resamples``).
    """
    moved = deltas[deltas != 0]
    n = len(moved)
    if n == 0:
        return 1.0
    reach = abs(moved.sum()) * (1 - 1e-9)
    if n <= EXACT:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ moved) >= reach))
    rng = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // n)
    hits = 0
    for done in range(0, resamples, rows):
        signs = rng.integers(0, 2, (min(rows, resamples - done), n), dtype=np.int8) * np.int8(2) - np.int8(1)
        hits += int((np.abs(signs @ moved) >= reach).sum())
    return (1 + hits) / (1 + resamples)


def least_p(prompts: int) -> float:
    """The smallest p that :func:`sign_flip_p` can give on so many prompts, however much they differ."""
    return 2.0 ** (1 - prompts) if prompts <= EXACT else 1 / (1 + RESAMPLES)


def sign_test_p(wins: int, losses: int) -> float:
    """Two-sided p of the sign test: were the models equal, a prompt that is not tied would be won by a coin toss."""
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p (1995): of the differences named below a level, at most that share is expected to be chance.

    With no difference anywhere, this is also the chance of naming even one.
    """
    return stats.false_discovery_control(p_values, method="bh").tolist() if len(p_values) else []
