"""What all plots share: SVG text that takes its ink from the page, so one plot suits light and dark."""

import io
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
INK = "#010203"
"""Stands for the page's text colour while drawing."""
COLOURS = ("#8b929c", "#3b82f6", "#f59e0b", "#10b981", "#d6488f", "#8b5cf6")
"""Baseline first; mid tones that can be told apart on white and on near-black, also by most colour-blind readers."""
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


def new_figure(
    width: float, height: float, panels: int, ratios: Sequence[float] | None = None, *, across: bool = False
) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if across:
        return figure, list(figure.subplots(1, panels, squeeze=False).flat)
    return figure, list(figure.subplots(panels, 1, squeeze=False, height_ratios=ratios).flat)


def svg_of(figure: Any) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor").replace("<svg ", '<svg aria-hidden="true" ', 1)
