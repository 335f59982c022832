"""The driver's view of a running training, fed from ``metrics.jsonl``."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from dpo_core.metrics import read_complete_rows
from ray_jobs.record.readings import summary

LINE_EVERY_S = 30.0
"""Seconds between two lines where the console is a file or a job's log, which cannot show a bar."""


@contextmanager
def training_progress(
    run_dir: Path, max_steps: int, console: Console, label: str, *, global_batch_size: int
) -> Iterator[None]:
    """Show how the run in ``run_dir`` stands, for as long as the block runs: a bar and a line of numbers under it.

    Errors are against the reference: chosen should be below zero, or at least below rejected.
    """
    stop = threading.Event()
    view = Bar(console, label, max_steps) if console.is_terminal else Lines(console, label, max_steps)

    def follow() -> None:
        ended, seen = False, 0
        while not ended:
            ended = stop.wait(0.5)
            rows = read_complete_rows(run_dir / "metrics.jsonl")
            if len(rows) > seen:
                seen = len(rows)
                view.show(rows[-1], summary(rows, global_batch_size, max_steps))

    with view.live:
        thread = threading.Thread(target=follow, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


class Bar:
    """For a terminal; gone when the run ends."""

    def __init__(self, console: Console, label: str, max_steps: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, expand=True)
        self.task = self.progress.add_task(escape(label), total=max_steps)
        self.live = Live(self._with("starting"), console=console, transient=True, refresh_per_second=4)

    def _with(self, numbers: str) -> Group:
        return Group(self.progress, Text(numbers, style="dim"))

    def show(self, row: dict[str, Any], numbers: str) -> None:
        self.progress.update(self.task, completed=row["step"])
        self.live.update(self._with(numbers))


class Lines:
    """For a file: the first row, then one every half minute, and the last."""

    def __init__(self, console: Console, label: str, max_steps: int) -> None:
        self.console, self.label, self.max_steps = console, label, max_steps
        self.live, self.told = nullcontext(), -LINE_EVERY_S

    def show(self, row: dict[str, Any], numbers: str) -> None:
        if time.monotonic() - self.told >= LINE_EVERY_S or row["step"] >= self.max_steps:
            self.told = time.monotonic()
            line = f"{self.label} {row['step']:,}/{self.max_steps:,}  {numbers}"
            self.console.print(line, soft_wrap=True, markup=False, highlight=False)
