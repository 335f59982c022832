"""What validation has found, in words, from the run folder alone."""

import fcntl
import json
from pathlib import Path
from typing import Any

from dpo_core.metrics import read_complete_rows
from ray_jobs.validation.best import FOLDER, picked
from ray_jobs.validation.book import FILE, LOCK, NOW, PREFIX, is_measured

TOLD = {
    "implicit_accuracy": "implicit accuracy",
    "margin": "margin",
    "chosen_error_vs_reference": "chosen error vs reference",
    "rejected_error_vs_reference": "rejected error vs reference",
}


def at_work(run_dir: Path) -> bool:
    """Whether a validator holds the run at this moment; one that was killed leaves its files but not its lock."""
    try:
        with (run_dir / LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def doing(run_dir: Path) -> str:
    """What the validator is doing now, in words; empty when there is none."""
    if not at_work(run_dir):
        return ""
    try:
        now = json.loads((run_dir / NOW).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    if now["step"] is None:
        return "waiting for the next checkpoint"
    count = f" {now['done']} of {now['of']} pairs" if now["doing"] == "measuring" and now["of"] else ""
    return f"update {now['step']:,}: {now['doing']}{count}"


def in_words(row: dict[str, Any]) -> str:
    """One row of validation.jsonl as a line."""
    if "left_out" in row:
        steps = ", ".join(f"{step:,}" for step in row["left_out"])
        return f"validation left out updates {steps}: {row['why']}"
    if not is_measured(row):
        return f"validation of update {row['step']:,} failed: {row['failed']}"
    numbers = [f"{name} {row[PREFIX + key]:.4g}" for key, name in TOLD.items() if PREFIX + key in row]
    return f"validation of update {row['step']:,}: {', '.join(numbers) or row.get('grid', 'done')}"


def validation_rows(run_dir: Path) -> list[dict[str, Any]]:
    """All rows of the setup that was used last."""
    rows = read_complete_rows(run_dir / FILE)
    return [row for row in rows if row.get("setup") == rows[-1].get("setup")]


def newest_grid(run_dir: Path) -> Path | None:
    """The sample grid of the newest validated checkpoint."""
    drawn = [run_dir / row["grid"] for row in validation_rows(run_dir) if "grid" in row]
    return next((path for path in reversed(drawn) if path.exists()), None)


def validation_facts(run_dir: Path) -> dict[str, str]:
    """What there is to say about the validation of a run; empty when it has none."""
    rows = validation_rows(run_dir)
    measured = [row for row in rows if is_measured(row)]
    facts: dict[str, str] = {}
    if measured:
        last, first = measured[-1], measured[0]
        words = [f"update {last['step']:,}"]
        for key, name in TOLD.items():
            if PREFIX + key in last:
                start = f" (start {first[PREFIX + key]:.4g})" if key == "implicit_accuracy" else ""
                words.append(f"{name} {last[PREFIX + key]:.4g}{start}")
        facts["held out"] = ", ".join(words)
    if (kept := picked(run_dir)) is not None:
        facts["best"] = f"update {kept['step']:,} in {FOLDER}/: {kept['name'].replace('_', ' ')} {kept['value']:.4g}"
    if (grid := newest_grid(run_dir)) is not None:
        facts["samples"] = str(grid)
    if now := doing(run_dir):
        facts["validating"] = now
    done = {row["step"] for row in measured}
    failed = {row["step"]: row["failed"] for row in rows if "failed" in row and row["step"] not in done}
    if failed:
        facts["validation failed"] = "; ".join(f"update {step:,}: {why}" for step, why in failed.items())
    left_out = sorted({step for row in rows for step in row.get("left_out", [])} - done)
    if left_out:
        facts["not validated"] = "updates " + ", ".join(f"{step:,}" for step in left_out[-8:])
    return facts
