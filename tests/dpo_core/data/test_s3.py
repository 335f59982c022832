"""Pairs in S3: Arrow's client against a server on this machine that checks signatures and answers ranges."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_core.data import locations
from dpo_core.data.batches import DataSection, Share, step_batches
from dpo_core.data.plan import Plan
from dpo_core.data.reader import RowReader
from dpo_core.data.sources import HPDv3
from dpo_core.data.sources.base import Record
from dpo_core.data.sources.fetch import ImageReader
from tests.local_http import Served
from tests.local_s3 import environment, serve_s3
from tests.same_batches import assert_same, take
from tests.source_sets import hpdv3
from tests.tiny_data import make_pairs

SHARE = Share(seed=1, global_batch_size=8, worker_batch_size=4)


@pytest.fixture(scope="module")
def buckets(tmp_path_factory) -> Path:
    """A bucket with pairs, and one with image files and the JSON that names them."""
    folder = tmp_path_factory.mktemp("buckets")
    make_pairs(folder / "pairs" / "train set", 24, side=256, shards=2, group=4)
    (folder / "images").mkdir()
    hpdv3(folder / "images")
    return folder


@pytest.fixture
def s3(buckets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with serve_s3(buckets) as served:
        for name, value in environment(served).items():
            monkeypatch.setenv(name, value)
        yield served


def section(*paths: object) -> DataSection:
    return DataSection(paths=[str(path) for path in paths], resolution=32)


def test_a_bucket_is_searched_like_a_folder(buckets: Path, s3: Served):
    urls = [f"s3://pairs/train set/{file.name}" for file in sorted((buckets / "pairs" / "train set").iterdir())]
    for place in ("s3://pairs", "s3://pairs/train set/", "s3://pairs/train set/*.parquet"):
        assert locations.find(place, (".parquet",)) == urls
    assert locations.find(urls[0], (".parquet",)) == urls[:1]
    assert locations.find("s3://pairs/nothing", (".parquet",)) == []
    assert locations.size(urls[0]) == os.path.getsize(buckets / "pairs" / "train set" / locations.name_of(urls[0]))
    with pytest.raises(FileNotFoundError):
        locations.read_bytes("s3://pairs/nothing", 4)


def test_pairs_in_a_bucket_give_the_batches_and_the_fingerprint_of_those_on_disk(buckets: Path, s3: Served):
    near, far = section(buckets / "pairs"), section("s3://pairs")
    plans = Plan.build(near), Plan.build(far)
    assert plans[0].fingerprint == plans[1].fingerprint
    assert_same(take(step_batches(plans[0], near, SHARE), 6), take(step_batches(plans[1], far, SHARE), 6))


def test_planning_fetches_no_image_and_one_row_only_its_row_group(buckets: Path, s3: Served):
    stored = sum(file.stat().st_size for file in (buckets / "pairs").rglob("*.parquet"))
    plan = Plan.build(section("s3://pairs"))
    assert 0 < s3.bytes < 0.25 * stored
    s3.bytes = 0
    slot = plan.slot(15, 0)
    RowReader(("caption", "jpg_0"), max_bytes=1 << 20).row(slot.group, slot.row)
    assert 0 < s3.bytes < stored / 4


def test_a_source_in_a_bucket_finds_the_images_beside_it(buckets: Path, s3: Served):
    near, far = (HPDv3(paths=[f"{place}/train.json"]) for place in (buckets / "images", "s3://images"))
    read = [
        [ImageReader().read(pointer) for told in source.told() if isinstance(told, Record) for pointer in told.images]
        for source in (near, far)
    ]
    assert len(read[0]) == 6
    assert read[0] == read[1]


def test_a_wrong_key_and_a_bucket_that_is_not_there_are_told_in_one_line(s3: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locations.time, "sleep", lambda seconds: None)
    with pytest.raises(ValueError, match="'s3://nobody/x' leads to no parquet file"):
        Plan.build(section("s3://nobody/x"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    locations._s3.cache_clear()
    with pytest.raises(ValueError, match=r"s3://pairs cannot be read: .*ACCESS_DENIED"):
        locations.find("s3://pairs", (".parquet",))
    locations._s3.cache_clear()


def test_a_fault_of_the_server_that_passes_is_tried_again(buckets: Path, s3: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locations.time, "sleep", lambda seconds: None)
    url, _ = locations.find("s3://pairs", (".parquet",))
    s3.failures = 1
    assert locations.read_bytes(url, 4) == b"PAR1"
    assert s3.failures == 0
