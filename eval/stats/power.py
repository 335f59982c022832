"""What so many prompts could have shown."""

import numpy as np
from scipy import optimize, stats

from eval.stats.intervals import LEVEL, Values, with_doubt
from eval.stats.significance import least_p

POWER = 0.8


def minimum_detectable(deltas: Values, *, claims: int = 1, bound: float | None = None) -> float | None:
    """The true mean difference that so many prompts with this spread would show in 80 % of repeats.

    By the power of the two-sided t test, at the level that a lone difference among ``claims`` must reach after
    Benjamini-Hochberg: 5 % / claims. ``bound`` as in :func:`eval.stats.intervals.mean_interval`.
    None where nothing could be shown: no spread to tell from, or too few prompts for the permutation test.
    """
    level = (1 - LEVEL) / claims
    values = with_doubt(deltas, bound)
    n = len(values)
    if n < 2 or np.ptp(values) == 0 or least_p(len(deltas)) >= level:
        return None
    threshold = float(stats.t.isf(level / 2, n - 1))

    def missing(shift: float) -> float:
        return float(stats.nct.sf(threshold, n - 1, shift)) - POWER  # the other tail adds less than a millionth

    most = threshold
    while missing(most) < 0:
        most += 1
    shift = float(optimize.brentq(missing, 0.0, most))  # pyright: ignore[reportArgumentType]
    return shift * float(values.std(ddof=1)) / float(np.sqrt(n))
