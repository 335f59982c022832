"""Sets and caches that lie in a bucket: made there, gone on with there, and the same as on a disk."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gcsfs import GCSFileSystem
from rich.console import Console

from dpo_core.data import latents, locations
from dpo_core.data.batches import step_batches
from dpo_core.data.labelled import labelled_by
from dpo_core.data.plan import Plan
from dpo_core.data.texts import TextStore, text_files
from dpo_core.families.base import DTYPES
from ray_jobs import cli
from ray_jobs.config import load_config
from ray_jobs.label import LabelJob, shard_job
from ray_jobs.prepare import prepare
from ray_jobs.shards.job import read_record, run_shards, shard_files
from tests import local_gcs
from tests.local_gcs import serve_gcs
from tests.local_http import Served
from tests.local_s3 import PARTS, environment, serve_s3
from tests.ray_jobs.caches import SHARE, cached, job
from tests.ray_jobs.redness import Redness
from tests.same_batches import assert_same, take
from tests.tiny_data import make_pairs
from tests.tiny_models import make_tiny_sd

QUIET = Console(quiet=True)


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    folder = tmp_path / "buckets" / "bucket"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def s3(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with serve_s3(bucket.parent) as served:
        for name, value in environment(served).items():
            monkeypatch.setenv(name, value)
        yield served


def held(folder: Path, *names: str) -> dict[str, bytes]:
    """The files of a folder on a disk."""
    return {path.name: path.read_bytes() for name in names for path in folder.glob(name) if path.is_file()}


def importing(pairs: Path, out: str | Path) -> list[str]:
    words = ["import", "source.kind=pickapic", f"source.paths=[{pairs}]", "source.kind=pickapic"]
    return [*words, "filters.max_samples=110", "shard_pairs=50", f"out={out}", "cluster.num_workers=0"]


@pytest.fixture(params=["s3", "gs"])
def store(request, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of the bucket in one kind of store."""
    serve, lead = {"s3": (serve_s3, environment), "gs": (serve_gcs, local_gcs.environment)}[request.param]
    with serve(bucket.parent) as served:
        for name, value in lead(served).items():
            monkeypatch.setenv(name, value)
        GCSFileSystem.clear_instance_cache()  # it knows the server of before
        yield f"{request.param}://bucket"


def test_a_set_is_made_in_a_bucket_file_for_file_and_another_is_made_of_it(tmp_path, bucket, store, capsys):
    pairs = make_pairs(tmp_path / "pairs", 120, shards=2, group=20)
    assert cli.main(importing(pairs, tmp_path / "near")) == 0
    assert cli.main([*importing(pairs, f"{store}/far"), "--dry-run"]) == 0
    assert not (bucket / "far").exists()
    assert cli.main(importing(pairs, f"{store}/far")) == 0
    near = held(tmp_path / "near", "*.parquet", "job.json")
    assert len(near) == 3 + 2
    assert held(bucket / "far", "*") == near
    assert not list((bucket.parent / PARTS).glob("*"))
    capsys.readouterr()
    assert cli.main(importing(pairs, f"{store}/far/")) == 0
    assert f"nothing to do: {store}/far is complete" in capsys.readouterr().out
    assert cli.main([*importing(pairs, f"{store}/far"), "filters.seed=1"]) == 1
    assert f"{store}/far holds another set" in capsys.readouterr().err

    words = ["pairs", "recipe.kind=downgrade", "recipe.data.resolution=32", "cluster.num_workers=0"]
    assert cli.main([*words, f"recipe.data.paths=[{store}/far]", f"out={store}/worse"]) == 0
    assert read_record(f"{store}/worse").totals["made"] == 110


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the test's scorer is none of AnyScorer
def test_a_job_that_broke_leaves_no_set_in_a_bucket_and_goes_on_after_its_last_shard(tmp_path, bucket, s3):
    pairs = make_pairs(tmp_path / "pairs", 24, shards=2, group=4)
    words = ["out=s3://bucket/made", f"data.paths=[{pairs}]", "scorer.kind=shapes", "shard_pairs=8"]
    work = load_config(LabelJob, None, [*words, "cluster.num_workers=0"]).model_copy(update={"scorer": Redness()})
    upset = threading.Event()
    made = shard_job(work)
    healthy = made.recipe.load

    def load():
        make = healthy()

        def fail_at_the_second(rows):
            if upset.is_set():
                raise ValueError("the scorer broke")
            upset.set()
            return make(rows)

        return fail_at_the_second

    made.recipe.load = load  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the scorer broke"):
        run_shards(made, QUIET)
    assert shard_files("s3://bucket/made") == []
    assert not read_record("s3://bucket/made").complete
    first = held(bucket / "made", "*.part")
    assert list(first) == ["pairs-00000.parquet.part"]
    s3.requests.clear()
    record = run_shards(shard_job(work), QUIET)
    assert record.complete
    assert not [words for words in s3.requests if words.startswith("PUT") and "00000.parquet.part" in words]
    assert [locations.name_of(file) for file in shard_files("s3://bucket/made")] == sorted(
        path.name for path in (bucket / "made").glob("pairs-*")
    )
    for place in (
        "s3://bucket/made",
        "s3://bucket/made/",
        "s3://bucket/made/*.parquet",
        shard_files("s3://bucket/made")[0],
    ):
        assert labelled_by([place]) == ["redness/redness"]
    assert (bucket / "made" / "pairs-00000.parquet").read_bytes() == first["pairs-00000.parquet.part"]


def test_a_cache_in_a_bucket_is_gone_on_with_and_trains_as_one_on_a_disk(tmp_path, bucket, s3):
    model = str(make_tiny_sd(tmp_path / "model"))
    near = job(model, tmp_path / "near", text=True)
    far = near.model_copy(update={"cache": near.cache.model_copy(update={"folder": "s3://bucket/cache"})})
    prepare(near, QUIET)
    assert not latents.is_cache("s3://bucket/cache")
    prepare(far, QUIET)
    (bucket / "cache" / "shard-00001.parquet").unlink()
    (bucket / "cache" / "text-00000.parquet").unlink()
    unfinished = latents.LatentCache(**{**vars(latents.read_cache("s3://bucket/cache")), "complete": False})
    latents.write_cache("s3://bucket/cache", unfinished)
    with pytest.raises(ValueError, match="s3://bucket/cache is an unfinished latent cache"):
        Plan.build(cached(far))
    prepare(far, QUIET)
    assert held(bucket / "cache", "*") == held(tmp_path / "near", "*")

    plans = Plan.build(cached(near)), Plan.build(cached(far))
    assert plans[0].fingerprint == plans[1].fingerprint
    assert_same(
        take(step_batches(plans[0], cached(near), SHARE), 4), take(step_batches(plans[1], cached(far), SHARE), 4)
    )
    cache = plans[1].cache
    assert cache is not None
    assert len(text_files("s3://bucket/cache")) == 1
    stores = [TextStore(folder, cache, DTYPES["fp32"]) for folder in (near.cache.folder, far.cache.folder)]
    (encoder, caption), *_ = stores[0]._places
    states = [store.find(encoder, caption) for store in stores]
    assert all((one == other).all() for one, other in zip(*states, strict=True))


@pytest.mark.parametrize("place", ["https://host/x", "hf://datasets/a/b", "s3://bucket/*"])
@pytest.mark.parametrize("verb", ["import", "prepare", "caption", "label", "pairs", "patches"])
def test_a_place_that_takes_no_files_is_refused_before_anything_is_read(verb, place, capsys):
    field = "cache.folder" if verb == "prepare" else "out"
    assert cli.main([verb, f"{field}={place}"]) == 2
    told = capsys.readouterr().err
    assert f"{field} = '{place}'" in told
    assert "can be read but not written; give a local folder, s3:// or gs://" in told or "is a pattern" in told


def test_a_bucket_that_does_not_take_what_is_written_is_told_in_one_line(tmp_path, s3, monkeypatch, capsys):
    monkeypatch.setattr(locations.time, "sleep", lambda seconds: None)
    pairs = make_pairs(tmp_path / "pairs", 8)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    locations._s3.cache_clear()
    assert cli.main(importing(pairs, "s3://bucket/made")) == 1
    locations._s3.cache_clear()
    told = capsys.readouterr().err
    assert told.startswith("error: s3://bucket/made")
    assert "ACCESS_DENIED" in told
    assert "Traceback" not in told
