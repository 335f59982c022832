import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.data.batches import DataSection, PairBatch, Share, make_schedule, step_batches
from dpo_core.data.images import ImageLimits, crop_geometry, decode, size_of
from dpo_core.data.loader import BatchLoader
from dpo_core.data.plan import Plan
from dpo_core.data.scan import RowGroup
from dpo_core.randomness import uniform
from tests.same_batches import assert_same, flat, pixels_of, take

ASSETS = Path(__file__).parents[2] / "assets"
REAL = DataSection(paths=[str(ASSETS / "real_pairs.parquet")], resolution=32)
PLAN = Plan.build(REAL)
SHARE = Share(seed=1, global_batch_size=8, worker_batch_size=3)


def every_row(section: DataSection) -> PairBatch:
    plan = Plan.build(section)
    return BatchLoader(section, 0, plan.cache).load([plan.slot(index, 0) for index in range(plan.rows)])


def by_pair(steps: list[list[PairBatch]]) -> dict[tuple[int, str], torch.Tensor]:
    pairs = {}
    for batch in flat(steps):
        for epoch, pair_id, pixels in zip(batch.epochs, batch.pair_ids, pixels_of(batch), strict=True):
            pairs[epoch, pair_id] = pixels
    return pairs


def invented_plan(group_sizes: list[int]) -> Plan:
    rows = sum(group_sizes)
    return Plan(
        groups=[RowGroup("a.parquet", index, 0) for index in range(len(group_sizes))],
        starts=np.cumsum([0, *group_sizes], dtype=np.int64),
        places=np.concatenate([np.arange(size) for size in group_sizes]).astype(np.int32),
        pair_ids=pa.array([str(row) for row in range(rows)]),
        total=rows,
        ties=0,
        quarantined=[],
        fingerprint="",
    )


@settings(deadline=None, max_examples=60)
@given(
    group_sizes=st.lists(st.integers(1, 7), min_size=1, max_size=8),
    lanes=st.integers(1, 12),
    global_batch_size=st.integers(1, 24),
    world_size=st.integers(1, 12),
    start=st.integers(0, 9),
    seed=st.integers(0, 3),
)
def test_any_world_size_sees_the_same_global_batches_from_any_step(
    group_sizes, lanes, global_batch_size, world_size, start, seed
):
    section = DataSection(paths=["a.parquet"], lanes=lanes)
    schedule = make_schedule(invented_plan(group_sizes), section, Share(seed, global_batch_size, 1))
    world_size = min(world_size, schedule.lanes)
    for step in range(start, start + 3):
        alone = Counter(schedule.slots(step, 0, 1))
        assert alone.total() == global_batch_size
        assert sum((Counter(schedule.slots(step, rank, world_size)) for rank in range(world_size)), Counter()) == alone


@settings(deadline=None, max_examples=40)
@given(
    group_sizes=st.lists(st.integers(1, 7), min_size=1, max_size=8),
    lanes=st.integers(1, 8),
    global_batch_size=st.integers(1, 16),
)
def test_the_stream_visits_every_row_of_every_finished_epoch_exactly_once(group_sizes, lanes, global_batch_size):
    plan = invented_plan(group_sizes)
    section = DataSection(paths=["a.parquet"], lanes=lanes)
    schedule = make_schedule(plan, section, Share(0, global_batch_size, 1))
    seen = Counter(
        (slot.epoch, slot.pair_id)
        for step in range(2 + 2 * plan.rows // schedule.items_per_lane)
        for slot in schedule.slots(step, 0, 1)
    )
    assert set(seen.values()) == {1}
    assert all((epoch, str(row)) in seen for epoch in (0, 1) for row in range(plan.rows))


def test_two_ranks_together_train_on_what_one_rank_trains_on():
    alone = by_pair(take(step_batches(PLAN, REAL, SHARE), 4))
    halves = [by_pair(take(step_batches(PLAN, REAL, replace(SHARE, rank=rank, world_size=2)), 4)) for rank in (0, 1)]
    assert not halves[0].keys() & halves[1].keys()
    together = halves[0] | halves[1]
    assert together.keys() == alone.keys()
    assert all(torch.equal(together[pair], alone[pair]) for pair in alone)


def test_starting_at_a_step_is_skipping_the_steps_before_it():
    section = REAL.model_copy(update={"crop": "random", "flip": "independent", "caption_dropout": 0.3})
    assert_same(take(step_batches(PLAN, section, SHARE, 3), 3), take(step_batches(PLAN, section, SHARE), 6)[3:])


def test_micro_batches_have_the_worker_batch_size_and_the_last_one_the_rest():
    (step,) = take(step_batches(PLAN, REAL, SHARE), 1)
    assert [len(batch) for batch in step] == [3, 3, 2]
    assert pixels_of(step[0]).shape == (3, 2, 3, 32, 32)
    assert pixels_of(step[0]).dtype == torch.uint8
    assert step[0].weights.tolist() == [1, 1, 1]
    assert step[0].posterior is None


def test_more_ranks_than_lanes_are_refused_at_once():
    with pytest.raises(ValueError, match="5 workers cannot share 4 lanes"):
        step_batches(PLAN, REAL, Share(0, 4, 1, rank=0, world_size=5))


def test_hostile_rows_leave_an_empty_slot_and_a_reason():
    section = DataSection(paths=[str(ASSETS / "hostile.parquet")], resolution=32, max_quarantined_share=0.5)
    plan, batch = Plan.build(section), every_row(section)
    expected = {
        case["row"]: case["reason"] for case in json.loads((ASSETS / "hostile.json").read_text())["hostile.parquet"]
    }
    found = {record.row: str(record.reason) for record in [*plan.quarantined, *batch.quarantined]}
    assert found == {row: reason for row, reason in expected.items() if reason}
    empty = batch.weights == 0
    assert int(empty.sum()) == len(batch.quarantined) == 9
    assert not pixels_of(batch)[empty].any()
    assert all(pixels_of(batch)[~empty].flatten(1).any(dim=1))
    assert {caption for caption, gone in zip(batch.chosen_captions, empty, strict=True) if gone} == {""}


def test_the_quarantine_names_the_side_that_failed():
    section = DataSection(paths=[str(ASSETS / "hostile.parquet")], resolution=32, max_quarantined_share=0.5)
    details = {record.row: record.detail for record in every_row(section).quarantined}
    assert details[3] == "chosen image"
    assert details[18] == "rejected image: 1x1, at least 32 per side"


def test_index_zero_is_the_chosen_image(tmp_path):
    table = pq.read_table(ASSETS / "real_pairs.parquet").slice(0, 1)
    swapped = table.to_pylist()[0]
    for name in ("jpg", "label"):
        swapped[f"{name}_0"], swapped[f"{name}_1"] = swapped[f"{name}_1"], swapped[f"{name}_0"]
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist([swapped], schema=table.schema), tmp_path / "b.parquet")
    one, other = (
        every_row(DataSection(paths=[str(tmp_path / name)], resolution=32)) for name in ("a.parquet", "b.parquet")
    )
    assert torch.equal(pixels_of(one), pixels_of(other))
    assert not torch.equal(pixels_of(one)[:, 0], pixels_of(one)[:, 1])


def test_captions_are_shared_unless_each_image_is_asked_for_its_own():
    shared, own = every_row(REAL), every_row(REAL.model_copy(update={"captions": "per_image"}))
    assert shared.chosen_captions == shared.rejected_captions
    assert own.chosen_captions != own.rejected_captions


def test_caption_dropout_empties_both_captions_of_about_that_share_of_pairs():
    section = REAL.model_copy(update={"caption_dropout": 0.5})
    batches = flat(take(step_batches(PLAN, section, SHARE), 12))
    empty = [caption == "" for batch in batches for caption in batch.chosen_captions]
    assert [caption == "" for batch in batches for caption in batch.rejected_captions] == empty
    assert 0.3 < sum(empty) / len(empty) < 0.7


def test_a_list_of_captions_is_drawn_from_anew_in_each_epoch(tmp_path):
    rows = pq.read_table(ASSETS / "real_pairs.parquet").slice(0, 1).to_pylist()
    table = pa.Table.from_pylist([{**rows[0], "caption": ["one", "two", "three"]}])
    pq.write_table(table, tmp_path / "a.parquet")
    section = DataSection(paths=[str(tmp_path)], resolution=32)
    steps = take(step_batches(Plan.build(section), section, Share(0, 1, 1)), 30)
    assert {batch.chosen_captions[0] for batch in flat(steps)} == {"one", "two", "three"}


def test_flips_mirror_both_images_of_a_pair_or_each_on_its_own():
    still = by_pair(take(step_batches(PLAN, REAL, SHARE), 3))

    def flips(kind: str) -> list[tuple[bool, ...]]:
        moved = by_pair(take(step_batches(PLAN, REAL.model_copy(update={"flip": kind}), SHARE), 3))
        for pair in still:
            for side in (0, 1):
                assert torch.equal(moved[pair][side], still[pair][side]) or torch.equal(
                    moved[pair][side], still[pair][side].flip(-1)
                )
        return [tuple(not torch.equal(moved[pair][side], still[pair][side]) for side in (0, 1)) for pair in still]

    assert set(flips("pair")) == {(False, False), (True, True)}
    assert set(flips("independent")) == {(False, False), (True, True), (False, True), (True, False)}


def test_random_crops_change_with_the_epoch_and_center_crops_do_not():
    section = REAL.model_copy(update={"crop": "random"})
    loader, still = BatchLoader(section, 0, None), BatchLoader(REAL, 0, None)
    slots = [PLAN.slot(index, epoch) for epoch in (0, 1) for index in range(PLAN.rows)]
    moved, fixed = pixels_of(loader.load(slots)), pixels_of(still.load(slots))
    assert not torch.equal(moved[: PLAN.rows], moved[PLAN.rows :])
    assert torch.equal(fixed[: PLAN.rows], fixed[PLAN.rows :])


def test_each_image_has_the_geometry_of_its_own_size_and_place():
    section = REAL.model_copy(update={"crop": "random", "flip": "independent"})
    batch = BatchLoader(section, 5, None).load([PLAN.slot(index, 1) for index in range(PLAN.rows)])
    rows = pq.read_table(ASSETS / "real_pairs.parquet").to_pylist()
    usable = [row for row in rows if row["label_0"] != row["label_1"]]
    assert batch.geometry is not None
    assert batch.geometry.dtype == torch.int32
    mirrored = []
    for row, pair_id, geometry in zip(usable, batch.pair_ids, batch.geometry.tolist(), strict=True):
        first = int(row["label_1"] > row["label_0"])
        x, y = (uniform(5, 1, pair_id, f"crop {axis}") for axis in "xy")
        for side, name, found in zip((first, 1 - first), ("chosen", "rejected"), geometry, strict=True):
            size = size_of(decode(row[f"jpg_{side}"], ImageLimits()))
            flip = uniform(5, 1, pair_id, f"flip {name}") < 0.5
            assert tuple(found) == crop_geometry(size, 32, x=x, y=y, flip=flip)
            mirrored.append(tuple(found) != crop_geometry(size, 32, x=x, y=y, flip=False))
    assert {True, False} == set(mirrored)
    assert any(own != other for own, other in batch.geometry.tolist())


def test_a_reader_without_memory_reads_the_same_rows():
    slots = [PLAN.slot(index, 0) for index in reversed(range(PLAN.rows))]
    small, large = BatchLoader(REAL, 0, None, cache_bytes=0).load(slots), BatchLoader(REAL, 0, None).load(slots)
    assert_same([[small]], [[large]])


def test_a_file_that_vanishes_while_training_is_one_clear_error(tmp_path):
    file = Path(shutil.copy(ASSETS / "real_pairs.parquet", tmp_path))
    section = DataSection(paths=[str(file)], resolution=32)
    stream = step_batches(Plan.build(section), section, SHARE)
    file.unlink()
    with pytest.raises(ValueError, match=r"real_pairs\.parquet cannot be read"):
        next(stream)
