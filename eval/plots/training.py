"""Plots of training: curves over steps, scores over the settings of a search."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from eval.plots.style import COLOURS, INK, WIDTH, new_figure, styled, svg_of

CURVES = {"train/loss": "loss", "train/implicit_accuracy": "implicit accuracy", "train/margin": "margin"}


@styled
def training_curves(
    files: Mapping[str, str | Path], curves: Mapping[str, str] = CURVES, *, smoothed: bool = True
) -> str | None:
    """Loss, implicit accuracy and margin over steps from metrics.jsonl files (label -> path); None if none has any.

    ``curves`` chooses other columns (column -> title), a panel each. Not ``smoothed``, every value is a dot of its own:
    for a few that have no noise.
    """
    runs = {label: _read_rows(Path(file)) for label, file in files.items()}
    keys = [key for key in curves if any(key in row for rows in runs.values() for row in rows)]
    if not keys:
        return None
    figure, axes = new_figure(WIDTH, 2.9, len(keys), across=True)
    for key, axis in zip(keys, axes, strict=True):
        for i, (label, rows) in enumerate(runs.items()):
            points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
            if points:
                steps, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
                colour = COLOURS[(i + 1) % len(COLOURS)]
                if smoothed:
                    axis.plot(steps, values, color=colour, lw=0.8, alpha=0.3)
                    axis.plot(steps, _smooth(values), color=colour, lw=1.8, label=label)
                else:
                    axis.plot(steps, values, "o-", color=colour, lw=1.8, ms=4, label=label)
        axis.set_title(curves[key])
        axis.set_xlabel("step")
        axis.grid()
    if len(runs) > 1:
        axes[0].legend()
    return svg_of(figure)


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
    figure, (axis,) = new_figure(WIDTH, 3.8, 1)
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
    return svg_of(figure)


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
