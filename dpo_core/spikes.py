"""Updates whose gradient is out of all proportion to those before: left out on every rank, and written down."""

import json
import statistics
from collections import deque
from pathlib import Path
from typing import Any

from dpo_core.metrics import read_complete_rows


class SpikeGuard:
    """Says whether a gradient norm is a spike: more than ``factor`` times the median of the ``window`` norms before it.

    Nothing is a spike until there have been that many. Spikes enter the window too: a median is not moved by a few of
    them, and a level that has risen for good becomes the new one after half a window. The norm is the same on all
    ranks, so all judge alike.
    """

    def __init__(self, factor: float, window: int) -> None:
        self.factor = factor
        self.norms: deque[float] = deque(maxlen=window)
        self.count = 0
        """Spikes so far."""
        self.median: float | None = None
        """What the last norm was compared with."""

    def judge(self, norm: float) -> bool:
        """Whether ``norm``, which is finite, is a spike; it is part of the window afterwards."""
        full = len(self.norms) == self.norms.maxlen
        self.median = statistics.median(self.norms) if full else None
        spike = self.median is not None and norm > self.factor * self.median
        self.norms.append(norm)
        self.count += spike
        return spike

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to judge as it would have."""
        return {"norms": list(self.norms), "count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        self.norms.extend(state["norms"])
        self.count = state["count"]


class SpikeFile:
    """``spikes.jsonl``: an object for each update that was left out as a spike, with the ids of its pairs.

    A resumed run repeats updates that were written down already; they are not written a second time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {row["update"] for row in read_complete_rows(path)}
        if path.exists():  # a line cut short by a crash is written again, not glued to the next one
            with path.open("r+b") as file:
                file.truncate(path.read_bytes().rfind(b"\n") + 1)

    def append(self, update: int, norm: float, median: float, pair_ids: list[str]) -> None:
        """``median`` is the norm that ``norm`` was compared with; ``pair_ids`` are those of all ranks."""
        if update in self._known:
            return
        self._known.add(update)
        row = {"update": update, "grad_norm": norm, "median": median, "pair_ids": pair_ids}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
