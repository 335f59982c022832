"""Data that breaks while a run reads it, and more of it than the object store holds."""

import json
import subprocess
import sys

import pytest

from dpo_core.data.batches import Share
from dpo_core.data.plan import Plan
from dpo_core.ledger import check_ledger, read_ledger
from ray_jobs.config import load_config
from ray_jobs.training.job import TrainJob
from tests import train_runs
from tests.fault_table import attempt
from tests.ray_jobs.faults.nodes import STORE, Until, cluster_of, start
from tests.ray_jobs.jobs import ROOT, write_job
from tests.tiny_data import make_pairs
from tests.train_runs import same

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]
STEPS = 60
SPARSE = "loop.checkpoint_every=10"


@pytest.mark.parametrize("damage", ["vanished", "truncated"])
def test_a_shard_that_breaks_mid_epoch_ends_the_run_with_one_error_and_nothing_is_lost(tmp_path, tiny_sd, damage):
    pairs = make_pairs(tmp_path / "pairs", 480, shards=4)  # an epoch of 60 updates
    config = write_job(tmp_path, tiny_sd, pairs, workers=1, steps=STEPS)
    job = load_config(TrainJob, config, [SPARSE])
    straight = train_runs.run(job, tmp_path / "straight")
    folder = tmp_path / "runs" / "run"
    folder.parent.mkdir()
    train_runs.run(job, folder, Until(folder, 20))
    whole = {shard: shard.read_bytes() for shard in sorted(pairs.glob("*.parquet"))[:2]}
    with attempt(f"shards {damage} mid-epoch", "one clear error at once; mended, the plan's pairs and the same bits"):
        with start(config, SPARSE) as run:
            run.wait_for(lambda: "workers:" in run.log())  # the plan is made, nothing has been read
            for shard in whole:
                if damage == "vanished":
                    shard.unlink()
                else:
                    shard.write_bytes(whole[shard][:2000])
            assert run.process.wait(240) == 1
            said = " ".join(run.output().split())
            assert "cannot be read" in said
            assert ".parquet" in said
            assert "Traceback" not in said
            assert run.log().count("workers:") == 1, "a run that cannot go on was started again"
        for shard, data in whole.items():
            shard.write_bytes(data)
        assert same(straight, train_runs.run(job, folder))
        share = Share(job.loop.seed, job.loop.global_batch_size, job.loop.worker_batch_size)
        proof = check_ledger(read_ledger(folder / "ledger.jsonl"), Plan.build(job.data), job.data, share)
        assert (proof.updates, proof.lost, proof.whole_epochs) == (STEPS, 0, 1)


def test_more_decoded_pairs_than_the_object_store_holds_arrive_whole_and_in_order(tmp_path):
    pairs = make_pairs(tmp_path / "pairs", 1024, side=128, shards=4, group=32)
    with attempt(
        "decoded pairs of four times the object store", "every batch arrives, same bits; spills less than the store"
    ):
        with cluster_of(1) as nodes:
            command = [sys.executable, "-m", "tests.ray_jobs.faults.pressure", str(pairs), "128", nodes.scratch]
            done = subprocess.run(command, cwd=ROOT, env=nodes.environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        seen = json.loads(done.stdout.splitlines()[-1])
        print(seen)
        assert seen["same"]
        assert seen["decoded"] > 3 * seen["store"]
        assert seen["store"] == pytest.approx(2 * STORE, rel=0.1)
        assert seen["peak_spilled"] < seen["store"], "the stream runs ahead of its consumer without bound"
