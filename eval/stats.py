"""Paired statistics over prompts. Input everywhere: one number per prompt, already averaged over the prompt's seeds.

The prompt is the unit: images of one prompt resemble each other, so resampling images would give intervals that are
far too narrow. Averaging within a prompt first and then resampling prompts is the cluster bootstrap for equal clusters.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]
RESAMPLES = 9999
SEED = 0
LEVEL = 0.95
POWER = 0.8


def mean_interval(values: Values, *, resamples: int = RESAMPLES, seed: int = SEED) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` [n]: the expanded percentile bootstrap.

    The plain percentile interval is too narrow for few prompts (it uses the spread of n where a sample needs n - 1,
    and the normal where it needs Student's t); Hesterberg (arXiv 1411.5279) takes percentiles further out, so that it
    equals the t interval for normal data and stays asymmetric for skewed data. BCa was tried: it covered no better on
    paired differences of 0/1 scores, and it is undefined where all values are equal.
    With one value, or all equal, the interval is that value: there is no spread to measure.
    """
    n = len(values)
    if n < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    tail = stats.norm.cdf(stats.t.ppf((1 - LEVEL) / 2, n - 1) * np.sqrt(n / (n - 1)))
    rng = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // n)
    means = [
        values[rng.integers(0, n, (min(rows, resamples - done), n))].mean(axis=1) for done in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def win_rate_interval(shares: Values) -> tuple[float, float]:
    """95 % interval of the mean of ``shares`` [n prompts], each in 0..1 (ties count half, seeds are averaged).

    Wilson's score interval where every prompt is won or lost outright, since it holds near 0 and 1 where a bootstrap
    shrinks to a point; :func:`mean_interval` where there are ties or several images per prompt, since then shares vary
    less than coin tosses and Wilson's interval is up to twice too wide. n counts prompts, never images.
    """
    if np.ptp(shares) > 0 and not np.isin(shares, (0.0, 1.0)).all():
        low, high = mean_interval(shares)
        return max(0.0, low), min(1.0, high)
    n, p, z = len(shares), float(shares.mean()), float(stats.norm.ppf(0.5 + LEVEL / 2))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def sign_flip_p(deltas: Values, *, resamples: int = RESAMPLES, seed: int = SEED) -> float:
    """Two-sided p of the paired permutation test: were the models equal, every delta's sign would be a coin toss.

    Exact for up to 13 differing prompts; else from ``resamples`` random sign patterns, so never below 1 / (1 + them).
    """
    moved = deltas[deltas != 0]
    n = len(moved)
    if n == 0:
        return 1.0
    reach = abs(moved.sum()) * (1 - 1e-9)
    if n <= 13:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ moved) >= reach))
    rng = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // n)
    hits = 0
    for done in range(0, resamples, rows):
        signs = rng.integers(0, 2, (min(rows, resamples - done), n), dtype=np.int8) * np.int8(2) - np.int8(1)
        hits += int((np.abs(signs @ moved) >= reach).sum())
    return (1 + hits) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): the chance of even one false claim in the family stays below the level."""
    ps = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(ps, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1)))
    result = np.empty(len(ps))
    result[order] = stepped
    return result.tolist()


def minimum_detectable(deltas: Values) -> float | None:
    """The true mean difference that so many prompts with this spread would show in 80 % of repeats (two-sided 5 %).

    None where there is no spread to tell from: a single prompt, or all deltas equal.
    """
    if len(deltas) < 2 or np.ptp(deltas) == 0:
        return None
    z = stats.norm.ppf(0.5 + LEVEL / 2) + stats.norm.ppf(POWER)
    return float(z * deltas.std(ddof=1) / np.sqrt(len(deltas)))
