"""Pairs in Google Cloud Storage: gcsfs against a server on this machine that speaks the JSON API."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from gcsfs import GCSFileSystem

from dpo_core.data import locations
from dpo_core.data.batches import DataSection, Share, step_batches
from dpo_core.data.plan import Plan
from dpo_core.data.reader import RowReader
from tests.local_gcs import environment, serve_gcs
from tests.local_http import Served
from tests.same_batches import assert_same, take
from tests.tiny_data import make_pairs

SHARE = Share(seed=1, global_batch_size=8, worker_batch_size=4)


@pytest.fixture(scope="module")
def buckets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("buckets")
    make_pairs(folder / "pairs" / "train set", 24, side=256, shards=2, group=4)
    return folder


@pytest.fixture
def gcs(buckets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with serve_gcs(buckets) as served:
        for name, value in environment(served).items():
            monkeypatch.setenv(name, value)
        GCSFileSystem.clear_instance_cache()  # it knows the server of before
        yield served


def section(path: object) -> DataSection:
    return DataSection(paths=[str(path)], resolution=32)


def test_a_bucket_is_searched_like_a_folder(buckets: Path, gcs: Served):
    urls = [f"gs://pairs/train set/{file.name}" for file in sorted((buckets / "pairs" / "train set").iterdir())]
    for place in ("gs://pairs", "gs://pairs/train set/", "gs://pairs/train set/*.parquet"):
        assert locations.find(place, (".parquet",)) == urls
    assert locations.find(urls[0], (".parquet",)) == urls[:1]
    assert locations.find("gs://pairs/nothing", (".parquet",)) == []
    assert locations.size(urls[0]) == os.path.getsize(buckets / "pairs" / "train set" / locations.name_of(urls[0]))
    with pytest.raises(FileNotFoundError):
        locations.read_bytes("gs://pairs/nothing", 4)
    with pytest.raises(ValueError, match="'gs://nobody/x' leads to no parquet file"):
        Plan.build(section("gs://nobody/x"))


def test_pairs_in_a_bucket_give_the_batches_of_those_on_disk(buckets: Path, gcs: Served):
    near, far = section(buckets / "pairs"), section("gs://pairs")
    plans = Plan.build(near), Plan.build(far)
    assert plans[0].fingerprint == plans[1].fingerprint
    assert_same(take(step_batches(plans[0], near, SHARE), 6), take(step_batches(plans[1], far, SHARE), 6))


def test_planning_fetches_no_image_and_one_row_only_its_row_group(buckets: Path, gcs: Served):
    stored = sum(file.stat().st_size for file in (buckets / "pairs").rglob("*.parquet"))
    plan = Plan.build(section("gs://pairs"))
    assert 0 < gcs.bytes < 0.25 * stored
    gcs.bytes = 0
    slot = plan.slot(15, 0)
    RowReader(("caption", "jpg_0"), max_bytes=1 << 20).row(slot.group, slot.row)
    assert 0 < gcs.bytes < stored / 4
