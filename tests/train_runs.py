"""Training runs of tiny models in this process, for tests that compare runs with one another."""

import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from dpo_core.checkpoint import load_latest
from dpo_core.context import LocalContext, RunContext
from dpo_core.data.batches import step_batches
from dpo_core.data.plan import Plan
from dpo_core.metrics import read_complete_rows
from dpo_core.recipe import TrainSection
from dpo_core.stopping import Request
from dpo_core.training import train

Weights = dict[str, torch.Tensor]


def make_config(model: Path, pairs: Path, **sections: dict[str, Any]) -> TrainSection:
    """Four updates of DPO on SD1.5's architecture unless ``sections`` say otherwise; each section is merged in."""
    given: dict[str, dict[str, Any]] = {
        "family": {"kind": "sd15", "model": str(model)},
        "objective": {"kind": "dpo", "beta": 500.0},
        "data": {"paths": [str(pairs)], "resolution": 16, "min_side": 16},
        "optim": {"lr": 1e-3},
        "loop": {
            "max_steps": 4, "global_batch_size": 8, "worker_batch_size": 8, "log_every": 1, "checkpoint_every": 1,
        },
    }  # fmt: skip
    for name, values in sections.items():
        replaces = "kind" in values and name != "family"
        given[name] = values if replaces else given.get(name, {}) | values
    return TrainSection.model_validate(given)


def run(config: TrainSection, folder: Path, context: RunContext | None = None) -> Weights:
    """Train in ``folder``; the trained weights."""
    run_rank(config, folder, context or LocalContext(folder, "cpu"))
    saved = load_latest(folder / "checkpoints")
    assert saved is not None
    return saved.weights


def run_rank(config: TrainSection, folder: Path, context: RunContext) -> None:
    """What one rank does. Its return does not mean that rank 0 has written the last checkpoint."""
    folder.mkdir(exist_ok=True)
    plan = Plan.build(config.data)

    def batches(start: int):
        return step_batches(plan, config.data, config.loop.share(context), start)

    train(config, context, plan, batches, name="test")


def rows(folder: Path) -> list[dict[str, Any]]:
    """The logged rows without their times."""
    return [{k: v for k, v in row.items() if k != "time"} for row in read_complete_rows(folder / "metrics.jsonl")]


def same(one: Weights, other: Weights) -> bool:
    """Whether two runs ended with the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one: Weights, other: Weights, atol: float) -> float:
    """Share of the weights that differ by at most ``atol``."""
    near = torch.cat([torch.isclose(one[name], other[name], rtol=0, atol=atol).flatten() for name in one])
    return near.float().mean().item()


class Ranks:
    """Several ranks as threads of this process; their collectives really meet."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.barrier = threading.Barrier(world_size, timeout=60)
        self.slots: list[Any] = [None] * world_size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.slots[rank] = value
        self.barrier.wait()
        values = list(self.slots)
        self.barrier.wait()
        return values


class ThreadContext:
    """One of several ranks."""

    def __init__(self, ranks: Ranks, rank: int, run_dir: Path) -> None:
        self.ranks = ranks
        self.rank = rank
        self.world_size = ranks.world_size
        self.device = torch.device("cpu")
        self.run_dir = run_dir

    def report(self, metrics: dict[str, Any]) -> None:
        del metrics

    def request(self) -> Request:
        return "nothing"

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor.copy_(torch.stack(self.ranks.exchange(self.rank, tensor.clone())).sum(0))
        return tensor

    def gather(self, value: Any) -> list[Any]:
        return self.ranks.exchange(self.rank, value)


def run_ranks(config: TrainSection, folder: Path, world_size: int) -> Weights:
    """The same run shared by ``world_size`` ranks; the weights that rank 0 saved."""
    ranks = Ranks(world_size)
    kind, load = type(config.family), type(config.family).load
    one_at_a_time = threading.Lock()  # loading is not safe between threads: weights are made on the meta device

    def load_alone(self: Any, *arguments: Any, **named: Any) -> Any:
        with one_at_a_time:
            return load(self, *arguments, **named)

    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            run_rank(config, folder, ThreadContext(ranks, rank, folder))
        except BaseException as error:
            errors.append(error)
            ranks.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    with patch.object(kind, "load", load_alone):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    saved = load_latest(folder / "checkpoints")
    assert saved is not None
    return saved.weights
