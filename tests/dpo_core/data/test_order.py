from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.data.order import EpochOrder, lane_count, position_of

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def starts_of(group_sizes: list[int]) -> np.ndarray:
    return np.cumsum([0, *group_sizes], dtype=np.int64)


@given(group_sizes=sizes, seed=st.integers(0, 2**40), epoch=st.integers(0, 5), window=st.integers(1, 15))
def test_an_epoch_visits_every_row_exactly_once(group_sizes, seed, epoch, window):
    order = EpochOrder(starts_of(group_sizes), seed, epoch, window)
    assert sorted(order[position] for position in range(sum(group_sizes))) == list(range(sum(group_sizes)))


@given(rows=st.integers(1, 60), lanes=st.integers(1, 40), global_batch_size=st.integers(1, 48))
def test_lanes_divide_the_global_batch_and_never_run_dry(rows, lanes, global_batch_size):
    count = lane_count(lanes, global_batch_size, rows)
    assert global_batch_size % count == 0
    assert count <= min(lanes, rows)


@settings(deadline=None)
@given(rows=st.integers(1, 60), lanes=st.integers(1, 16), epochs=st.integers(1, 4))
def test_the_lanes_together_visit_every_position_of_every_epoch_once(rows, lanes, epochs):
    lanes = min(lanes, rows)
    visited = Counter(
        position_of(lane, item, lanes, rows)
        for lane in range(lanes)
        for item in range(epochs * ((lane + 1) * rows // lanes - lane * rows // lanes))
    )
    assert visited == Counter((epoch, position) for epoch in range(epochs) for position in range(rows))


@given(rows=st.integers(1, 1000), lanes=st.integers(1, 64))
def test_lane_sizes_differ_by_at_most_one(rows, lanes):
    lane_sizes = [(lane + 1) * rows // lanes - lane * rows // lanes for lane in range(lanes)]
    assert max(lane_sizes) - min(lane_sizes) <= 1
    assert sum(lane_sizes) == rows


def test_seeds_and_epochs_have_orders_of_their_own():
    starts = starts_of([5] * 8)
    orders = {
        (seed, epoch): tuple(EpochOrder(starts, seed, epoch, 2)[position] for position in range(40))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(orders.values())) == 9


def test_rows_are_shuffled_within_their_window_and_row_groups_among_windows():
    starts = starts_of([10] * 6)
    order = EpochOrder(starts, 0, 0, 2)
    windows = [{order[position] // 10 for position in range(first, first + 20)} for first in (0, 20, 40)]
    assert [len(groups) for groups in windows] == [2, 2, 2]
    assert set.union(*windows) == set(range(6))
    assert [order[position] for position in range(20)] != sorted(order[position] for position in range(20))


def test_the_order_is_the_same_in_every_release():
    order = EpochOrder(starts_of([3, 1, 4, 2]), seed=7, epoch=1, window=2)
    assert [order[position] for position in range(10)] == [9, 8, 3, 4, 1, 6, 7, 5, 0, 2]


@pytest.mark.parametrize(("lanes", "batch", "rows", "count"), [(16, 32, 1000, 16), (16, 24, 1000, 8), (16, 32, 5, 4)])
def test_the_number_of_lanes_is_the_largest_that_fits(lanes, batch, rows, count):
    assert lane_count(lanes, batch, rows) == count
