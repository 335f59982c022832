"""Preference pairs read and decoded by Ray Data, in exactly the order and with exactly the bytes of `step_batches`.

Ray Data keeps no position of its own, so it is given none to keep: this rank's slots of the coming steps are cut into
units, each unit is read by one task, and the results arrive in order. Resuming is starting at another step.
"""

import itertools
import logging
import math
import pickle
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext

from dpo_core.data.batches import DataSection, PairBatch, Share, make_schedule, micro_batches
from dpo_core.data.latents import LatentCache
from dpo_core.data.loader import BatchLoader
from dpo_core.data.order import Schedule
from dpo_core.data.plan import Plan, Slot
from dpo_core.data.rows import PROMPT_IMAGE_SIDE

UNIT_BYTES = 128 << 20
"""Decoded size of a unit: what a task holds at once, and an object in the object store."""
MAX_UNIT_STEPS = 32
"""Of small images more would fit, but then too few units are left to be read side by side."""
GEOMETRY_BYTES = 2 * 6 * 4
EXECUTION_SLOTS = 1 << 15
"""Slots that one execution of the dataset covers; the next begins when it is used up."""
READER_BYTES = 256 << 20
"""Row groups that a reading process keeps for its next unit."""


@dataclass(frozen=True)
class Recipe:
    """What a task needs besides its slots."""

    section: DataSection
    share: Share
    cache: LatentCache | None
    quality_shape: tuple[int, int] | None


def ray_step_batches(
    plan: Plan,
    section: DataSection,
    share: Share,
    start_step: int = 0,
    stop_step: int | None = None,
    *,
    cpus_per_read: float = 0.25,
    prefetch_units: int = 2,
) -> Generator[list[PairBatch], None, None]:
    """`dpo_core.data.batches.step_batches`, bit for bit, with reading and decoding in tasks of ``cpus_per_read`` CPUs.

    Called in a Ray Train worker or any driver. ``prefetch_units`` units wait ready for the consumer. It ends before
    ``stop_step`` where that is given, so that nothing is read in vain. Closing the iterator ends the execution. Raises
    ValueError as `step_batches` does.
    """
    schedule = make_schedule(plan, section, share)
    per_step = len(schedule.lanes_of(share.rank, share.world_size)) * schedule.items_per_lane
    recipe = Recipe(section, share, plan.cache, plan.quality_shape)
    unit_steps = steps_per_unit(per_step, bytes_per_pair(section, plan.cache, plan.quality_shape))
    units = max(8, EXECUTION_SLOTS // (unit_steps * per_step))

    def steps() -> Generator[list[PairBatch], None, None]:
        for first in itertools.count(start_step, units * unit_steps):
            last = min(first + units * unit_steps, stop_step if stop_step is not None else sys.maxsize)
            if first >= last:
                return
            rows = [unit_row(schedule, steps, share) for steps in cut_steps(first, last, unit_steps)]
            tasks = tasks_at_once(share.world_size)
            dataset = quietly(lambda rows=rows, tasks=tasks: read_units(rows, recipe, cpus_per_read, tasks))
            with closing(iterate(dataset, prefetch_units)) as results:
                for unit in results:
                    yield from unit

    return steps()


def steps_per_unit(pairs_per_step: int, pair_bytes: int) -> int:
    """As many steps as fit UNIT_BYTES: many small reads of the same row groups cost more than a few large ones."""
    return max(1, min(MAX_UNIT_STEPS, UNIT_BYTES // (pairs_per_step * pair_bytes)))


def cut_steps(first: int, last: int, longest: int) -> list[range]:
    """Units of 1, 2, 4, ... and then ``longest`` steps: the consumer waits for the first unit only."""
    cuts: list[range] = []
    size = 1
    while first < last:
        cuts.append(range(first, min(first + size, last)))
        first += size
        size = min(2 * size, longest)
    return cuts


def bytes_per_pair(section: DataSection, cache: LatentCache | None, quality_shape: tuple[int, int] | None) -> int:
    """Size of the tensors of one pair."""
    images = 2 * 3 * section.resolution**2 if cache is None else 2 * 2 * 4 * math.prod(cache.shape)
    prompt_image = 3 * PROMPT_IMAGE_SIDE**2 if section.prompt_image else 0
    maps = 2 * 4 * math.prod(quality_shape) if quality_shape is not None else 0
    return images + prompt_image + maps + GEOMETRY_BYTES


def unit_row(schedule: Schedule, steps: range, share: Share) -> dict[str, bytes]:
    return {"slots": pickle.dumps([schedule.slots(step, share.rank, share.world_size) for step in steps])}


def read_units(rows: list[dict[str, bytes]], recipe: Recipe, cpus: float, tasks: int) -> ray.data.Dataset:
    """One block and one task for each unit; a row of the result is one unit of batches."""
    read: Any = read_unit
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    return dataset.map_batches(
        read,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"recipe": recipe},
        num_cpus=cpus,
        compute=ray.data.TaskPoolStrategy(size=min(tasks, len(rows))),
        zero_copy_batch=True,
    )


def tasks_at_once(world_size: int) -> int:
    """Decoding processes of one rank: the cluster's cores shared among the ranks, though each asks for less than one.

    A task that asks for a whole core would never start on a small machine whose workers hold most of them.
    """
    return max(2, int(ray.cluster_resources().get("CPU", 0)) // world_size)


def read_unit(row: pa.Table, *, recipe: Recipe) -> pa.Table:
    """The steps of a unit, pickled. A ValueError stands in their place: Ray hands on errors of tasks as text."""
    steps: list[list[Slot]] = pickle.loads(row.column("slots")[0].as_py())
    loader = loader_of(pickle.dumps(recipe))
    read: list[list[PairBatch]] | ValueError
    try:
        read = [micro_batches(loader, slots, recipe.share.worker_batch_size) for slots in steps]
    except ValueError as error:
        read = ValueError(str(error))
    return pa.table({"batches": pa.array([pickle.dumps(read, protocol=5)], type=pa.large_binary())})


@lru_cache(maxsize=1)
def loader_of(recipe: bytes) -> BatchLoader:
    """The loader of this process; kept between tasks for the row groups it remembers."""
    parts: Recipe = pickle.loads(recipe)
    return BatchLoader(parts.section, parts.share.seed, parts.cache, parts.quality_shape, cache_bytes=READER_BYTES)


def iterate(dataset: ray.data.Dataset, prefetch: int) -> Generator[list[list[PairBatch]], None, None]:
    """Every unit's steps; the execution ends with the iterator. Raises the ValueError of the first unit with one."""
    tables: Any = iter(dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=prefetch))
    with closing(tables):
        for table in tables:
            unit: list[list[PairBatch]] | ValueError = pickle.loads(table.column("batches")[0].as_buffer())
            if isinstance(unit, ValueError):
                raise unit
            yield unit


def quietly(make: Callable[[], ray.data.Dataset]) -> ray.data.Dataset:
    """Build a dataset that keeps the order of its blocks and prints nothing; the settings of the process stay."""
    for name, level in (("execution.streaming_executor", logging.WARNING), ("progress", logging.ERROR)):
        logging.getLogger(f"ray.data._internal.{name}").setLevel(level)
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Tasks reserve no memory, on purpose: a reservation could keep them from starting beside the training workers.
    context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s = -1
    with DataContext.current(context):
        return make()
