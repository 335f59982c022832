"""What the training body knows of the world it runs in."""

from pathlib import Path
from typing import Any, Protocol

import torch

from dpo_core.stopping import Request, stop_asked


class RunContext(Protocol):
    """The seam between the training body and whatever launched it (one process, Ray Train, a Tune trial)."""

    rank: int
    world_size: int
    device: torch.device
    run_dir: Path
    """The folder of this run; every process of the run sees the same one."""

    def report(self, metrics: dict[str, Any]) -> None:
        """Tell the launcher how the run stands. Every rank calls it the same number of times."""
        ...

    def request(self) -> Request:
        """What is asked of the run now. Every rank calls it once per update, and all get the same answer."""
        ...

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum ``tensor`` over the ranks, in place; returns it."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The ``value`` of every rank, in rank order, on every rank."""
        ...


class LocalContext:
    """One process, no cluster."""

    rank = 0
    world_size = 1

    def __init__(self, run_dir: str | Path, device: str | torch.device | None = None) -> None:
        self.run_dir = Path(run_dir)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def report(self, metrics: dict[str, Any]) -> None:
        del metrics

    def request(self) -> Request:
        return "stop" if stop_asked(self.run_dir) else "nothing"

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def gather(self, value: Any) -> list[Any]:
        return [value]
