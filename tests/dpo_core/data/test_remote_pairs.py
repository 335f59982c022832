"""Pairs that lie elsewhere are planned, read and trained on like those on a disk."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from dpo_core.data import locations
from dpo_core.data.batches import DataSection, Share, step_batches
from dpo_core.data.plan import Plan
from dpo_core.data.reader import RowReader
from tests.local_http import Served, serve
from tests.same_batches import assert_same, take
from tests.tiny_data import make_pairs

SHARE = Share(seed=1, global_batch_size=8, worker_batch_size=4)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs"), 24, side=256, shards=2, group=4)


@pytest.fixture
def web(here: Path) -> Iterator[Served]:
    with serve(here) as served:
        yield served


@pytest.fixture
def memory(here: Path) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    for file in sorted(here.iterdir()):
        system.pipe(f"/pairs/{file.name}", file.read_bytes())
    yield "memory://pairs"
    system.rm("/pairs", recursive=True)


def section(*paths: object) -> DataSection:
    return DataSection(paths=[str(path) for path in paths], resolution=32)


def test_pairs_in_another_file_system_give_the_batches_and_the_fingerprint_of_those_on_disk(here, memory):
    near, far = section(here), section(memory)
    plans = [Plan.build(each) for each in (near, far)]
    assert plans[0].fingerprint == plans[1].fingerprint
    assert plans[0].pair_ids == plans[1].pair_ids
    steps = [take(step_batches(plan, each, SHARE), 6) for plan, each in zip(plans, (near, far), strict=True)]
    assert_same(*steps)


def test_pairs_on_a_web_server_give_the_batches_and_the_fingerprint_of_those_on_disk(here, web):
    names = sorted(file.name for file in here.iterdir())
    near, far = section(here), section(*(f"{web.url}/{name}" for name in names))
    assert Plan.build(near).fingerprint == Plan.build(far).fingerprint
    assert_same(
        take(step_batches(Plan.build(near), near, SHARE), 6), take(step_batches(Plan.build(far), far, SHARE), 6)
    )


def test_planning_fetches_labels_and_captions_and_no_image(here, web):
    Plan.build(section(f"{web.url}/*.parquet"))
    assert 0 < web.bytes < 0.25 * sum(file.stat().st_size for file in here.iterdir())


def test_one_row_fetches_its_row_group_and_only_the_columns_asked_for(here, web):
    plan = Plan.build(section(f"{web.url}/*.parquet"))
    slot = plan.slot(15, 0)
    reader = RowReader(("caption", "jpg_0"), max_bytes=1 << 20)
    web.bytes = 0
    assert reader.row(slot.group, slot.row).column_names == ["caption", "jpg_0"]
    size = os.path.getsize(here / locations.name_of(slot.group.file))
    fetched = web.bytes
    assert 0 < fetched < size / 2
    reader.row(slot.group, slot.row)
    assert web.bytes == fetched


def test_a_resumed_run_fetches_what_is_left_and_nothing_it_has_consumed(here, web):
    far = section(f"{web.url}/*.parquet").model_copy(update={"lanes": 1, "window": 1})
    plan = Plan.build(far)

    def fetched(start: int) -> int:
        web.bytes = 0
        take(step_batches(plan, far, SHARE, start), 3 - start)  # an epoch are three steps of two row groups each
        return web.bytes

    whole, last = fetched(0), fetched(2)
    assert 0.9 < whole / sum(file.stat().st_size for file in here.iterdir()) < 1.3
    assert last == pytest.approx(whole / 3, rel=0.1)


def test_a_server_that_fails_for_a_moment_does_not_stop_a_run(here, web, monkeypatch):
    monkeypatch.setattr(locations.time, "sleep", lambda seconds: None)
    far = section(f"{web.url}/*.parquet")
    stream = step_batches(Plan.build(far), far, SHARE)
    expected = take(step_batches(Plan.build(section(here)), section(here), SHARE), 3)
    web.failures = 1
    assert_same(take(stream, 3), expected)
    assert web.failures == 0


def test_the_same_remote_file_twice_is_refused(memory):
    with pytest.raises(ValueError, match="twice"):
        Plan.build(section(memory, f"{memory}/00000.parquet"))
