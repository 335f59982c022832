"""Per-image scores -> one number per prompt: averaging over seeds, pairing of models, who wins."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eval import stats
from eval.results import Difference, Level, Metric

Key = tuple[str, int, int | tuple[int, int]]
"""(prompt set, index of the prompt in it, seed); of a subject: (prompt set, its first prompt, (index, seed))."""
PromptKey = tuple[str, int]
Table = dict[Key, float]
"""The scores of one model on one metric."""


def by_prompt(values: Table) -> dict[PromptKey, float]:
    """Average over the seeds of each prompt, NaN left out; prompts with nothing left are absent."""
    kept: dict[PromptKey, list[float]] = {}
    for (label, prompt, _), value in values.items():
        if not np.isnan(value):
            kept.setdefault((label, prompt), []).append(value)
    return {prompt: float(np.mean(several)) for prompt, several in kept.items()}


def paired(values: Table, other: Table) -> dict[Key, tuple[float, float]]:
    """The scores of both on the images that both have a score for."""
    both = ((key, value, other[key]) for key, value in values.items() if key in other)
    return {key: (a, b) for key, a, b in both if not np.isnan(a + b)}


def prompt_deltas(values: Table, other: Table) -> dict[PromptKey, float]:
    """Mean of ``values`` minus ``other`` for every prompt, over its pairs."""
    return by_prompt({key: a - b for key, (a, b) in paired(values, other).items()})


def win_shares(values: Table, other: Table, metric: Metric) -> dict[PromptKey, float]:
    """Share of a prompt's pairs that ``values`` wins, ties counted half."""
    sign = 1.0 if metric.higher_is_better else -1.0
    return by_prompt({key: 0.5 + 0.5 * float(np.sign(sign * (a - b))) for key, (a, b) in paired(values, other).items()})


def win_tables(tables: Sequence[Table], metric: Metric) -> NDArray[np.float64]:
    """[prompts, models, models]: share of pairs that the row's model wins, for the prompts all models have."""
    shares = {
        (i, j): win_shares(one, other, metric)
        for i, one in enumerate(tables)
        for j, other in enumerate(tables)
        if i != j
    }
    common = sorted(set.intersection(*(set(share) for share in shares.values()))) if shares else []
    wins = np.zeros((len(common), len(tables), len(tables)))
    for (i, j), share in shares.items():
        wins[:, i, j] = [share[prompt] for prompt in common]
    return wins


def level(model: str, metric: Metric, label: str, values: Table) -> Level | None:
    """Mean and interval over prompts; None if no score applies."""
    means = np.array(list(by_prompt(values).values()))
    if not len(means):
        return None
    return Level(model, metric.key, label, float(means.mean()), *mean_interval_of(metric, means), len(means))


def mean_interval_of(metric: Metric, means: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of a mean score over prompts [n]."""
    return stats.share_interval(means) if metric.is_share else stats.mean_interval(means)


def difference(
    model: str, against: str, metric: Metric, label: str, values: Table, other: Table, *, claims: int = 1
) -> Difference | None:
    """Paired statistics of two models on one prompt set; None if no pair has scores. ``claims`` is how many differences
    the report tests.

    Raises ValueError if they do not have the same images.
    """
    missing = other.keys() ^ values.keys()
    if missing:
        raise ValueError(
            f"{metric.key}: {model!r} and {against!r} do not have the same images; only one of them has "
            f"(prompt, seed) {[key[1:] for key in sorted(missing)[:5]]} of {label}"
        )
    deltas = np.array(list(prompt_deltas(values, other).values()))
    if not len(deltas):
        return None
    shares = np.array(list(win_shares(values, other, metric).values()))
    wins, losses = int((shares > 0.5).sum()), int((shares < 0.5).sum())
    spread = float(deltas.std(ddof=1)) if len(deltas) > 1 else 0.0
    bound = 1.0 if metric.is_share else None
    low, high = stats.mean_interval(deltas, bound=bound)
    win_low, win_high = stats.win_rate_interval(shares)
    return Difference(
        model=model,
        against=against,
        metric=metric.key,
        prompt_set=label,
        prompts=len(deltas),
        images=len(paired(values, other)),
        delta=float(deltas.mean()),
        low=low,
        high=high,
        effect_size=float(deltas.mean()) / spread if spread > 0 else 0.0,
        win_rate=float(shares.mean()),
        win_low=win_low,
        win_high=win_high,
        wins=wins,
        ties=int((shares == 0.5).sum()),
        losses=losses,
        p=stats.sign_flip_p(deltas),
        p_sign=stats.sign_test_p(wins, losses),
        p_adjusted=None,
        shown=False,
        minimum_detectable=stats.minimum_detectable(deltas, claims=claims, bound=bound),
    )
