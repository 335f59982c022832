"""From n ranked images of a prompt to pairs."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

Pairs = Literal["all", "best_worst"]
"""Every pair of images, or the best against the worst."""


def ranked_pairs(ranks: Sequence[float], pairs: Pairs) -> list[tuple[int, int, bool]]:
    """(better, other, whether they tie) as indices; the lowest rank is the best, equal ranks tie.

    Of several best (or worst) images the first is taken. n images make n (n - 1) / 2 pairs or one.
    """
    if len(ranks) < 2:
        return []
    if pairs == "best_worst":
        best = min(range(len(ranks)), key=lambda i: ranks[i])
        worst = max((i for i in range(len(ranks)) if i != best), key=lambda i: ranks[i])
        return [(best, worst, ranks[best] == ranks[worst])]
    return [
        (i, j, ranks[i] == ranks[j]) if ranks[i] <= ranks[j] else (j, i, False)
        for i, j in combinations(range(len(ranks)), 2)
    ]


def read_ranks(values: Any, count: int) -> list[float]:
    """A rank for each of ``count`` images. Raises ValueError for anything else."""
    if not isinstance(values, list | tuple) or len(values) != count:
        given = len(values) if isinstance(values, list | tuple) else repr(values)[:40]
        raise ValueError(f"has {count} images but as ranks {given}")
    if any(isinstance(rank, bool) or not isinstance(rank, int | float) or not math.isfinite(rank) for rank in values):
        raise ValueError(f"has ranks that are no numbers: {str(list(values))[:80]}")
    return [float(rank) for rank in values]
