"""What the training loop consumes: for every update step, this rank's pairs in micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass

from dpo_core.data.loader import BatchLoader, PairBatch
from dpo_core.data.order import Schedule
from dpo_core.data.plan import Plan, Slot
from dpo_core.data.section import DataSection

__all__ = ["DataSection", "PairBatch", "Share", "make_schedule", "micro_batches", "step_batches"]


@dataclass(frozen=True)
class Share:
    """Which part of which stream one process trains on."""

    seed: int
    global_batch_size: int
    """Pairs per update step, over all ranks."""
    worker_batch_size: int
    """Pairs per micro-batch."""
    rank: int = 0
    world_size: int = 1


def step_batches(plan: Plan, section: DataSection, share: Share, start_step: int = 0) -> Iterator[list[PairBatch]]:
    """Endless; each item holds every micro-batch of ``share`` for one update step, from ``start_step`` on.

    The batches of all ranks together do not depend on their number. A micro-batch has ``worker_batch_size`` pairs, the
    last one of a step may have fewer. Raises ValueError when ranks outnumber lanes or a file cannot be read.
    """
    schedule = make_schedule(plan, section, share)
    loader = BatchLoader(section, share.seed, plan.cache, plan.quality_shape)

    def steps() -> Iterator[list[PairBatch]]:
        step = start_step
        while True:
            slots = schedule.slots(step, share.rank, share.world_size)
            yield micro_batches(loader, slots, share.worker_batch_size)
            step += 1

    return steps()


def make_schedule(plan: Plan, section: DataSection, share: Share) -> Schedule:
    """The order of the stream. Raises ValueError when the ranks outnumber its lanes."""
    schedule = Schedule(
        plan,
        seed=share.seed,
        global_batch_size=share.global_batch_size,
        lanes=section.lanes,
        window=section.window,
        donors=section.rejected == "other",
    )
    schedule.lanes_of(share.rank, share.world_size)
    return schedule


def micro_batches(loader: BatchLoader, slots: list[Slot], worker_batch_size: int) -> list[PairBatch]:
    """The slots of one step, read and cut into micro-batches."""
    starts = range(0, len(slots), worker_batch_size)
    return [loader.load(slots[first : first + worker_batch_size]) for first in starts]
