"""Running means over the global batch, and the file they are kept in."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_core.context import RunContext


class RunningMeans:
    """Weighted sums on the device; read once per logged step, so that training never waits for a number."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, metrics: Mapping[str, Tensor | tuple[Tensor, Tensor]], weights: Tensor) -> None:
        """Add per-pair values, each ``[pairs]``, with the weight of each pair.

        Values may come with a mask ``[pairs]`` of the pairs that they speak of; the others do not count.
        """
        for name, value in (*metrics.items(), ("pairs", torch.ones_like(weights))):
            values, counted = value if isinstance(value, tuple) else (value, None)
            weight = weights.double() if counted is None else weights.double() * counted
            total = torch.stack([(values.double() * weight).sum(), weight.sum()])
            self.sums[name] = self.sums[name] + total if name in self.sums else total

    def state(self, context: RunContext) -> dict[str, list[float]]:
        """The sums over all ranks so far, of which `load_state` on one rank makes this window go on."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        rows = context.all_reduce(torch.stack([self.sums[name] for name in names]).clone()).tolist()
        return dict(zip(names, rows, strict=True))

    def load_state(self, state: dict[str, list[float]], device: torch.device) -> None:
        self.sums = {name: torch.tensor(row, dtype=torch.float64, device=device) for name, row in state.items()}

    def take(self, context: RunContext) -> dict[str, float]:
        """Means over all ranks since the last call, and ``pairs``, how many there were; empties the sums.

        A mean over no pair at all is left out. Every rank must have added the same names.
        """
        if not self.sums:
            return {}
        names = sorted(self.sums)
        rows = context.all_reduce(torch.stack([self.sums[name] for name in names])).tolist()
        self.__init__()
        means = {name: total / weight for name, (total, weight) in zip(names, rows, strict=True) if weight > 0}
        return means | {"pairs": dict(zip(names, rows, strict=True))["pairs"][1]}


def device_memory(device: torch.device) -> dict[str, float]:
    """The most memory that tensors of this process have held on its GPU so far, in 10^9 bytes; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    return {"gpu_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}


class MetricsFile:
    """``metrics.jsonl``: one JSON object per logged step, appended by rank 0.

    Values that are not finite have no place in JSON; they are named under ``not_finite``. A resumed run repeats steps
    that it had already logged, to the bit; they are not written a second time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        rows = read_complete_rows(path)
        self.last_step = rows[-1]["step"] if rows else -1
        if path.exists():  # a row cut short by a crash is written again, not glued to the next one
            with path.open("r+b") as file:
                file.truncate(path.read_bytes().rfind(b"\n") + 1)

    def rows_until(self, step: int) -> list[dict]:
        """The rows of updates up to ``step``."""
        return [row for row in read_complete_rows(self.path) if row["step"] <= step]

    def append(self, step: int, metrics: dict[str, float]) -> None:
        if step <= self.last_step:
            return
        self.last_step = step
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        row: dict[str, Any] = {"step": step, "time": round(time.time(), 3)} | finite
        if len(finite) < len(metrics):
            row["not_finite"] = sorted(metrics.keys() - finite.keys())
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_complete_rows(path: Path) -> list[dict]:
    """All complete rows of a metrics file; a row that is still being written is left out."""
    if not path.exists():
        return []
    data = path.read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
