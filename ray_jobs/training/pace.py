"""How long each rank takes of its own for an update, and who holds up the others.

Every update ends in a sum over all ranks, so all take the same time; what differs is how long each one waits for the
others. A rank's own time is an update without its waits in collectives. Its median over the last updates says nothing
of a checkpoint or a picture that one rank alone makes now and then.
"""

import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

Mark = float | torch.cuda.Event
"""A moment: seconds on the host, or an event in the stream of a GPU."""
WINDOW = 20
"""Updates that the median is taken over."""
FEWEST = 10
"""Updates before anything is said."""
SLOW = 1.5
"""A rank is slow when its own time is this many times the median of the other ranks' times."""
NOTABLE_S = 0.01
"""Of updates that take less than this nobody is called slow."""


class Pace:
    """The clock of one rank. On a GPU it is read from events in the stream, so nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._start = self._mark()
        self._waits: list[tuple[Mark, Mark]] = []
        self._updates: deque[tuple[Mark, Mark, list[tuple[Mark, Mark]]]] = deque(maxlen=WINDOW)

    def _mark(self) -> Mark:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a collective."""
        before = self._mark()
        yield
        self._waits.append((before, self._mark()))

    def update_done(self) -> None:
        """Called once per update."""
        now = self._mark()
        self._updates.append((self._start, now, self._waits))
        self._start, self._waits = now, []

    def own_seconds(self) -> float:
        """Median over the last updates; 0 while there are too few. Waits for the device."""
        if len(self._updates) < FEWEST:
            return 0.0
        if self._on_gpu:
            torch.cuda.synchronize()
        return statistics.median(
            seconds(start, end) - sum(seconds(*wait) for wait in waits) for start, end, waits in self._updates
        )


def seconds(start: Mark, end: Mark) -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return start.elapsed_time(end) / 1000
    assert isinstance(start, float)
    assert isinstance(end, float)
    return end - start


def slow_ranks(own_seconds: Sequence[float]) -> dict[int, float]:
    """Which ranks are slow, and by what factor, from the own time of every rank; empty while any of them is 0."""
    if len(own_seconds) < 2 or min(own_seconds) <= 0 or max(own_seconds) < NOTABLE_S:
        return {}
    slow = {}
    for rank, own in enumerate(own_seconds):
        factor = own / statistics.median([*own_seconds[:rank], *own_seconds[rank + 1 :]])
        if factor > SLOW:
            slow[rank] = factor
    return slow
