"""What so many prompts could have shown."""

import numpy as np
from scipy import stats

from eval.stats.intervals import LEVEL, Values

POWER = 0.8


def minimum_detectable(deltas: Values) -> float | None:
    """The true mean difference that so many prompts with this spread would show in 80 % of repeats (two-sided 5 %).

    None where there is no spread to tell from: a single prompt, or all deltas equal.
    """
    if len(deltas) < 2 or np.ptp(deltas) == 0:
        return None
    z = stats.norm.ppf(0.5 + LEVEL / 2) + stats.norm.ppf(POWER)
    return float(z * deltas.std(ddof=1) / np.sqrt(len(deltas)))


def prompts_needed(deltas: Values, effect: float) -> int | None:
    """Prompts of this spread that would show a true mean difference of ``effect`` in 80 % of repeats; None if never."""
    smallest = minimum_detectable(deltas)
    if smallest is None or effect == 0:
        return None
    return max(2, int(np.ceil(len(deltas) * (smallest / effect) ** 2)))
