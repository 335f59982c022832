"""Intervals of means and win rates, over prompts."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]
RESAMPLES = 9999
SEED = 0
LEVEL = 0.95
FEW_CHANGES = 4
"""Prompts that must differ from 0 before the spread of bounded differences is believed."""


def mean_interval(values: Values, *, bound: float | None = None) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` [n], one per prompt: Student's t.

    In simulations with the numbers of prompts that are used it held the truth as often as it says, also on paired
    differences of 0/1 scores, where percentile, expanded percentile, BCa and studentised bootstraps held it less often
    (README, Decisions). Resampling adds nothing once seeds were averaged within their prompt.

    ``bound``: how far a value can be from 0 at all, for differences of shares. If fewer than ``FEW_CHANGES`` prompts
    differ, two more count, one at either bound (Bonett and Price, J. Educ. Behav. Stat. 37, 2012): with hardly anything
    seen to change, the spread that is seen says little. Without a bound, equal values give the point.
    """
    values = with_doubt(values, bound)
    n, mean = len(values), float(values.mean())
    if n < 2 or np.ptp(values) == 0:
        return mean, mean
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean - half, mean + half


def with_doubt(values: Values, bound: float | None) -> Values:
    """``values``, with one more at either ``bound`` where too few differ from 0 to believe their spread."""
    if bound is None or np.count_nonzero(values) >= FEW_CHANGES:
        return values
    return np.concatenate([values, [bound, -bound]])


def share_interval(shares: Values) -> tuple[float, float]:
    """95 % interval of the mean of ``shares`` [n], each in 0..1: Wilson's score interval where every prompt is all or
    nothing, since it holds near 0 and 1; else Student's t. n counts prompts, never images."""
    if np.ptp(shares) > 0 and not np.isin(shares, (0.0, 1.0)).all():
        low, high = mean_interval(shares)
        return max(0.0, low), min(1.0, high)
    n, p, z = len(shares), float(shares.mean()), float(stats.norm.ppf(0.5 + LEVEL / 2))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def win_rate_interval(shares: Values) -> tuple[float, float]:
    """95 % interval of the mean of ``shares`` [n prompts] that are won, each in 0..1 (ties half, seeds averaged).

    Wilson's where every prompt is won or lost outright. With ties or several images per prompt shares vary less than
    coin tosses and Wilson's was found up to twice too wide: then :func:`mean_interval` of what is off one half.
    """
    if np.isin(shares, (0.0, 1.0)).all():
        return share_interval(shares)
    low, high = mean_interval(shares - 0.5, bound=0.5)
    return max(0.0, 0.5 + low), min(1.0, 0.5 + high)
