"""Running means over the global batch, and the file they are kept in."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_core.context import RunContext


class RunningMeans:
    """Weighted sums on the device; read once per logged step, so that training never waits for a number."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weight: Tensor | None = None

    def add(self, metrics: dict[str, Tensor], weights: Tensor) -> None:
        """Add per-pair values, each ``[pairs]``, with the weight of each pair."""
        for name, values in metrics.items():
            total = (values.double() * weights).sum()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        total = weights.double().sum()
        self.weight = total if self.weight is None else self.weight + total

    def take(self, context: RunContext) -> dict[str, float]:
        """Means over all ranks since the last call; empties the sums."""
        if self.weight is None:
            return {}
        names = sorted(self.sums)
        packed = torch.stack([self.weight, *(self.sums[name] for name in names)])
        weight, *sums = context.all_reduce(packed).tolist()
        self.__init__()
        return {name: value / max(weight, 1e-12) for name, value in zip(names, sums, strict=True)} | {"pairs": weight}


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
