import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_core.data.batches import DataSection, Share, step_batches
from dpo_core.data.plan import Plan
from ray_jobs import stream
from ray_jobs.stream import bytes_per_pair, cut_steps, ray_step_batches, steps_per_unit
from tests.local_http import serve
from tests.same_batches import assert_same, take
from tests.tiny_data import make_pairs

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
def test_tasks_read_pairs_from_a_web_server(ray_cluster):
    with serve(ASSETS) as web:
        far = SECTION.model_copy(update={"paths": [f"{web.url}/real_pairs.parquet", f"{web.url}/hostile.parquet"]})
        ours = list(ray_step_batches(Plan.build(far), far, SHARE, 0, 3))
    for batch in (batch for step in ours for batch in step):
        batch.quarantined = [replace(each, file=str(ASSETS / Path(each.file).name)) for each in batch.quarantined]
    assert_same(ours, take(step_batches(Plan.build(SECTION), SECTION, SHARE), 3))


@pytest.mark.ray
@pytest.mark.parametrize("rank", [0, 1])
def test_images_of_other_pairs_and_image_prompts_arrive_bit_for_bit_too(ray_cluster, small_units, rank):
    made = {"rejected": "other", "prompt_image": True, "joint_dropout": 0.2, "window": 1}
    section = SECTION.model_copy(update=made)
    plan, half = Plan.build(section), replace(SHARE, rank=rank, world_size=2)
    streamed = ray_step_batches(plan, section, half, 5, 8)
    assert_same(list(streamed), take(step_batches(plan, section, half, 5), 3))


@pytest.mark.ray
def test_patch_quality_maps_arrive_bit_for_bit_too(ray_cluster, small_units, tmp_path):
    table = pq.read_table(ASSETS / "real_pairs.parquet")
    for name in ("patch_quality_0", "patch_quality_1"):
        maps = [[[row + 0.1, row + 0.2]] if row % 5 else None for row in range(len(table))]
        table = table.append_column(name, pa.array(maps, type=pa.list_(pa.list_(pa.float64()))))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=6)
    section = DataSection(paths=[str(tmp_path)], resolution=32, quality=True, max_quarantined_share=0.5)
    plan = Plan.build(section)
    ours = list(ray_step_batches(plan, section, SHARE, 0, 3))
    assert_same(ours, take(step_batches(plan, section, SHARE), 3))
    assert {str(record.reason) for step in ours for batch in step for record in batch.quarantined} == {
        "quality_missing"
    }


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


@pytest.mark.ray
def test_a_file_that_vanishes_under_a_stream_is_told_as_one_process_tells_it(ray_cluster, tmp_path, small_units):
    section = DataSection(paths=[str(make_pairs(tmp_path / "pairs", 32))], resolution=32, min_side=32)
    plan = Plan.build(section)
    (tmp_path / "pairs" / "00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"00001\.parquet cannot be read as parquet") as raised:
        list(ray_step_batches(plan, section, SHARE, 0, 4))
    assert type(raised.value) is ValueError, "Ray's own kinds of errors are not the user's to mend"


def test_more_ranks_than_lanes_are_refused_before_ray_is_asked(plan):
    with pytest.raises(ValueError, match="9 workers cannot share 8 lanes"):
        ray_step_batches(plan, SECTION, replace(SHARE, world_size=9))


@pytest.mark.parametrize(
    ("pairs", "pair_bytes", "steps"), [(16, 6 * 64**2, 32), (16, 6 * 512**2, 5), (512, 6 * 1024**2, 1), (1, 1, 32)]
)
def test_a_unit_holds_the_steps_that_fit_its_size(pairs, pair_bytes, steps):
    assert steps_per_unit(pairs, pair_bytes) == steps


def test_the_size_of_a_pair_is_that_of_its_tensors():
    section = DataSection(paths=["a"], resolution=32)
    assert bytes_per_pair(section, None, None) == 2 * 3 * 32 * 32 + 48
    with_prompt = section.model_copy(update={"prompt_image": True})
    assert bytes_per_pair(with_prompt, None, (4, 6)) == 2 * 3 * 32 * 32 + 48 + 3 * 224 * 224 + 2 * 4 * 24


def test_units_grow_from_one_step_and_cover_every_step_once():
    assert [len(cut) for cut in cut_steps(3, 33, 8)] == [1, 2, 4, 8, 8, 7]
    assert [step for cut in cut_steps(3, 33, 8) for step in cut] == list(range(3, 33))
    assert cut_steps(5, 5, 8) == []
