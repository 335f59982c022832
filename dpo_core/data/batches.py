"""What the training loop consumes: for every update step, this rank's pairs in micro-batches."""

from collections.abc import Iterator

from dpo_core.data.loader import BatchLoader, PairBatch
from dpo_core.data.order import Schedule
from dpo_core.data.plan import DataSection, Plan, Slot

__all__ = ["DataSection", "PairBatch", "make_schedule", "micro_batches", "step_batches"]


def step_batches(
    plan: Plan,
    section: DataSection,
    *,
    seed: int,
    global_batch_size: int,
    worker_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
) -> Iterator[list[PairBatch]]:
    """Endless; each item holds every micro-batch of ``rank`` for one update step, from ``start_step`` on.

    The batches of all ranks together do not depend on ``world_size``. A micro-batch has ``worker_batch_size`` pairs,
    the last one of a step may have fewer. Raises ValueError when ranks outnumber lanes or a file cannot be read.
    """
    schedule = make_schedule(plan, section, seed=seed, global_batch_size=global_batch_size)
    schedule.lanes_of(rank, world_size)
    loader = BatchLoader(section, seed, plan.cache)

    def steps() -> Iterator[list[PairBatch]]:
        step = start_step
        while True:
            yield micro_batches(loader, schedule.slots(step, rank, world_size), worker_batch_size)
            step += 1

    return steps()


def make_schedule(plan: Plan, section: DataSection, *, seed: int, global_batch_size: int) -> Schedule:
    return Schedule(plan, seed=seed, global_batch_size=global_batch_size, lanes=section.lanes, window=section.window)


def micro_batches(loader: BatchLoader, slots: list[Slot], worker_batch_size: int) -> list[PairBatch]:
    """The slots of one step, read and cut into micro-batches."""
    starts = range(0, len(slots), worker_batch_size)
    return [loader.load(slots[first : first + worker_batch_size]) for first in starts]
