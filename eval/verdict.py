"""What the numbers say, in plain sentences."""

from eval.comparison import ALPHA, Comparison
from eval.results import Difference, Metric
from eval.stats import least_p

FEW = 30
"""Prompts below which intervals are rough."""


def verdict(
    difference: Difference, metric: Metric, *, prompt_set: str = "", unit: str = "prompt", claims: int = 1
) -> str:
    """One plain sentence. A winner is only named if the difference is shown; ``prompt_set`` is added if given;
    ``claims``: how many differences the report tests."""
    d, where = difference, f" of {prompt_set}" if prompt_set else ""
    numbers = f"{amount(d.delta, metric)} [{amount(d.low, metric, bare=True)}, {amount(d.high, metric, bare=True)}]"
    rate = f"wins {d.win_rate:.0%} [{d.win_low:.0%}, {d.win_high:.0%}] of {d.prompts} {unit}s{where}"
    rate += " (95 % intervals; ties count half)"
    if not d.shown:
        told = ""
        if d.p_adjusted is not None and (d.low > 0 or d.high < 0):
            told = f" Among so many claims it may be chance (adjusted p {p_text(d.p_adjusted)})."
        if d.minimum_detectable is not None:
            seen = amount(d.minimum_detectable, metric).lstrip("+")
            lone = ", were it the only one," if claims > 1 else ""
            told += f" A difference of {seen}{lone} would show in four of five such runs."
        return f"No difference shown between {d.model} and {d.against} on {metric.key}: {numbers}, {rate}.{told}"
    better = (d.delta > 0) == metric.higher_is_better
    if metric.partial:
        scored = "higher" if d.delta > 0 else "lower"
        return (
            f"{d.model} scores {scored} than {d.against} on {metric.key}: {numbers}, {rate}. This is no independent "
            f"judgement: {metric.scorer} {metric.partial}."
        )
    return f"{d.model} {'beats' if better else 'is worse than'} {d.against} on {metric.key}: {numbers}, {rate}."


def verdicts(comparison: Comparison) -> list[str]:
    """A sentence for every contrast on the headline metric, the first prompt set and the baseline first."""
    several, claims = len(comparison.sets) > 1, claims_of(comparison)
    return [
        verdict(d, comparison.headline, prompt_set=d.prompt_set if several else "", unit=comparison.unit, claims=claims)
        for d in comparison.headlines()
    ]


def claims_of(comparison: Comparison) -> int:
    """How many differences are tested and corrected for."""
    return sum(d.p_adjusted is not None for d in comparison.differences)


def improved(comparison: Comparison, model: str) -> bool:
    """Is ``model`` shown to be better than the baseline by an independent scorer, on the first prompt set?"""
    d, metric = comparison.difference(model), comparison.headline
    return d.shown and not metric.partial and (d.delta > 0) == metric.higher_is_better


def cautions(comparison: Comparison) -> list[str]:
    """What a reader must know before believing the sentence above."""
    metrics = {metric.key: metric for metric in comparison.metrics if metric.primary}
    said = []
    if all(metric.partial for metric in metrics.values()):
        said.append("No scorer here is independent of the training, so nothing here proves an improvement.")
    elif passed := [metric for metric in metrics.values() if metric.partial]:
        names = ", ".join(f"{metric.key} ({metric.scorer} {metric.partial})" for metric in passed)
        said.append(f"Not considered for the headline: {names}.")
    said += [f"{metric.key} is {metric.variant}: {metric.caveat}." for metric in metrics.values() if metric.caveat]
    said += _dissent(comparison, metrics)
    for overlap in comparison.overlaps:
        if overlap.captions is None:
            said.append(
                f"Whether prompts of {overlap.prompt_set} were trained on is not known: {overlap.problem or 'no data'}."
            )
        elif overlap.shared:
            said.append(
                f"{overlap.shared} of {overlap.prompts} prompts of {overlap.prompt_set} "
                f"({overlap.shared_long} with six words or more) are among the training captions in {overlap.source}."
            )
    said += [
        f"Of {name}, {count} image{'s are' if count > 1 else ' is'} one single colour; scored like the others."
        for name, count in comparison.blank.items()
        if count
    ]
    elsewhere = [name for name, weights in comparison.weights.items() if weights.startswith("images-")]
    if elsewhere:
        said.append(f"The images of {', '.join(elsewhere)} were made elsewhere, from noise that is not known.")
    fewest = min((d.prompts for d in comparison.differences if d.metric in metrics), default=FEW)
    if least_p(fewest) >= ALPHA:
        said.append(f"{fewest} {comparison.unit}s are too few: no difference could be shown, however large.")
    elif fewest < FEW:
        said.append(f"{fewest} {comparison.unit}s are few: intervals are rough, and only large differences can show.")
    return said


def _dissent(comparison: Comparison, metrics: dict[str, Metric]) -> list[str]:
    """Deciding metrics that show the opposite of the headline, or something where it shows nothing."""
    head = {(d.model, d.against, d.prompt_set): d for d in comparison.headlines()}
    opposite, alone = dict[str, dict[str, list[str]]](), dict[str, dict[str, list[str]]]()
    for d in comparison.differences:
        main, metric = head.get((d.model, d.against, d.prompt_set)), metrics.get(d.metric)
        if main is None or metric is None or not d.shown or d.metric == main.metric:
            continue
        if main.shown and _better(d, metric) != _better(main, comparison.headline):
            told = opposite
        elif not main.shown and not metric.partial:
            told = alone
        else:
            continue
        where = f" ({d.prompt_set})" if len(comparison.sets) > 1 else ""
        mine = told.setdefault(f"{d.model} against {d.against}", {})
        mine.setdefault(d.metric, []).append(f"{amount(d.delta, metric)}{where}")
    kinds = {
        "Scorers disagree with the headline:": opposite,
        "Where the headline shows no difference, other scorers do:": alone,
    }
    return [
        f"{what} {contrast} on {'; '.join(f'{key} {_listed(amounts)}' for key, amounts in mine.items())}."
        for what, told in kinds.items()
        for contrast, mine in told.items()
    ]


def _better(d: Difference, metric: Metric) -> bool:
    return (d.delta > 0) == metric.higher_is_better


def _listed(amounts: list[str]) -> str:
    return ", ".join(amounts)


def amount(value: float, metric: Metric, *, bare: bool = False) -> str:
    """A difference with its sign: in points (hundredths) for shares, as it is for other scores."""
    text = f"{100 * value:+.1f}" if metric.is_share else f"{value:+.{metric.decimals}f}"
    return text.replace("-", "\u2212") + (" points" if metric.is_share and not bare else "")


def level(value: float, metric: Metric, *, bare: bool = False) -> str:
    """A score: in percent for shares."""
    text = f"{100 * value:.1f}" if metric.is_share else f"{value:.{metric.decimals}f}"
    return text.replace("-", "\u2212") + (" %" if metric.is_share and not bare else "")


def p_text(p: float | None) -> str:
    return "" if p is None else ("< 0.001" if p < 0.001 else f"{p:.3f}")
