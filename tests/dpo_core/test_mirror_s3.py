"""A run and its copy in S3: Arrow's client against a server on this machine that checks signatures and can go away."""

import shutil
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dpo_core import mirror as module
from dpo_core.metrics import read_complete_rows
from dpo_core.mirror import Mirror
from dpo_core.recipe import TrainSection
from tests.fault_table import attempt
from tests.local_s3 import environment, serve_s3
from tests.train_runs import make_config, rows, run, same

URL = "s3://bucket/some runs"


@pytest.fixture
def buckets(tmp_path: Path) -> Path:
    (tmp_path / "buckets" / "bucket").mkdir(parents=True)
    return tmp_path / "buckets"


def config_of(model: Path, pairs: Path, **loop: Any) -> TrainSection:
    return make_config(model, pairs, loop={"max_steps": 4, "mirror": URL} | loop)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lead_to(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(served).items():
        monkeypatch.setenv(name, value)


def test_a_machine_with_an_empty_run_folder_goes_on_from_a_bucket(tiny_sd, tiny_pairs, tmp_path, buckets, monkeypatch):
    straight = run(config_of(tiny_sd, tiny_pairs, mirror=None), tmp_path / "straight")
    with serve_s3(buckets) as served:
        lead_to(served, monkeypatch)
        run(config_of(tiny_sd, tiny_pairs, max_steps=2), tmp_path / "one machine")
        shutil.rmtree(tmp_path / "one machine")
        assert same(straight, run(config_of(tiny_sd, tiny_pairs), tmp_path / "another"))
    assert rows(tmp_path / "another") == rows(tmp_path / "straight")
    assert files(buckets / "bucket" / "some runs" / "test") == files(tmp_path / "another")


@pytest.mark.slow
def test_a_server_that_is_gone_for_a_minute_delays_what_arrives_and_no_step(
    tiny_sd, tiny_pairs, tmp_path, buckets, monkeypatch
):
    near, port, away_s = tmp_path / "near", 0, 60.0
    with serve_s3(buckets) as served:
        lead_to(served, monkeypatch)
        port = int(served.url.rpartition(":")[2])
        Mirror(f"{URL}/test", near, 2).fetch()
    moments: dict[str, float] = {}
    began = time.monotonic()

    def come_back() -> None:
        time.sleep(away_s)
        with serve_s3(buckets, port):
            moments["back"] = time.monotonic() - began
            finished.wait(120)

    finished = threading.Event()
    away = threading.Thread(target=come_back)
    config = config_of(tiny_sd, tiny_pairs)
    # The run has begun before the server went away: what it finds there was asked above.
    monkeypatch.setattr(Mirror, "fetch", lambda self: None)
    away.start()
    promise = "no step waits, everything is there when the storage is back"
    with attempt("object storage away for a minute", promise) as figures:
        run(config, near)
        now, arrived = time.time(), time.monotonic() - began
        finished.set()
        away.join()
        steps_done = max(path.stat().st_mtime for path in near.rglob("*.safetensors")) - (now - arrived)
        assert files(buckets / "bucket" / "some runs" / "test") == files(near)
        assert steps_done < 30 < moments["back"] < arrived < moments["back"] + 45
        times = [row["time"] for row in read_complete_rows(near / "metrics.jsonl")]
        figures.seconds, figures.lost_updates = arrived - moments["back"], 0
        figures.longest_wait = max(later - earlier for earlier, later in pairwise(times))


def test_a_bucket_that_refuses_the_key_is_told_before_training(tiny_sd, tiny_pairs, tmp_path, buckets, monkeypatch):
    monkeypatch.setattr(module, "START_LIMIT_S", 0.1)
    with serve_s3(buckets) as served:
        lead_to(served, monkeypatch)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        monkeypatch.setenv("AWS_REGION", "eu-west-3")  # clients are kept; this is another one
        with pytest.raises(ValueError, match=r"loop\.mirror: s3://bucket/some runs/test cannot be read"):
            run(config_of(tiny_sd, tiny_pairs), tmp_path / "near")
    assert not (tmp_path / "near" / "metrics.jsonl").exists()
