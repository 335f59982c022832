"""``validation.jsonl``: what has been validated and what was left out; and what is next."""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_core.checkpoint import MANIFEST
from dpo_core.metrics import read_complete_rows

FILE = "validation.jsonl"
PREFIX = "validation/"
"""Of the names of numbers in the rows."""
WORK = "validation"
"""Folder in the run folder for what the validator needs only for itself."""
NOW, LOCK = f"{WORK}/now.json", f"{WORK}/lock"
"""What it is doing at the moment, and what only one of them holds."""


@dataclass(frozen=True)
class Book:
    """The rows of one run. A row has numbers (``validation/...``), or ``left_out`` steps and ``why``, or ``failed``.

    ``setup`` names the held-out pairs and how they are measured: rows of another setup do not count.
    """

    run_dir: Path
    setup: str

    @property
    def path(self) -> Path:
        return self.run_dir / FILE

    def rows(self) -> list[dict[str, Any]]:
        return [row for row in read_complete_rows(self.path) if row.get("setup") == self.setup]

    def append(self, step: int, **facts: Any) -> None:
        """Add a row; it is on the disk when this returns, and half a row of a crash before it is gone."""
        row = {"step": step, "time": round(time.time(), 3), "setup": self.setup, **facts}
        with self.path.open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def settled(self, there: dict[int, str]) -> set[int]:
        """Steps that need no more work. A checkpoint that was made anew with other weights needs it again."""
        steps: set[int] = set()
        for row in self.rows():
            if "left_out" in row:
                steps |= set(row["left_out"])
            elif is_measured(row) and there.get(row["step"], row["weights"]) == row["weights"]:
                steps.add(row["step"])
        return steps


def is_measured(row: dict[str, Any]) -> bool:
    """Whether the row holds a validation that was completed."""
    return "weights" in row


def checkpoints_there(run_dir: Path) -> dict[int, str]:
    """Step and hash of every complete checkpoint."""
    found: dict[int, str] = {}
    for manifest in sorted((run_dir / "checkpoints").glob(f"step-????????/{MANIFEST}")):
        try:
            files = json.dumps(json.loads(manifest.read_text())["sha256"], sort_keys=True)
        except (OSError, ValueError, KeyError):
            continue  # deleted at this very moment, or damaged: training says so
        found[int(manifest.parent.name.removeprefix("step-"))] = hashlib.sha256(files.encode()).hexdigest()[:16]
    return found


def due_steps(newest: int, *, checkpoint_every: int, every: int | None, last: int) -> list[int]:
    """The steps up to ``newest`` that should be validated: 0, one checkpoint per ``every`` updates, and ``last``."""
    every = every or checkpoint_every
    steps = range(checkpoint_every, newest + 1, checkpoint_every)
    due = [step for step in steps if step // every > (step - checkpoint_every) // every]
    return [0, *due, *([last] if newest >= last and last not in due else [])]


@dataclass(frozen=True)
class Next:
    """What to do now."""

    step: int | None
    """The checkpoint to validate, 0 for the start weights, None when nothing is open."""
    deleted: list[int]
    """Steps that are left out because their checkpoints are gone."""
    overtaken: list[int]
    """Steps that are left out because there is a newer checkpoint."""


def choose_next(due: list[int], there: set[int], settled: set[int]) -> Next:
    """The start weights first, then always the newest checkpoint."""
    open_steps = [step for step in due if step not in settled]
    if 0 in open_steps:
        return Next(0, [], [])
    ready = [step for step in open_steps if step in there]
    deleted = [step for step in open_steps if step not in there and step < max(there, default=0)]
    return Next(max(ready, default=None), deleted, ready[:-1])
