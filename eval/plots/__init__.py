"""The report's plots."""

from eval.plots.results import distributions, forest, group_bars, win_rates
from eval.plots.style import COLOURS
from eval.plots.training import sweep_plot, training_curves

__all__ = ["COLOURS", "distributions", "forest", "group_bars", "sweep_plot", "training_curves", "win_rates"]
