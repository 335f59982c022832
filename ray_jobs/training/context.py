"""RayContext: the training body's view of a Ray Train worker."""

import logging
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from dpo_core.stopping import Request, stop_asked
from ray_jobs.training.pace import Pace, slow_ranks
from ray_jobs.training.workers import TOLD_TO_END, nodes_alive

log = logging.getLogger(__name__)
ASK_RAY_EVERY_S = 2.0
LAST_S = 10.0
"""This long before an announced node goes, one more checkpoint is written."""
TELL_SLOW_EVERY_S = 300.0
"""A rank that stays slow is named again after this long."""


class RayContext:
    """``dpo_core.context.RunContext`` spoken in ``ray.train``; made inside a worker."""

    def __init__(self, run_dir: str | Path, wanted_workers: int | None = None) -> None:
        """``wanted_workers`` is how many there would be if no node were missing; None: as many as there are."""
        train = ray.train.get_context()
        self.rank = train.get_world_rank()
        self.world_size = train.get_world_size()
        self.device = ray.train.torch.get_device()
        self.run_dir = Path(run_dir)
        self.may_grow = wanted_workers is not None and self.world_size < wanted_workers
        self.asked_ray = time.monotonic()
        self.preempted = False
        self.last_words = False
        self.ending = False
        self.nodes = nodes_alive() if self.may_grow else 0
        self.pace = Pace(self.device)
        self.told_slow: dict[int, float] = {}
        where = f"node {ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:12]})"
        self.places = self.gather(where)
        """Where each rank runs."""

    def report(self, metrics: dict[str, Any]) -> None:
        """Name ranks that hold up the others.

        Ray is not told: nobody would read it there, and its controller fetches one report in two seconds, for which
        every worker would wait.
        """
        del metrics
        if self.world_size > 1:
            own = torch.zeros(self.world_size, dtype=torch.float64, device=self.device)
            own[self.rank] = self.pace.own_seconds()
            self.tell_slow(self.all_reduce(own).tolist())

    def tell_slow(self, own_seconds: list[float]) -> None:
        if self.rank != 0:
            return
        now = time.monotonic()
        for rank, factor in slow_ranks(own_seconds).items():
            if now - self.told_slow.get(rank, -TELL_SLOW_EVERY_S) < TELL_SLOW_EVERY_S:
                continue
            self.told_slow[rank] = now
            log.warning(
                "rank %d on %s is slow: %.2f s of its own per update, %.1f times the median of the others",
                rank, self.places[rank], own_seconds[rank], factor,
            )  # fmt: skip

    def request(self) -> Request:
        """Stop when the stop file is there; a checkpoint when something is about to take workers away: SIGTERM, a
        node that Ray says will go, a node that came and for which Ray will start anew with more workers.

        Ray's answer is a meeting of all workers, which costs more than a small update: they ask when one of them has
        not asked for two seconds.
        """
        self.pace.update_done()
        if self.ending and TOLD_TO_END.is_set():
            raise RuntimeError(f"rank {self.rank} ends: it has got SIGTERM, and its run has written a checkpoint")
        due = time.monotonic() - self.asked_ray > ASK_RAY_EVERY_S
        asked = torch.tensor(
            [stop_asked(self.run_dir), due, TOLD_TO_END.is_set()], dtype=torch.int32, device=self.device
        )
        stop, ask, told = self.all_reduce(asked).tolist()
        if stop:
            return "stop"
        if told and not self.ending:
            self.ending = True
            if self.rank == 0:
                log.warning("SIGTERM to %d of %d workers: writing a checkpoint", told, self.world_size)
            return "checkpoint"
        return self.ask_ray() if ask else "nothing"

    def ask_ray(self) -> Request:
        """A checkpoint when a node is announced to go, again shortly before it does, and when one has come."""
        self.asked_ray = time.monotonic()
        info = ray.train.get_preemption_info()
        first, self.preempted = info is not None and not self.preempted, info is not None
        going = info is not None and info.deadline_ms is not None and info.deadline_ms / 1000 - time.time() < LAST_S
        flags = torch.tensor([going, self.nodes_came()], dtype=torch.int32, device=self.device)
        goes, came = self.all_reduce(flags).tolist()  # clocks differ
        last, self.last_words = bool(goes) and not self.last_words, bool(goes)
        if self.rank == 0:
            for due, why in (
                (first, "Ray has announced that a node will be taken away"),
                (last and not first, "the announced node is about to go"),
                (came, f"a node has come, and Ray will start anew with more than {self.world_size} workers"),
            ):
                if due:
                    log.warning("%s: writing a checkpoint", why)
        return "checkpoint" if first or last or came else "nothing"

    def nodes_came(self) -> bool:
        """On rank 0: whether there are more nodes than when this was last asked, and workers are still missing."""
        if not self.may_grow or self.rank != 0:
            return False
        before, self.nodes = self.nodes, nodes_alive()
        return self.nodes > before

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.world_size > 1:
            with self.pace.waiting():
                dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self.pace.waiting():
            dist.all_gather_object(values, value)
        return values
