"""Pairs as the training step eats them: decoded, cropped, captioned, in the order of the schedule."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dpo_core import randomness
from dpo_core.data import images, schema
from dpo_core.data.order import Schedule
from dpo_core.data.plan import DataSection, Plan, Slot
from dpo_core.data.quarantine import Quarantined, RowRejected
from dpo_core.data.reader import RowReader

__all__ = ["BatchLoader", "DataSection", "PairBatch", "make_schedule", "step_batches"]

T = TypeVar("T")


@dataclass(slots=True)
class PairBatch:
    """Some pairs of one update step. Dimension 1 of the tensors is chosen (0) and rejected (1).

    A row that could not be decoded leaves an empty slot: weight 0, zeros, empty captions, a record in ``quarantined``.
    Either ``pixels`` (uint8 ``[B, 2, 3, H, W]``) is there, or ``posterior`` (float32 ``[B, 2, 2, C, h, w]``; dimension
    2 is mean and standard deviation of the autoencoder's unscaled posterior). ``weights`` is float32 ``[B]``.
    """

    pair_ids: list[str]
    epochs: list[int]
    weights: torch.Tensor
    chosen_captions: list[str]
    rejected_captions: list[str]
    pixels: torch.Tensor | None = None
    posterior: torch.Tensor | None = None
    quarantined: list[Quarantined] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pair_ids)


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
    loader = BatchLoader(section, seed)

    def steps() -> Iterator[list[PairBatch]]:
        step = start_step
        while True:
            slots = schedule.slots(step, rank, world_size)
            yield [
                loader.load(slots[first : first + worker_batch_size])
                for first in range(0, len(slots), worker_batch_size)
            ]
            step += 1

    return steps()


def make_schedule(plan: Plan, section: DataSection, *, seed: int, global_batch_size: int) -> Schedule:
    return Schedule(plan, seed=seed, global_batch_size=global_batch_size, lanes=section.lanes, window=section.window)


class BatchLoader:
    """Turns slots into batches; keeps recently read row groups up to ``cache_bytes``."""

    def __init__(self, section: DataSection, seed: int, *, cache_bytes: int = 2 << 30) -> None:
        self._section = section
        self._seed = seed
        self._captions = schema.caption_columns(section.captions == "per_image")
        self._reader = RowReader((*self._captions, *schema.IMAGES, *schema.LABELS), max_bytes=cache_bytes)

    def load(self, slots: Sequence[Slot]) -> PairBatch:
        """The batch of ``slots``, in their order. Raises ValueError when a file cannot be read."""
        side = self._section.resolution
        pixels = np.zeros((len(slots), 2, side, side, 3), dtype=np.uint8)
        batch = PairBatch(
            pair_ids=[slot.pair_id for slot in slots],
            epochs=[slot.epoch for slot in slots],
            weights=torch.zeros(len(slots)),
            chosen_captions=[""] * len(slots),
            rejected_captions=[""] * len(slots),
        )
        # Row group by row group, so that a reader without room for many reads each of them once.
        for index in sorted(range(len(slots)), key=lambda index: (slots[index].group.file, slots[index].group.index)):
            slot = slots[index]
            try:
                pair = self._read(slot)
                pixels[index] = self._crop(pair, slot.epoch)
            except RowRejected as rejected:
                batch.quarantined.append(slot.quarantined(rejected))
                continue
            batch.weights[index] = 1
            batch.chosen_captions[index], batch.rejected_captions[index] = self._draw_captions(pair, slot.epoch)
        batch.pixels = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 1, 4, 2, 3)))
        return batch

    def _read(self, slot: Slot) -> schema.PreferencePair:
        row = self._reader.row(slot.group, slot.row)
        side = schema.chosen_side(*(row.column(name)[0].as_py() for name in schema.LABELS))
        assert side is not None, "the plan leaves ties out"
        pair_images = [_only(schema.read_images(row.column(name))) for name in schema.IMAGES]
        texts = [_only(schema.read_texts(row.column(name))) for name in self._captions]
        return schema.make_pair(slot.pair_id, side, pair_images, texts)

    def _crop(self, pair: schema.PreferencePair, epoch: int) -> NDArray[np.uint8]:
        """uint8 ``[2, H, W, 3]``."""
        section = self._section
        x, y = (self._uniform(pair, epoch, f"crop {axis}") if section.crop == "random" else 0.5 for axis in "xy")
        crops = []
        for data, name in ((pair.chosen, "chosen"), (pair.rejected, "rejected")):
            purpose = "flip" if section.flip == "pair" else f"flip {name}"
            flip = section.flip != "none" and self._uniform(pair, epoch, purpose) < 0.5
            try:
                image = images.decode(data, section.limits)
            except RowRejected as rejected:
                raise RowRejected(rejected.reason, f"{name} image: {rejected.detail}".rstrip(": ")) from rejected
            crops.append(images.training_crop(image, section.resolution, x=x, y=y, flip=flip))
        return np.stack(crops)

    def _draw_captions(self, pair: schema.PreferencePair, epoch: int) -> tuple[str, str]:
        if self._uniform(pair, epoch, "caption dropout") < self._section.caption_dropout:
            return "", ""
        draw = self._uniform(pair, epoch, "caption choice")
        chosen, rejected = pair.chosen_captions, pair.rejected_captions
        return chosen[int(draw * len(chosen))], rejected[int(draw * len(rejected))]

    def _uniform(self, pair: schema.PreferencePair, epoch: int, purpose: str) -> float:
        return randomness.uniform(self._seed, epoch, pair.pair_id, purpose)


def _only(values: list[T]) -> T:
    (value,) = values
    return value
