"""Ending a run early and cleanly: a signal or a file asks, the loop answers with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal

Request = Literal["nothing", "checkpoint", "stop"]
"""What may be asked of a run: to go on, to write a checkpoint and go on, or to write one and end."""

STOP_FILE = "stop"
"""A file of this name in the run folder ends the run after its current update."""


@contextmanager
def signals_stop(run_dir: Path) -> Iterator[None]:
    """Inside, the first SIGTERM or SIGINT (Ctrl-C) leaves the stop file; a second one acts as it would have without us.

    Elsewhere than in the main thread signals cannot be caught, and nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        ask_to_stop(run_dir)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_asked(run_dir: Path) -> bool:
    """Whether the stop file is there."""
    return (run_dir / STOP_FILE).exists()


def ask_to_stop(run_dir: Path) -> None:
    """Leave the stop file, for every process of the run to see."""
    (run_dir / STOP_FILE).touch()


def clear_stop(run_dir: Path) -> None:
    (run_dir / STOP_FILE).unlink(missing_ok=True)
