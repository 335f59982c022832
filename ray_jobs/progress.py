"""The driver's view of a running training: a progress bar fed from ``metrics.jsonl``."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dpo_core.metrics import read_complete_rows

SHOWN = {"train/loss": "loss", "train/implicit_accuracy": "accuracy", "train/margin": "margin"}


@contextmanager
def training_progress(run_dir: Path, max_steps: int, console: Console, label: str) -> Iterator[None]:
    """Show how far the run in ``run_dir`` is, for as long as the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    stop = threading.Event()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=max_steps, numbers="starting workers")

        def follow() -> None:
            while not stop.wait(0.5):
                rows = read_complete_rows(run_dir / "metrics.jsonl")
                if rows:
                    last = rows[-1]
                    numbers = "  ".join(f"{short} {last[key]:.4f}" for key, short in SHOWN.items() if key in last)
                    progress.update(task, completed=last["step"], numbers=numbers)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
