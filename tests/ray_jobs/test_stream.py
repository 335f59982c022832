import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpo_core.data.batches import DataSection, Share, step_batches
from dpo_core.data.plan import Plan
from ray_jobs import stream
from ray_jobs.stream import cut_steps, ray_step_batches, steps_per_unit
from tests.same_batches import assert_same, take

pytestmark = pytest.mark.timeout(600)  # a cluster on a busy machine takes minutes to start

ASSETS = Path(__file__).parents[1] / "assets"
SECTION = DataSection(
    paths=[str(ASSETS / "real_pairs.parquet"), str(ASSETS / "hostile.parquet")],
    resolution=32,
    crop="random",
    flip="independent",
    caption_dropout=0.2,
    max_quarantined_share=0.5,
)
SHARE = Share(seed=3, global_batch_size=8, worker_batch_size=3)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan.build(SECTION)


@pytest.fixture
def small_units(monkeypatch):
    """Units of two steps and executions of eight units, so that a short stream crosses both borders."""
    monkeypatch.setattr(stream, "MAX_UNIT_STEPS", 2)
    monkeypatch.setattr(stream, "EXECUTION_SLOTS", 1)


@pytest.mark.ray
def test_ray_gives_what_one_process_gives_across_units_and_executions(ray_cluster, plan, small_units):
    streamed = ray_step_batches(plan, SECTION, SHARE)
    ours = take(streamed, 19)
    streamed.close()
    assert_same(ours, take(step_batches(plan, SECTION, SHARE), 19))
    assert sum(len(batch.quarantined) for step in ours for batch in step) > 9


@pytest.mark.ray
@pytest.mark.parametrize("rank", [0, 1])
def test_each_of_two_ranks_resumes_in_the_middle_bit_for_bit(ray_cluster, plan, small_units, rank):
    half = replace(SHARE, rank=rank, world_size=2)
    streamed = ray_step_batches(plan, SECTION, half, 5, 8)
    assert_same(list(streamed), take(step_batches(plan, SECTION, half, 5), 3))


@pytest.mark.ray
def test_reading_goes_on_beside_workers_that_hold_most_cpus(ray_cluster, plan):
    import ray

    class Worker:
        def run(self) -> int:
            return len(take(ray_step_batches(Plan.build(SECTION), SECTION, SHARE, stop_step=2), 2))

    Remote: Any = ray.remote(num_cpus=0.8)(Worker)
    workers = [Remote.remote(), Remote.remote()]
    try:
        assert ray.get([worker.run.remote() for worker in workers], timeout=500) == [2, 2]
    finally:
        for worker in workers:
            ray.kill(worker)


@pytest.mark.ray
def test_closing_a_stream_gives_its_cpus_back(ray_cluster, plan, small_units):
    import ray

    streamed = ray_step_batches(plan, SECTION, SHARE)
    next(streamed)
    streamed.close()
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)
    with pytest.raises(StopIteration):
        next(streamed)


@pytest.mark.ray
def test_streaming_leaves_the_settings_of_the_process_alone_and_prints_nothing(ray_cluster, plan, capfd):
    from ray.data import DataContext

    before = DataContext.get_current().execution_options.preserve_order
    list(ray_step_batches(plan, SECTION, SHARE, stop_step=1))
    assert DataContext.get_current().execution_options.preserve_order == before
    shown = capfd.readouterr()
    assert "Dataset" not in shown.out + shown.err


def test_more_ranks_than_lanes_are_refused_before_ray_is_asked(plan):
    with pytest.raises(ValueError, match="9 workers cannot share 8 lanes"):
        ray_step_batches(plan, SECTION, replace(SHARE, world_size=9))


@pytest.mark.parametrize(
    ("pairs", "pair_bytes", "steps"), [(16, 6 * 64**2, 32), (16, 6 * 512**2, 5), (512, 6 * 1024**2, 1), (1, 1, 32)]
)
def test_a_unit_holds_the_steps_that_fit_its_size(pairs, pair_bytes, steps):
    assert steps_per_unit(pairs, pair_bytes) == steps


def test_units_grow_from_one_step_and_cover_every_step_once():
    assert [len(cut) for cut in cut_steps(3, 33, 8)] == [1, 2, 4, 8, 8, 7]
    assert [step for cut in cut_steps(3, 33, 8) for step in cut] == list(range(3, 33))
    assert cut_steps(5, 5, 8) == []
