"""``metrics.jsonl`` as people read it: the names of its numbers, how fast the run is, how long it still takes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

SHOWN = {
    "train/loss": "loss",
    "train/implicit_accuracy": "implicit accuracy",
    "train/margin": "margin",
    "train/chosen_error_vs_reference": "chosen error vs reference",
    "train/rejected_error_vs_reference": "rejected error vs reference",
    "train/grad_norm": "gradient norm",
    "train/lr": "learning rate",
    "train/gpu_memory_gb": "GPU memory at its peak, GB",
}
ROWS = 20
"""Rows that tell how fast a run is now."""


def seconds_per_update(rows: Sequence[dict[str, Any]]) -> float | None:
    """The median of the last rows, so that a break between two of them does not count; None before there are two."""
    gaps = [
        (b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairwise(rows[-ROWS:]) if b["step"] > a["step"]
    ]
    return sorted(gaps)[len(gaps) // 2] if gaps else None


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def summary(rows: Sequence[dict[str, Any]], global_batch_size: int, max_steps: int) -> str:
    """The last row in one line: speed, loss, implicit accuracy, errors against the reference, memory, time left."""
    last, parts = rows[-1], []
    seconds = seconds_per_update(rows)
    if seconds:
        parts.append(f"{global_batch_size / seconds:.3g} pairs/s")
    for key, name, form in (
        ("train/loss", "loss", ".4f"),
        ("train/implicit_accuracy", "accuracy", ".3f"),
        ("train/chosen_error_vs_reference", "chosen", "+.2e"),
        ("train/rejected_error_vs_reference", "rejected", "+.2e"),
        ("train/gpu_memory_gb", "GPU GB", ".1f"),
    ):
        if key in last:
            parts.append(f"{name} {last[key]:{form}}")
    if seconds and last["step"] < max_steps:
        parts.append(f"ends in {duration(seconds * (max_steps - last['step']))}")
    return "  ".join(parts)
