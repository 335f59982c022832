"""Do two scorers tell the same story?"""

import numpy as np
from scipy import stats

from eval.stats.intervals import LEVEL, SEED, Values


def agreement(
    one: Values, other: Values, *, resamples: int = 499, seed: int = SEED
) -> tuple[float, float, float, float, int] | None:
    """(rank correlation, low, high, share of equal signs, of how many) of two scorers' deltas on the same prompts.

    Spearman's correlation with a 95 % percentile interval over resampled prompts. The share is of those deltas on which
    both see a winner; 0.5 is what chance gives. None where a scorer sees no prompt differ, or fewer than three prompts.
    Deltas of several models are [prompts, models]: those of a prompt are drawn together.
    """
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(one), (resamples, len(one)))
    repeats = _spearman(one[drawn].reshape(resamples, -1), other[drawn].reshape(resamples, -1))
    low, high = np.nanquantile(repeats, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    decided = (one != 0) & (other != 0)
    same = float(np.mean(np.sign(one[decided]) == np.sign(other[decided]))) if decided.any() else 0.5
    return (
        float(_spearman(one.reshape(1, -1), other.reshape(1, -1))[0]),
        float(low),
        float(high),
        same,
        int(decided.sum()),
    )


def _spearman(one: Values, other: Values) -> Values:
    """Correlation of ranks along the last axis [..., n]; NaN where nothing varies."""
    a, b = (stats.rankdata(values, axis=-1) for values in (one, other))
    a, b = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
