"""Plots of a comparison: differences, win rates, distributions, groups."""

from typing import Any

import numpy as np

from eval.comparison import Comparison, Difference, Metric
from eval.plots.style import COLOURS, INK, WIDTH, new_figure, styled, svg_of

ROW, HEAD = 0.3, 0.75
"""Inches of a row of points, and of what a panel needs besides."""


@styled
def forest(comparison: Comparison, *, primary: bool = True) -> str | None:
    """Deltas with their intervals: one panel for all shares (points), one for each other metric.

    Of the deciding metrics, or else of the explaining ones; None if there are none.
    """
    metrics = [metric for metric in comparison.metrics if metric.primary == primary]
    shares = [metric for metric in metrics if metric.is_share]
    panels = [shares] * bool(shares) + [[metric] for metric in metrics if not metric.is_share]
    rows = [[(metric, d) for metric in panel for d in _of(comparison, metric)] for panel in panels]
    kept = [(panel, mine) for panel, mine in zip(panels, rows, strict=True) if mine]
    if not kept:
        return None
    heights = [HEAD + ROW * len(mine) for _, mine in kept]
    figure, axes = new_figure(WIDTH, sum(heights), len(kept), heights)
    for (panel, mine), axis in zip(kept, axes, strict=True):
        scale = 100 if panel[0].is_share else 1
        for y, (_, d) in enumerate(mine):
            _point(axis, comparison, d, y, (d.delta * scale, d.low * scale, d.high * scale), filled=d.shown)
        axis.axvline(0, color=INK, lw=1, alpha=0.5)
        _name_rows(axis, [_row_name(comparison, metric, d, len(panel) > 1) for metric, d in mine])
        unit = "percentage points" if panel[0].is_share else _with_unit(panel[0])
        axis.set_xlabel(f"difference, {unit}{'' if panel[0].higher_is_better else ' (lower is better)'}")
    return svg_of(figure)


@styled
def win_rates(comparison: Comparison) -> str:
    """How often each model beats the one it is held against, by every deciding metric."""
    metrics = [metric for metric in comparison.metrics if metric.primary]
    rows = [(metric, d) for metric in metrics for d in _of(comparison, metric)]
    figure, (axis,) = new_figure(WIDTH, HEAD + ROW * len(rows), 1)
    for y, (_, d) in enumerate(rows):
        _point(axis, comparison, d, y, (100 * d.win_rate, 100 * d.win_low, 100 * d.win_high), filled=d.shown)
    axis.axvline(50, color=INK, lw=1, alpha=0.5)
    _name_rows(axis, [_row_name(comparison, metric, d, len(metrics) > 1) for metric, d in rows])
    low, high = axis.get_xlim()
    axis.set_xlim(max(0, min(low, 40)), min(100, max(high, 60)))
    axis.set_xlabel("prompts won, % (ties count half)")
    return svg_of(figure)


@styled
def distributions(comparison: Comparison) -> str | None:
    """The scores of every model's images: a histogram for each deciding metric that is no share, on the first set.

    If all are shares, of the first scorer's other columns instead; None if these are shares too.
    """
    metrics = [metric for metric in comparison.metrics if metric.primary and not metric.is_share]
    metrics = metrics or [metric for metric in comparison.metrics if not metric.is_share][:2]
    if not metrics:
        return None
    figure, axes = new_figure(WIDTH, 2.3 * len(metrics), len(metrics))
    for metric, axis in zip(metrics, axes, strict=True):
        values = {name: _scores(comparison, metric, name) for name in comparison.models}
        every = np.concatenate(list(values.values()))
        if not len(every):
            continue
        low, high = np.quantile(every, [0.002, 0.998])
        bins = int(np.clip(len(every) / len(values) / 5, 8, 40))
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        for i, (name, mine) in enumerate(values.items()):
            colour = COLOURS[i % len(COLOURS)]
            share = np.histogram(np.clip(mine, edges[0], edges[-1]), edges)[0] / max(1, len(mine))
            axis.stairs(100 * share, edges, color=colour, lw=1.6, label=name)
            if len(mine):
                axis.axvline(mine.mean(), color=colour, lw=1.2, ls=(0, (4, 3)))
        axis.set_xlabel(_with_unit(metric))
        axis.set_ylabel("% of images")
        axis.grid(axis="x")
    axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    return svg_of(figure)


@styled
def group_bars(comparison: Comparison, group: str, prompt_set: str) -> str:
    """The headline metric of every model within each value of ``group``."""
    rows = [row for row in comparison.groups if row.group == group and row.prompt_set == prompt_set]
    values = list(dict.fromkeys(row.value for row in rows))
    scale = 100 if comparison.headline.is_share else 1
    figure, (axis,) = new_figure(WIDTH, 0.9 + (0.26 * len(comparison.models) + 0.16) * len(values), 1)
    thick = 0.8 / len(comparison.models)
    for i, name in enumerate(comparison.models):
        mine = {row.value: row for row in rows if row.model == name}
        places = [values.index(value) - 0.4 + thick * (i + 0.5) for value in mine]
        means = np.array([row.mean for row in mine.values()]) * scale
        ends = np.array([[row.low for row in mine.values()], [row.high for row in mine.values()]]) * scale
        colour = COLOURS[i % len(COLOURS)]
        errors: dict[str, Any] = {"xerr": np.abs(ends - means)}
        if comparison.headline.is_share:
            bars = {"error_kw": {"ecolor": INK, "alpha": 0.6, "lw": 1}}
            axis.barh(places, means, thick * 0.92, color=colour, label=name, **errors, **bars)
        else:  # a bar from zero would drown what differs
            axis.errorbar(means, places, fmt="o", ms=5, capsize=2, color=colour, label=name, **errors)
    counts = {row.value: row.prompts for row in rows}
    axis.set_yticks(range(len(values)), [f"{value} ({counts[value]})" for value in values])
    axis.set_ylim(len(values) - 0.4, -0.6)
    axis.set_xlabel(
        f"{comparison.headline.key}, % of images" if comparison.headline.is_share else _with_unit(comparison.headline)
    )
    axis.grid(axis="x")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    return svg_of(figure)


def _with_unit(metric: Metric) -> str:
    return f"{metric.key} ({metric.unit})" if metric.unit else metric.key


def _of(comparison: Comparison, metric: Metric) -> list[Difference]:
    return [d for d in comparison.differences if d.metric == metric.key]


def _point(
    axis: Any, comparison: Comparison, d: Difference, y: int, value: tuple[float, float, float], *, filled: bool
) -> None:
    middle, low, high = value
    axis.errorbar(
        middle,
        y,
        xerr=[[max(0.0, middle - low)], [max(0.0, high - middle)]],
        fmt="o",
        mfc=None if filled else "none",
        color=COLOURS[comparison.models.index(d.model) % len(COLOURS)],
        capsize=3,
        ms=6,
    )


def _row_name(comparison: Comparison, metric: Metric, d: Difference, several: bool) -> str:
    """No more words than it takes to tell the rows of a plot apart."""
    contrasts = {(other.model, other.against) for other in comparison.differences}
    parts = [(metric.column if len(comparison.plan["scorers"]) == 1 else metric.key)] if several else []
    parts += [f"{d.model} \N{MINUS SIGN} {d.against}"] if len(contrasts) > 1 or not several else []
    parts += [d.prompt_set] if len(comparison.sets) > 1 else []
    return ", ".join(parts)


def _name_rows(axis: Any, names: list[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="x")


def _scores(comparison: Comparison, metric: Metric, model: str) -> np.ndarray:
    values = [
        row["score"]
        for row in comparison.scores
        if row["model"] == model
        and (row["scorer"], row["column"]) == (metric.scorer, metric.column)
        and (row.get("prompt_set") or comparison.main_set) == comparison.main_set
    ]
    array = np.array(values, dtype=float)
    return array[~np.isnan(array)]
