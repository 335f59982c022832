"""The rejected image as the chosen image of another pair."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dpo_core.data.batches import DataSection, PairBatch, Share, step_batches
from dpo_core.data.images import ImageLimits, decode, training_crop
from dpo_core.data.order import EpochOrder
from dpo_core.data.plan import Plan
from dpo_core.data.schema import SCHEMA
from dpo_core.randomness import uniform
from tests.same_batches import assert_same, flat, pixels_of, take
from tests.tiny_data import jpeg, make_pairs

SHARE = Share(seed=2, global_batch_size=8, worker_batch_size=3)


def starts_of(group_sizes: list[int]) -> np.ndarray:
    return np.cumsum([0, *group_sizes], dtype=np.int64)


def section_of(paths: Path, **changes: Any) -> DataSection:
    return DataSection(paths=[str(paths)], resolution=32, rejected="other", max_quarantined_share=0.5, **changes)


def write(folder: Path, chosen: list[bytes], group: int = 4, rejected: bytes | None = None) -> Path:
    rows = [
        dict.fromkeys(SCHEMA.names)
        | {"caption": f"picture {index}", "ranking_id": index, "label_0": 1.0, "label_1": 0.0}
        | {"jpg_0": image, "jpg_1": jpeg(900 + index, 32) if rejected is None else rejected}
        for index, image in enumerate(chosen)
    ]
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "a.parquet", row_group_size=group)
    return folder


def wide_jpeg(seed: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(seed, width))).crop((0, 0, width, 32)).save(buffer, format="JPEG")
    return buffer.getvalue()


def batches(section: DataSection, steps: int, share: Share = SHARE, start: int = 0) -> list[PairBatch]:
    return flat(take(step_batches(Plan.build(section), section, share, start), steps))


def donors_of(section: DataSection, steps: int, share: Share = SHARE) -> dict[tuple[int, str], str]:
    """Whose image each pair was given as its rejected one; every image is found by its pixels."""
    given = section.model_copy(update={"rejected": "given"})
    plan = Plan.build(given)
    everything = flat(take(step_batches(plan, given, Share(0, plan.rows, plan.rows)), 1))[0]
    owners = {
        pixels[0].numpy().tobytes(): pair_id
        for pair_id, pixels in zip(everything.pair_ids, pixels_of(everything), strict=True)
    }
    return {
        (epoch, pair_id): owners[pixels[1].numpy().tobytes()]
        for batch in batches(section, steps, share)
        for epoch, pair_id, pixels in zip(batch.epochs, batch.pair_ids, pixels_of(batch), strict=True)
    }


@given(
    group_sizes=st.lists(st.integers(1, 30), min_size=2, max_size=8),
    window=st.integers(1, 4),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
def test_donors_are_other_rows_and_the_first_ones_of_a_window_are_a_shift_of_its_rows(group_sizes, window, seed, epoch):
    order = EpochOrder(starts_of(group_sizes), seed, epoch, window)
    rows = sum(group_sizes)
    groups = np.repeat(np.arange(len(group_sizes)), group_sizes)
    windows: list[list[int]] = [[]]
    for position in range(rows):
        if len({groups[row] for row in (*windows[-1], order[position])}) > window:
            windows.append([])
        windows[-1].append(order[position])
    for position in range(rows):
        donors = order.donors(position).tolist()
        assert order[position] not in donors
        assert len(set(donors)) == len(donors)
        assert len(donors) == rows - 1 or len(donors) >= 16
    position = 0
    for members in windows:
        firsts = [int(order.donors(place)[0]) for place in range(position, position + len(members))]
        if len(members) > 1:
            shift = members.index(firsts[0])
            assert firsts == members[shift:] + members[:shift]
        else:
            assert firsts == [order[(position + 1) % rows]]
        position += len(members)


def test_the_way_to_the_donor_changes_with_epoch_and_seed():
    starts = starts_of([50, 50])
    firsts = [
        [int(EpochOrder(starts, seed, epoch, 2).donors(position)[0]) for position in range(100)]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(first) for first in firsts}) == 3


def test_every_pair_of_an_epoch_gives_its_chosen_image_to_one_other_pair(tmp_path):
    section = section_of(make_pairs(tmp_path, 24))
    donors = {pair: donor for (epoch, pair), donor in donors_of(section, 6).items() if epoch == 0}
    assert sorted(donors) == sorted(donors.values()) == sorted(map(str, range(24)))
    assert all(donor != pair for pair, donor in donors.items())


def test_the_donor_is_the_same_for_any_number_of_workers_and_any_batch_size(tmp_path):
    section = section_of(make_pairs(tmp_path, 24))
    alone = donors_of(section, 5)
    assert donors_of(section, 5, replace(SHARE, worker_batch_size=1)) == alone
    halves = [donors_of(section, 5, replace(SHARE, rank=rank, world_size=2)) for rank in (0, 1)]
    assert halves[0] | halves[1] == alone
    single = donors_of(section, 24, Share(seed=2, global_batch_size=1, worker_batch_size=1))
    assert all(donor != pair for (_, pair), donor in single.items())
    first_epoch = {key: donor for key, donor in alone.items() if key[0] == 0}
    assert first_epoch.keys() <= single.keys()
    assert all(single[key] == donor for key, donor in first_epoch.items())


def test_starting_at_a_step_is_skipping_the_steps_before_it_with_the_images_of_others(tmp_path):
    section = section_of(make_pairs(tmp_path, 24, side=40), crop="random", flip="independent", caption_dropout=0.3)
    plan = Plan.build(section)
    assert_same(take(step_batches(plan, section, SHARE, 4), 3), take(step_batches(plan, section, SHARE), 7)[4:])


def test_the_other_image_is_placed_by_the_draws_of_the_pair_it_is_given_to(tmp_path):
    images = [wide_jpeg(index, 40 + index) for index in range(2)]
    section = section_of(write(tmp_path, images), crop="random", flip="independent")
    flips = set()
    for batch in batches(section, 8, Share(2, 2, 2)):
        assert batch.geometry is not None
        for index, (pair_id, epoch) in enumerate(zip(batch.pair_ids, batch.epochs, strict=True)):
            x, y, flip = (uniform(2, epoch, pair_id, name) for name in ("crop x", "crop y", "flip rejected"))
            other = decode(images[1 - int(pair_id)], ImageLimits())
            expected = training_crop(other, 32, x=x, y=y, flip=flip < 0.5)
            assert np.array_equal(pixels_of(batch)[index, 1].permute(1, 2, 0), expected)
            assert batch.geometry[index, :, 0].tolist() == [32, 32]
            assert batch.geometry[index, :, 1].tolist() == [40 + int(pair_id), 41 - int(pair_id)]
            flips.add(flip < 0.5)
    assert flips == {True, False}


def test_both_images_have_the_chosen_caption(tmp_path):
    rows = pq.read_table(make_pairs(tmp_path / "a", 4, shards=1)).to_pylist()
    table = [row | {"caption_0": f"{row['ranking_id']}, 0", "caption_1": f"{row['ranking_id']}, 1"} for row in rows]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "b.parquet")
    (batch,) = batches(section_of(tmp_path / "b.parquet", captions="per_image"), 1, Share(0, 4, 4))
    assert batch.chosen_captions == batch.rejected_captions
    assert {int(name): f"{name}, {1 - int(name) % 2}" for name in batch.pair_ids} == dict(
        zip(map(int, batch.pair_ids), batch.chosen_captions, strict=True)
    )


def test_the_same_image_in_another_row_is_never_the_rejected_one(tmp_path):
    repeated, others = jpeg(1, 32), [jpeg(2, 32), jpeg(3, 32)]
    section = section_of(write(tmp_path, [repeated] * 6 + others), window=4)
    seen = batches(section, 12, Share(0, 8, 8))
    for batch in seen:
        assert not any(torch.equal(pair[0], pair[1]) for pair in pixels_of(batch))
        assert batch.weights.tolist() == [1] * 8


def test_a_window_that_shows_one_image_takes_from_another_window(tmp_path):
    section = section_of(write(tmp_path, [jpeg(1, 32)] * 4 + [jpeg(2, 32)] * 4, group=4), window=1)
    for batch in batches(section, 6, Share(0, 8, 8)):
        assert not any(torch.equal(pair[0], pair[1]) for pair in pixels_of(batch))


def test_a_donor_that_cannot_be_read_is_passed_over_and_only_its_own_pair_is_lost(tmp_path):
    images = [jpeg(index, 32) for index in range(6)]
    images[2] = images[2][:100]
    section = section_of(write(tmp_path, images))
    for batch in batches(section, 6, Share(0, 6, 6)):
        usable = dict(zip(batch.pair_ids, batch.weights.tolist(), strict=True))
        assert usable == {str(index): float(index != 2) for index in range(6)}
        assert [record.pair_id for record in batch.quarantined] == ["2"]
        there = batch.weights > 0
        assert all(pixels_of(batch)[there].flatten(2).any(dim=2).flatten())
        assert not any(torch.equal(pair[0], pair[1]) for pair in pixels_of(batch)[there])


def test_the_rejected_image_of_the_row_is_not_looked_at(tmp_path):
    section = section_of(write(tmp_path, [jpeg(index, 32) for index in range(4)], rejected=b"no image"))
    (batch,) = batches(section, 1, Share(0, 4, 4))
    assert batch.weights.tolist() == [1, 1, 1, 1]
    given = section.model_copy(update={"rejected": "given"})
    assert batches(given, 1, Share(0, 4, 4))[0].weights.tolist() == [0, 0, 0, 0]


def test_a_single_row_has_no_other_pair(tmp_path):
    section = section_of(write(tmp_path, [jpeg(1, 32)]))
    with pytest.raises(ValueError, match=r"data\.rejected=other .* only one usable row"):
        step_batches(Plan.build(section), section, SHARE)


@pytest.mark.parametrize("images", [[jpeg(1, 32)] * 40, [jpeg(1, 32), b"no image", b"nor here"]])
def test_data_with_one_usable_image_is_refused(tmp_path, images):
    section = section_of(write(tmp_path, images))
    with pytest.raises(ValueError, match=r"finds no other image for pair \d+: \d+ other rows"):
        batches(section, 1)
