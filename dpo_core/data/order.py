"""The order of training: a function of (seed, epoch) alone, cut into lanes that workers share out.

The order of an epoch is cut into L contiguous lanes. A lane's endless stream is its part of epoch 0, then its part of
epoch 1, and so on; update step s takes items [s * g, (s + 1) * g) of every lane, g = global_batch_size / L. Rank r of N
reads lanes r, r + N, ... Any N therefore sees the same global batches, and the position of a run is its step number.
"""

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpo_core import randomness
from dpo_core.data.plan import Plan, Slot

NEAR_DONORS = FAR_DONORS = 16
"""How many rows at most are tried for an image of another pair, inside and outside the window."""


class EpochOrder:
    """One epoch of the usable rows: row groups shuffled, then rows shuffled inside windows of ``window`` groups."""

    def __init__(self, starts: NDArray[np.int64], seed: int, epoch: int, window: int) -> None:
        groups = _shuffled(np.arange(len(starts) - 1), seed, epoch, "row groups")
        self._windows = [groups[first : first + window] for first in range(0, len(groups), window)]
        sizes = [int((starts[groups + 1] - starts[groups]).sum()) for groups in self._windows]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        self._starts, self._seed, self._epoch = starts, seed, epoch
        self._rows = lru_cache(maxsize=64)(self._window_rows)
        self._far = lru_cache(maxsize=64)(self._far_donors)

    def __getitem__(self, position: int) -> int:
        """The usable row (its index in the plan) at ``position``."""
        window = self._window_at(position)
        return int(self._rows(window)[position - self._offsets[window]])

    def donors(self, position: int) -> NDArray[np.int64]:
        """Other rows whose image the row at ``position`` may be given, in the order in which to try them.

        First comes the row a fixed way further round the window, so that every row of a window gives to one and takes
        from one, out of row groups that a reader has in memory anyway; then the rows after it; then, for a window that
        shows a single image, rows from all over the rest of the epoch.
        """
        window = self._window_at(position)
        rows, own = self._rows(window), position - int(self._offsets[window])
        others = len(rows) - 1
        way = int(randomness.uniform(self._seed, self._epoch, "", f"donors of window {window}") * others)
        further = 1 + (way + np.arange(min(NEAR_DONORS, others))) % max(others, 1)
        return np.concatenate([rows[(own + further) % len(rows)], self._far(window)])

    def _window_at(self, position: int) -> int:
        return int(np.searchsorted(self._offsets, position, side="right")) - 1

    def _far_donors(self, window: int) -> NDArray[np.int64]:
        """Rows at even distances through the rest of the epoch, beginning with the next window."""
        start, stop, total = (int(self._offsets[index]) for index in (window, window + 1, -1))
        rest = total - (stop - start)
        count = min(FAR_DONORS, rest)
        return np.array([self[(stop + i * rest // count) % total] for i in range(count)], dtype=np.int64)

    def _window_rows(self, window: int) -> NDArray[np.int64]:
        rows = np.concatenate(
            [np.arange(int(self._starts[group]), int(self._starts[group + 1])) for group in self._windows[window]]
        )
        return _shuffled(rows, self._seed, self._epoch, f"rows of window {window}")


class Schedule:
    """Which rows every rank reads at every update step; with ``donors``, also whose images they may be given."""

    def __init__(
        self, plan: Plan, *, seed: int, global_batch_size: int, lanes: int, window: int, donors: bool = False
    ) -> None:
        if donors and plan.rows < 2:
            raise ValueError(
                "data.rejected=other takes the rejected image from another pair, but the data has only one usable row"
            )
        self.lanes = lane_count(lanes, global_batch_size, plan.rows)
        self.items_per_lane = global_batch_size // self.lanes
        self._plan = plan
        self._donors = donors
        self._order = lru_cache(maxsize=64)(lambda epoch: EpochOrder(plan.starts, seed, epoch, window))

    def lanes_of(self, rank: int, world_size: int) -> range:
        """The lanes of a rank. Raises ValueError when there are more ranks than lanes."""
        if world_size > self.lanes:
            raise ValueError(
                f"{world_size} workers cannot share {self.lanes} lanes; lanes divide the global batch and are at most "
                f"data.lanes: raise data.lanes or loop.global_batch_size, or use at most {self.lanes} workers"
            )
        return range(rank, self.lanes, world_size)

    def slots(self, step: int, rank: int, world_size: int) -> list[Slot]:
        """The slots of ``rank`` in update step ``step``, lane by lane."""
        items = range(step * self.items_per_lane, (step + 1) * self.items_per_lane)
        return [self._slot(lane, item) for lane in self.lanes_of(rank, world_size) for item in items]

    def _slot(self, lane: int, item: int) -> Slot:
        epoch, position = position_of(lane, item, self.lanes, self._plan.rows)
        order = self._order(epoch)
        slot = self._plan.slot(order[position], epoch)
        if self._donors:
            return replace(slot, donors=self._plan.where(order.donors(position)))
        return slot


def lane_count(lanes: int, global_batch_size: int, rows: int) -> int:
    """The largest common divisor of ``lanes`` and ``global_batch_size`` that leaves every lane at least one row."""
    common = math.gcd(lanes, global_batch_size)
    return max(count for count in range(1, common + 1) if common % count == 0 and count <= rows)


def position_of(lane: int, item: int, lanes: int, rows: int) -> tuple[int, int]:
    """(epoch, position in that epoch's order) of item ``item`` of a lane's endless stream."""
    start, stop = lane * rows // lanes, (lane + 1) * rows // lanes
    epoch, offset = divmod(item, stop - start)
    return epoch, start + offset


def _shuffled(values: NDArray[np.int64], seed: int, epoch: int, purpose: str) -> NDArray[np.int64]:
    name = randomness.key(seed, epoch, "", purpose)
    # RandomState, because numpy promises that its stream never changes; a newer generator's may.
    return np.random.RandomState([name >> 32, name & 0xFFFFFFFF]).permutation(values)
