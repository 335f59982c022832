"""RayContext: the training body's view of a Ray Train worker."""

import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from dpo_core.stopping import Request, stop_asked

PREEMPTION_EVERY_S = 2.0


class RayContext:
    """``dpo_core.context.RunContext`` spoken in ``ray.train``; made inside a worker."""

    def __init__(self, run_dir: str | Path) -> None:
        train = ray.train.get_context()
        self.rank = train.get_world_rank()
        self.world_size = train.get_world_size()
        self.device = ray.train.torch.get_device()
        self.run_dir = Path(run_dir)
        self.asked_ray = time.monotonic()
        self.preempted = False

    def report(self, metrics: dict[str, Any]) -> None:
        ray.train.report(metrics)

    def request(self) -> Request:
        """Stop when the stop file is there; a checkpoint when Ray has said that a node is about to be taken away.

        Ray's answer is a meeting of all workers, which costs more than a small update: they ask when one of them has
        not asked for two seconds.
        """
        due = time.monotonic() - self.asked_ray > PREEMPTION_EVERY_S
        asked = torch.tensor([stop_asked(self.run_dir), due], dtype=torch.int32, device=self.device)
        stop, ask = self.all_reduce(asked).tolist()
        if stop:
            return "stop"
        if not ask:
            return "nothing"
        self.asked_ray = time.monotonic()
        announced = ray.train.get_preemption_info() is not None
        first, self.preempted = announced and not self.preempted, announced
        return "checkpoint" if first else "nothing"

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values
