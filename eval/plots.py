"""The report's plots as SVG text that takes its ink from the page, so one plot suits light and dark."""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from eval.comparison import Comparison, Metric

P = ParamSpec("P")
R = TypeVar("R")
INK = "#010203"
"""Stands for the page's text colour while drawing."""
COLOURS = ("#8b929c", "#3b82f6", "#f59e0b", "#10b981", "#d6488f", "#8b5cf6")
"""Baseline first; mid tones that can be told apart on white and on near-black, also by most colour-blind readers."""
CURVES = {"train/loss": "loss", "train/implicit_accuracy": "implicit accuracy", "train/margin": "margin"}
WIDTH = 10.0
"""Inches: the width of the page's column, so that the text of the plots has the size of its notes."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": INK,
    "grid.alpha": 0.12,
    "legend.frameon": False,
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw with ``STYLE``, without touching the settings of the process."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


@styled
def forest(comparison: Comparison) -> str:
    """Deltas against the baseline with their intervals: one panel for all shares (points), one per other metric."""
    shares = [metric for metric in comparison.metrics if metric.is_share]
    panels = [shares] * bool(shares) + [[metric] for metric in comparison.metrics if not metric.is_share]
    rivals = [name for name in comparison.models if name != comparison.baseline]
    heights = [0.75 + 0.3 * len(panel) * len(rivals) for panel in panels]
    figure, axes = _figure(WIDTH, sum(heights), len(panels), heights)
    for panel, axis in zip(panels, axes, strict=True):
        scale = 100 if panel[0].is_share else 1
        labels = []
        for metric in panel:
            for name in rivals:
                found = [d for d in comparison.differences if d.model == name and d.metric == metric.key]
                if found:
                    y, d = len(labels), found[0]
                    axis.errorbar(
                        d.delta * scale,
                        y,
                        xerr=[[(d.delta - d.low) * scale], [(d.high - d.delta) * scale]],
                        fmt="o",
                        mfc=None if metric.primary else "none",
                        color=COLOURS[comparison.models.index(name) % len(COLOURS)],
                        capsize=3,
                        ms=6,
                    )
                    labels.append(metric.column if len(rivals) == 1 else f"{metric.column}: {name}")
        axis.axvline(0, color=INK, lw=1, alpha=0.5)
        axis.set_yticks(range(len(labels)), labels)
        axis.set_ylim(len(labels) - 0.4, -0.6)
        axis.grid(axis="x")
        unit = "percentage points" if panel[0].is_share else panel[0].column
        axis.set_xlabel(f"difference to {comparison.baseline}, {unit}")
    return _svg(figure)


@styled
def group_bars(comparison: Comparison, group: str) -> str:
    """The headline metric of every model within each value of ``group``."""
    rows = [row for row in comparison.groups if row.group == group]
    values = list(dict.fromkeys(row.value for row in rows))
    scale = 100 if comparison.headline.is_share else 1
    figure, (axis,) = _figure(WIDTH, 0.9 + (0.26 * len(comparison.models) + 0.16) * len(values), 1)
    thick = 0.8 / len(comparison.models)
    for i, name in enumerate(comparison.models):
        mine = {row.value: row for row in rows if row.model == name}
        places = [values.index(value) - 0.4 + thick * (i + 0.5) for value in mine]
        means = np.array([row.mean for row in mine.values()]) * scale
        ends = np.array([[row.low for row in mine.values()], [row.high for row in mine.values()]]) * scale
        axis.barh(
            places,
            means,
            thick * 0.92,
            color=COLOURS[i % len(COLOURS)],
            label=name,
            xerr=np.abs(ends - means),
            error_kw={"ecolor": INK, "alpha": 0.6, "lw": 1},
        )
    counts = {row.value: row.prompts for row in rows}
    axis.set_yticks(range(len(values)), [f"{value} ({counts[value]})" for value in values])
    axis.invert_yaxis()
    axis.set_xlabel(_label(comparison.headline))
    axis.grid(axis="x")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    return _svg(figure)


@styled
def training_curves(files: Mapping[str, str | Path]) -> str | None:
    """Loss, implicit accuracy and margin over steps from metrics.jsonl files (label -> path); None if none has any."""
    runs = {label: _read_rows(Path(file)) for label, file in files.items()}
    keys = [key for key in CURVES if any(key in row for rows in runs.values() for row in rows)]
    if not keys:
        return None
    figure, axes = _figure(WIDTH, 2.9, len(keys), across=True)
    for key, axis in zip(keys, axes, strict=True):
        for i, (label, rows) in enumerate(runs.items()):
            points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
            if points:
                steps, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
                colour = COLOURS[(i + 1) % len(COLOURS)]
                axis.plot(steps, values, color=colour, lw=0.8, alpha=0.3)
                axis.plot(steps, _smooth(values), color=colour, lw=1.8, label=label)
        axis.set_title(CURVES[key])
        axis.set_xlabel("step")
        axis.grid()
    if len(runs) > 1:
        axes[0].legend()
    return _svg(figure)


@styled
def sweep_plot(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """``delta`` (the last column if there is none) over the one or two numeric columns left of it that vary most.

    None if nothing varies. Columns right of ``delta`` are further results and are not plotted.
    """
    if not rows:
        return None
    columns = list(rows[0])
    score = "delta" if "delta" in columns else columns[-1]
    usable = [row for row in rows if _is_number(row.get(score))]
    names = [name for name in columns[: columns.index(score)] if all(_is_number(row.get(name)) for row in usable)]
    names = sorted(
        (name for name in names if len({row[name] for row in usable}) > 1),
        key=lambda name: -len({row[name] for row in usable}),
    )[:2]
    if not names or len(usable) < 2:
        return None
    figure, (axis,) = _figure(WIDTH, 3.8, 1)
    x = [row[names[0]] for row in usable]
    scores = [row[score] for row in usable]
    if len(names) == 1:
        order = np.argsort(x)
        axis.plot(np.array(x)[order], np.array(scores)[order], "o-", color=COLOURS[1])
        axis.set_ylabel(score)
    else:
        y = [row[names[1]] for row in usable]
        dots = axis.scatter(x, y, c=scores, s=120, cmap="viridis", edgecolor=INK, linewidth=0.5)
        best = int(np.argmax(scores))
        axis.scatter([x[best]], [y[best]], s=320, facecolor="none", edgecolor=INK, linewidth=1.5)
        figure.colorbar(dots, ax=axis, label=score)
        axis.set_ylabel(names[1])
        _scale(axis, "y", y)
    axis.set_xlabel(names[0])
    _scale(axis, "x", x)
    axis.grid()
    return _svg(figure)


def _figure(
    width: float, height: float, panels: int, ratios: Sequence[float] | None = None, *, across: bool = False
) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if across:
        return figure, list(figure.subplots(1, panels, squeeze=False).flat)
    return figure, list(figure.subplots(panels, 1, squeeze=False, height_ratios=ratios).flat)


def _svg(figure: Any) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor").replace("<svg ", '<svg aria-hidden="true" ', 1)


def _label(metric: Metric) -> str:
    return f"{metric.column}, % of images" if metric.is_share else metric.column


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean of a window of a fifteenth of the curve, shorter at its ends."""
    half = max(1, len(values) // 30)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _read_rows(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl that may still be written to."""
    whole, _, _ = file.read_text("utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if line.strip()]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _scale(axis: Any, which: str, values: Sequence[float]) -> None:
    """Logarithmic for positive values over an order of magnitude or spaced by factors; few values are the ticks."""
    ordered = sorted(set(values))
    factors = [b / a for a, b in pairwise(ordered)] if ordered[0] > 0 else []
    if factors and (ordered[-1] / ordered[0] >= 10 or (len(factors) > 1 and min(factors) >= 2)):
        getattr(axis, f"set_{which}scale")("log")
    if len(ordered) <= 8:
        getattr(axis, f"set_{which}ticks")([], minor=True)
        getattr(axis, f"set_{which}ticks")(ordered, [f"{value:g}" for value in ordered])
