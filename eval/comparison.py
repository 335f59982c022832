"""Scores -> Comparison: every number of a report, computed from the per-image rows by pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from eval import stats
from eval.pairing import (
    Key,
    PromptKey,
    Table,
    by_prompt,
    difference,
    level,
    mean_interval_of,
    prompt_deltas,
    win_tables,
)
from eval.plan import ComparisonPlan
from eval.prompts import Prompt
from eval.prompts.overlap import Overlap
from eval.provenance import Training
from eval.published import published_rows
from eval.results import Agreement, Difference, Group, Level, Metric, Published, Rating
from eval.section import Record

__all__ = ["Comparison", "Difference", "Level", "Metric", "by_prompt", "compare_scores"]

LEAST_GROUP = 5
"""Prompts that a group needs to be shown; fewer say nothing."""
ALPHA = 0.05


@dataclass(frozen=True)
class Comparison(Record):
    """All that is known of a comparison. ``scores`` are the rows of scores.parquet (eval/score.py)."""

    plan: dict[str, Any]
    protocol: dict[str, Any]
    """All that must be equal for two reports to be about the same measurement, and its hash."""
    models: list[str]
    baseline: str
    control: str | None
    sets: list[str]
    weights: dict[str, str]
    """Model -> hash of its weights, or of its images."""
    metrics: list[Metric]
    levels: list[Level]
    differences: list[Difference]
    groups: list[Group]
    ratings: list[Rating]
    agreements: list[Agreement]
    overlaps: list[Overlap]
    published: list[Published]
    blank: dict[str, int]
    """Model -> images of one single colour, which were scored like the others."""
    scores: list[dict[str, Any]] = field(repr=False)
    unit: str = "prompt"
    """What every count and interval is over: prompts, or the subjects of photos."""
    training: dict[str, Training] = field(default_factory=dict)
    """Model -> what its folder tells of its training."""

    @property
    def headline(self) -> Metric:
        """The first primary metric of an independent scorer; the first of all if none is."""
        primary = [metric for metric in self.metrics if metric.primary]
        return next((metric for metric in primary if not metric.partial), primary[0])

    @property
    def main_set(self) -> str:
        return self.sets[0]

    def numbers(self) -> dict[str, Any]:
        """Everything but the per-image rows, as plain JSON types."""
        whole = asdict(replace(self, scores=[]))
        del whole["scores"]
        return whole

    def difference(
        self, model: str, metric: str | None = None, *, prompt_set: str | None = None, against: str | None = None
    ) -> Difference:
        """Of ``model`` against the baseline, on the headline metric and the first prompt set if none is named."""
        wanted = (model, against or self.baseline, metric or self.headline.key, prompt_set or self.main_set)
        return next(d for d in self.differences if (d.model, d.against, d.metric, d.prompt_set) == wanted)

    def headlines(self) -> list[Difference]:
        """What the report is about: every contrast on the headline metric, the first prompt set first."""
        found = [d for d in self.differences if d.metric == self.headline.key]
        return sorted(found, key=lambda d: (self.sets.index(d.prompt_set), d.against != self.baseline))


def compare_scores(
    plan: ComparisonPlan,
    scores: Sequence[dict[str, Any]],
    prompts: Iterable[Prompt],
    weights: dict[str, str] | None = None,
    *,
    partial: dict[str, str] | None = None,
    overlaps: Sequence[Overlap] = (),
    protocol: dict[str, Any] | None = None,
    bases: dict[str, str] | None = None,
    training: dict[str, Training] | None = None,
) -> Comparison:
    """Compute every number. ``scores`` are rows of scores.parquet, ``weights`` model name -> hash of its weights.

    ``partial``: scorer -> why it is no independent judge; those of ``plan.partial_scorers`` are added. ``bases``: model
    name -> hub id of the model it is or was trained from, to find published numbers. ``training`` is only shown. Pairs
    are the images of one prompt and seed; those where either score is NaN (does not apply) are left out.
    Raises ValueError if a model lacks an image that the baseline has.
    """
    prompts = list(prompts)
    units = _units(plan, prompts)
    tables: dict[str, dict[str, Table]] = {}
    scales: dict[str, str] = {}
    for row in scores:
        scales[f"{row['scorer']}/{row['column']}"] = row.get("scale") or ""
        by_model = tables.setdefault(f"{row['scorer']}/{row['column']}", {})
        label: str = row.get("prompt_set") or plan.sets[0]
        index: int = row["prompt_index"]
        image = (index, row["seed"]) if units else row["seed"]
        key: Key = (label, units.get((label, index), index), image)
        by_model.setdefault(row["model"], {})[key] = row["score"]
    metrics = [
        Metric(
            scorer.label,
            column,
            meaning,
            column == scorer.primary,
            scorer.higher_is_better,
            _is_share(tables[f"{scorer.label}/{column}"]),
            _why_partial(scorer, plan.partial_scorers, partial or {}),
            scorer.variant_id,
            scorer.caveat,
            _unit(scorer, column, tables, scales),
            _decimals(tables[f"{scorer.label}/{column}"]),
        )
        for scorer in plan.scorers
        for column, meaning in scorer.columns.items()
    ]
    names = list(plan.models)
    contrasts = [(name, plan.baseline) for name in names if name != plan.baseline]
    if plan.control is not None:
        contrasts += [(name, plan.control) for name in names if name not in (plan.baseline, plan.control)]
    claims = sum(metric.primary for metric in metrics) * len(plan.sets) * len(contrasts)
    levels: list[Level | None] = []
    differences: list[Difference | None] = []
    ratings: list[Rating] = []
    of_metric: dict[str, dict[str, Table]] = {}
    for metric in metrics:
        table = of_metric[metric.key] = tables[f"{metric.scorer}/{metric.column}"]
        for label in plan.sets:
            mine = {name: {key: v for key, v in table.get(name, {}).items() if key[0] == label} for name in names}
            levels += [level(name, metric, label, mine[name]) for name in names]
            differences += [difference(a, b, metric, label, mine[a], mine[b], claims=claims) for a, b in contrasts]
            if metric.primary and len(names) > 2:
                ratings += _ratings(names, plan.baseline, metric, label, mine)
    found = Comparison(
        plan=plan.model_dump(mode="json"),
        protocol=protocol or {},
        models=names,
        baseline=plan.baseline,
        control=plan.control,
        sets=plan.sets,
        weights=weights or {},
        metrics=metrics,
        levels=[row for row in levels if row is not None],
        differences=_adjust([row for row in differences if row is not None], metrics),
        groups=[],
        ratings=ratings,
        agreements=_agreements(plan, metrics, of_metric),
        overlaps=list(overlaps),
        published=published_rows(plan, metrics, bases or {}),
        blank={name: len({row["file"] for row in scores if row["model"] == name and row["blank"]}) for name in names},
        scores=list(scores),
        unit=plan.unit,
        training=training or {},
    )
    return replace(found, groups=_groups(plan, prompts, units, found.headline, of_metric[found.headline.key]))


def _units(plan: ComparisonPlan, prompts: Sequence[Prompt]) -> dict[PromptKey, int]:
    """Prompt -> the first prompt of its subject, where subjects are the unit; else nothing."""
    first: dict[tuple[str, str], int] = {}
    if plan.photos is None:
        return {}
    subjects = {(prompt.set, prompt.index): (prompt.set, prompt.tags["subject"]) for prompt in prompts}
    return {key: first.setdefault(subject, key[1]) for key, subject in subjects.items()}


def _is_share(table: dict[str, Table]) -> bool:
    return all(value in (0.0, 1.0) for values in table.values() for value in values.values() if not np.isnan(value))


def _unit(scorer: Any, column: str, tables: dict[str, dict[str, Table]], scales: dict[str, str]) -> str:
    """A scorer's scale is that of the column it decides by; the others have theirs in their meaning."""
    key = f"{scorer.label}/{column}"
    if _is_share(tables[key]):
        return "% of images"
    return scales[key] if column == scorer.primary and scales[key] not in ("raw", "none") else ""


def _decimals(table: dict[str, Table]) -> int:
    """Three, or as many as tell a hundredth of what scores differ by: cosines differ by a few hundredths."""
    values = np.array([value for mine in table.values() for value in mine.values()])
    spread = float(np.nanstd(values)) if np.isfinite(values).any() else 0.0
    return 3 if spread <= 0 else int(np.clip(2 - np.floor(np.log10(spread)), 3, 6))


def _why_partial(scorer: Any, named: Sequence[str], partial: dict[str, str]) -> str:
    reasons = {name.casefold(): "is named in partial_scorers" for name in named}
    reasons |= {name.casefold(): why for name, why in partial.items()}
    own = {name.casefold() for name in (scorer.label, scorer.kind, scorer.variant_id)}
    # A set names who labelled it as scorer/column.
    return next((why for name, why in reasons.items() if name in own or name.rpartition("/")[0] in own), "")


def _adjust(differences: list[Difference], metrics: Sequence[Metric]) -> list[Difference]:
    primary = {metric.key for metric in metrics if metric.primary}
    family = [i for i, d in enumerate(differences) if d.metric in primary]
    adjusted = stats.benjamini_hochberg([differences[i].p for i in family])
    for i, p in zip(family, adjusted, strict=True):
        d = differences[i]
        differences[i] = replace(d, p_adjusted=p, shown=p < ALPHA and (d.low > 0 or d.high < 0))
    return differences


def _ratings(names: list[str], baseline: str, metric: Metric, label: str, mine: dict[str, Table]) -> list[Rating]:
    wins = win_tables([mine[name] for name in names], metric)
    if not len(wins):
        return []
    fitted = stats.bradley_terry(wins, anchor=names.index(baseline))
    return [Rating(name, metric.key, label, *values) for name, values in zip(names, fitted, strict=True)]


def _agreements(
    plan: ComparisonPlan, metrics: Sequence[Metric], tables: dict[str, dict[str, Table]]
) -> list[Agreement]:
    """Every two primary metrics, on the deltas of all models to the baseline, on prompts that all have scores for."""
    deltas: dict[str, dict[Any, float]] = {}
    for metric in metrics:
        if metric.primary:
            table, sign = tables[metric.key], 1.0 if metric.higher_is_better else -1.0
            deltas[metric.key] = {
                (name, *prompt): sign * value
                for name in plan.models
                if name != plan.baseline
                for prompt, value in prompt_deltas(table.get(name, {}), table.get(plan.baseline, {})).items()
            }
    found = []
    rivals = [name for name in plan.models if name != plan.baseline]
    for one, other in combinations(deltas, 2):
        both = deltas[one].keys() & deltas[other].keys()
        common = sorted({key[1:] for key in both if all((name, *key[1:]) in both for name in rivals)})
        values = [
            np.array([[deltas[metric][name, *key] for name in rivals] for key in common]) for metric in (one, other)
        ]
        agreed = stats.agreement(*values) if common else None
        if agreed is not None:
            found.append(Agreement(one, other, len(common), *agreed))
    return found


def _groups(
    plan: ComparisonPlan,
    prompts: Sequence[Prompt],
    units: dict[PromptKey, int],
    headline: Metric,
    table: dict[str, Table],
) -> list[Group]:
    members: dict[tuple[str, str, str], set[tuple[str, int]]] = {}
    for prompt in prompts:
        label = prompt.set or plan.sets[0]
        for group, value in (prompt.tags | plan.scorers[0].tags(prompt.text)).items():
            members.setdefault((label, group, value), set()).add(
                (label, units.get((label, prompt.index), prompt.index))
            )
    means = {model: by_prompt(table.get(model, {})) for model in plan.models}
    groups = []
    for (label, group, value), inside in sorted(members.items()):
        for model in plan.models:
            values = np.array([mean for prompt, mean in means[model].items() if prompt in inside])
            if len(values) >= LEAST_GROUP:
                interval = mean_interval_of(headline, values)
                groups.append(Group(group, value, model, label, len(values), float(values.mean()), *interval))
    return groups
