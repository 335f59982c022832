"""Scores -> Comparison: every number of a report, computed from the per-image rows by pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from eval import stats
from eval.plan import ComparisonPlan
from eval.prompts import Prompt

LEAST_GROUP = 5
"""Prompts that a group needs to be shown; fewer say nothing."""


@dataclass(frozen=True)
class Metric:
    """A column of a scorer."""

    scorer: str
    column: str
    meaning: str
    primary: bool
    higher_is_better: bool
    is_share: bool
    """Every score is 0 or 1, so means are shown in percent."""

    @property
    def key(self) -> str:
        return f"{self.scorer}/{self.column}"


@dataclass(frozen=True)
class Level:
    """How one model does on one metric by itself."""

    model: str
    metric: str
    mean: float
    low: float
    high: float
    prompts: int


@dataclass(frozen=True)
class Difference:
    """One model against the baseline on one metric; intervals are 95 %, deltas model minus baseline."""

    model: str
    metric: str
    prompts: int
    images: int
    delta: float
    low: float
    high: float
    effect_size: float
    """Mean over standard deviation of the prompts' deltas (Cohen's d for pairs); 0 if they do not vary."""
    win_rate: float
    win_low: float
    win_high: float
    wins: int
    ties: int
    losses: int
    """Prompts won, tied, lost (more, as many, fewer images better than the baseline's)."""
    p: float
    p_holm: float | None
    """Adjusted over all models and primary metrics; None for the other columns, which explain and claim nothing."""
    minimum_detectable: float | None


@dataclass(frozen=True)
class Group:
    """The mean of a model over the prompts of a group, on the headline metric."""

    group: str
    value: str
    model: str
    prompts: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """All that is known of a comparison. ``scores`` are the rows of scores.parquet (eval/score.py)."""

    plan: dict[str, Any]
    models: list[str]
    baseline: str
    weights: dict[str, str]
    metrics: list[Metric]
    levels: list[Level]
    differences: list[Difference]
    groups: list[Group]
    blank: dict[str, int]
    scores: list[dict[str, Any]] = field(repr=False)

    @property
    def headline(self) -> Metric:
        return next(metric for metric in self.metrics if metric.primary)

    def numbers(self) -> dict[str, Any]:
        """Everything but the per-image rows, as plain JSON types."""
        whole = asdict(replace(self, scores=[]))
        del whole["scores"]
        return whole

    def difference(self, model: str, metric: str | None = None) -> Difference:
        """Of ``model`` against the baseline, on the headline metric if none is named."""
        key = metric or self.headline.key
        return next(d for d in self.differences if d.model == model and d.metric == key)


def compare_scores(
    plan: ComparisonPlan,
    scores: Sequence[dict[str, Any]],
    prompts: Iterable[Prompt],
    weights: dict[str, str] | None = None,
) -> Comparison:
    """Compute every number. ``scores`` are rows of scores.parquet, ``weights`` model name -> hash of its weights.

    Pairs are the images of one prompt and seed; those where either score is NaN (does not apply) are left out.
    Raises ValueError if a model lacks an image that the baseline has.
    """
    columns: dict[str, dict[str, dict[tuple[int, int], float]]] = {}
    for row in scores:
        by_model = columns.setdefault(f"{row['scorer']}/{row['column']}", {})
        by_model.setdefault(row["model"], {})[row["prompt_index"], row["seed"]] = row["score"]
    metrics = [
        Metric(s.label, c, meaning, c == s.primary, s.higher_is_better, _is_share(columns[f"{s.label}/{c}"]))
        for s in plan.scorers
        for c, meaning in s.columns.items()
    ]
    names = list(plan.models)
    levels, differences = [], []
    for metric in metrics:
        table = {name: columns[metric.key].get(name, {}) for name in names}
        for name in names:
            levels.append(_level(name, metric, table[name]))
            if name != plan.baseline:
                differences.append(_difference(name, metric, table[name], table[plan.baseline]))
    differences = _adjust([d for d in differences if d is not None], metrics)
    return Comparison(
        plan=plan.model_dump(mode="json"),
        models=names,
        baseline=plan.baseline,
        weights=weights or {},
        metrics=metrics,
        levels=[level for level in levels if level is not None],
        differences=differences,
        groups=_groups(plan, prompts, columns[next(m.key for m in metrics if m.primary)]),
        blank={name: len({row["file"] for row in scores if row["model"] == name and row["blank"]}) for name in names},
        scores=list(scores),
    )


def by_prompt(values: dict[tuple[int, int], float]) -> dict[int, float]:
    """Average over the seeds of each prompt, NaN left out; prompts with nothing left are absent."""
    kept: dict[int, list[float]] = {}
    for (prompt, _), value in values.items():
        if not np.isnan(value):
            kept.setdefault(prompt, []).append(value)
    return {prompt: float(np.mean(several)) for prompt, several in kept.items()}


def _is_share(table: dict[str, dict[tuple[int, int], float]]) -> bool:
    return all(value in (0.0, 1.0) for values in table.values() for value in values.values() if not np.isnan(value))


def _level(model: str, metric: Metric, values: dict[tuple[int, int], float]) -> Level | None:
    means = np.array(list(by_prompt(values).values()))
    if not len(means):
        return None
    low, high = stats.mean_interval(means)
    return Level(model, metric.key, float(means.mean()), low, high, len(means))


def _difference(
    model: str, metric: Metric, values: dict[tuple[int, int], float], baseline: dict[tuple[int, int], float]
) -> Difference | None:
    missing = baseline.keys() ^ values.keys()
    if missing:
        raise ValueError(
            f"{metric.key}: {model!r} and the baseline do not have the same images; only one of them has "
            f"(prompt, seed) {sorted(missing)[:5]}"
        )
    pairs = {key: (values[key], baseline[key]) for key in baseline if not np.isnan(values[key] + baseline[key])}
    if not pairs:
        return None
    better = 1.0 if metric.higher_is_better else -1.0
    deltas = np.array(list(by_prompt({key: a - b for key, (a, b) in pairs.items()}).values()))
    wins = {key: 0.5 + 0.5 * float(np.sign(better * (a - b))) for key, (a, b) in pairs.items()}
    shares = np.array(list(by_prompt(wins).values()))
    low, high = stats.mean_interval(deltas)
    win_low, win_high = stats.win_rate_interval(shares)
    spread = float(deltas.std(ddof=1)) if len(deltas) > 1 else 0.0
    return Difference(
        model,
        metric.key,
        len(deltas),
        len(pairs),
        float(deltas.mean()),
        low,
        high,
        float(deltas.mean()) / spread if spread > 0 else 0.0,
        float(shares.mean()),
        win_low,
        win_high,
        int((shares > 0.5).sum()),
        int((shares == 0.5).sum()),
        int((shares < 0.5).sum()),
        stats.sign_flip_p(deltas),
        None,
        stats.minimum_detectable(deltas),
    )


def _adjust(differences: list[Difference], metrics: Sequence[Metric]) -> list[Difference]:
    primary = {metric.key for metric in metrics if metric.primary}
    family = [i for i, d in enumerate(differences) if d.metric in primary]
    for i, p in zip(family, stats.holm([differences[i].p for i in family]), strict=True):
        differences[i] = replace(differences[i], p_holm=p)
    return differences


def _groups(
    plan: ComparisonPlan, prompts: Iterable[Prompt], table: dict[str, dict[tuple[int, int], float]]
) -> list[Group]:
    members: dict[tuple[str, str], set[int]] = {}
    for prompt in prompts:
        tags = prompt.tags | plan.scorers[0].tags(prompt.text)
        for pair in tags.items():
            members.setdefault(pair, set()).add(prompt.index)
    groups = []
    for (group, value), indices in sorted(members.items()):
        for model in plan.models:
            means = by_prompt(table.get(model, {}))
            inside = np.array([mean for index, mean in means.items() if index in indices])
            if len(inside) >= LEAST_GROUP:
                groups.append(
                    Group(group, value, model, len(inside), float(inside.mean()), *stats.mean_interval(inside))
                )
    return groups
