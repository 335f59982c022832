"""RayContext: the training body's view of a Ray Train worker."""

from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist


class RayContext:
    """``dpo_core.context.RunContext`` spoken in ``ray.train``; made inside a worker."""

    def __init__(self, run_dir: str | Path) -> None:
        train = ray.train.get_context()
        self.rank = train.get_world_rank()
        self.world_size = train.get_world_size()
        self.device = ray.train.torch.get_device()
        self.run_dir = Path(run_dir)

    def report(self, metrics: dict[str, Any]) -> None:
        ray.train.report(metrics)

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
