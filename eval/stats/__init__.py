"""Paired statistics over prompts. Input everywhere: one number per prompt, already averaged over the prompt's seeds.

The prompt is the unit: images of one prompt resemble each other, so resampling images would give intervals that are
far too narrow. Averaging within a prompt first and then resampling prompts is the cluster bootstrap for equal clusters.
"""

from eval.stats.agreement import agreement
from eval.stats.intervals import mean_interval, share_interval, win_rate_interval
from eval.stats.power import minimum_detectable
from eval.stats.ratings import bradley_terry
from eval.stats.significance import benjamini_hochberg, least_p, sign_flip_p, sign_test_p

__all__ = [
    "agreement",
    "benjamini_hochberg",
    "bradley_terry",
    "least_p",
    "mean_interval",
    "minimum_detectable",
    "share_interval",
    "sign_flip_p",
    "sign_test_p",
    "win_rate_interval",
]
