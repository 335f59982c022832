"""Ranks as processes with a real process group (gloo), for what threads of one process cannot show."""

import os
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dpo_core.checkpoint import load_latest
from dpo_core.recipe import TrainSection
from dpo_core.stopping import Request
from tests.train_runs import Weights, run_rank


class ProcessContext:
    """One of several ranks."""

    def __init__(self, run_dir: Path) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = torch.device("cpu")
        self.run_dir = run_dir

    def report(self, metrics: dict[str, Any]) -> None:
        del metrics

    def request(self) -> Request:
        return "nothing"

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def in_processes(folder: Path, world_size: int, work: Callable[[ProcessContext], Any]) -> list[Any]:
    """What ``work`` returns on each of ``world_size`` ranks, which share the run folder ``folder``.

    Processes are forked: they start in a moment, and what ``work`` closes over is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f".ranks-{os.urandom(4).hex()}"
    children = [os.fork() or _rank(meeting, folder, rank, world_size, work) for rank in range(world_size)]
    for child in children:
        os.waitpid(child, 0)
    told = [pickle.loads(Path(f"{meeting}-{rank}").read_bytes()) for rank in range(world_size)]
    for rank in range(world_size):
        Path(f"{meeting}-{rank}").unlink()
    meeting.unlink(missing_ok=True)
    errors = [error for _, error in told if error is not None]
    if errors:
        raise RuntimeError("\n".join(errors))
    return [value for value, _ in told]


def _rank(meeting: Path, folder: Path, rank: int, world_size: int, work: Callable[[ProcessContext], Any]) -> int:
    """Never returns: the process ends here."""
    value, error = None, None
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
        )
        value = work(ProcessContext(folder))
    except BaseException:
        error = traceback.format_exc()
    Path(f"{meeting}-{rank}").write_bytes(pickle.dumps((value, error)))
    os._exit(0)


def run_processes(config: TrainSection, folder: Path, world_size: int) -> Weights:
    """The same run shared by ``world_size`` processes; the weights that rank 0 saved."""
    in_processes(folder, world_size, lambda context: run_rank(config, folder, context))
    saved = load_latest(folder / "checkpoints")
    assert saved is not None
    return saved.weights
