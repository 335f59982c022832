"""Nodes that vanish, are taken away and come, in a cluster of several nodes on this machine."""

import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from dpo_core.checkpoint import load_checkpoint
from dpo_core.data.batches import Share
from dpo_core.data.plan import Plan
from dpo_core.ledger import check_ledger, read_ledger
from dpo_core.stopping import ask_to_stop
from ray_jobs.config import load_config
from ray_jobs.training.job import TrainJob
from tests import train_runs
from tests.fault_table import attempt
from tests.ray_jobs.faults.nodes import Until, cluster_of, start
from tests.ray_jobs.jobs import ROOT, write_job

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

# Each node of two CPUs holds one worker and its reading tasks.
ELASTIC = ("cluster.num_workers=2", "cluster.min_workers=1", "cluster.cpus_per_worker=1.5", "optim.lr=1e-5",
           "loop.checkpoint_every=10", "loop.global_batch_size=16")  # fmt: skip
PROMISE = "the plan's pairs, weights to rounding"


def check(config: Path, folder: Path, updates: int, straight: Path) -> None:
    """The run has consumed what the plan says, and ends where one process without faults ends."""
    job = load_config(TrainJob, config, list(ELASTIC))
    share = Share(job.loop.seed, job.loop.global_batch_size, job.loop.worker_batch_size)
    assert check_ledger(read_ledger(folder / "ledger.jsonl"), Plan.build(job.data), job.data, share).updates == updates
    expected = train_runs.run(job, straight, Until(straight, updates))
    start = load_checkpoint(straight / "checkpoints" / "step-00000010").weights
    got = load_checkpoint(folder / "checkpoints" / f"step-{updates:08d}").weights
    assert distance(expected, got) < 0.01 * distance(expected, start)


def node_ids_by_the_manifest() -> str:
    """What the command in the KubeRay manifest finds as the id of its node; here there are several."""
    job = yaml.safe_load((ROOT / "ray_jobs" / "manifests" / "rayjob.yaml").read_text())
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    *_, command = worker["lifecycle"]["preStop"]["exec"]["command"]
    (finding,) = re.findall(r"--node-id \"\$\((.*) \| head -1\)\"", command)
    return subprocess.run(["bash", "-c", finding], capture_output=True, text=True, check=False).stdout


def distance(one: train_runs.Weights, other: train_runs.Weights) -> float:
    return sum((one[name] - other[name]).square().sum().item() for name in one) ** 0.5


def test_a_run_that_loses_a_node_goes_on_with_the_other_one(tmp_path, tiny_sd, tiny_pairs):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, name="lost", steps=5000)
    with (
        attempt("node vanishes: on with fewer workers", PROMISE) as figures,
        cluster_of(2) as nodes,
        start(config, *ELASTIC, "loop.checkpoint_every=40", env=nodes.environment) as run,
    ):
        run.wait_for_step(43)
        now = time.time()
        nodes.lose(1)
        run.wait_for(lambda: run.starts() != [])  # updates go on until the processes of the node are gone
        made = run.step()
        run.recovered(figures, now, made)
        (began,) = run.starts()
        figures.lost_updates = made - began
        ask_to_stop(run.folder)
        run.end()
        assert began >= 40
        assert began % 40 == 0
        assert made - began < 50, "it did not go on from the last checkpoint that was written"
        assert re.findall(r"(\d) of 2 workers:", run.log()) == ["2", "1"]
        check(config, run.folder, run.step(), tmp_path / "straight")


def test_a_run_that_misses_a_node_takes_it_in_when_it_comes(tmp_path, tiny_sd, tiny_pairs):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, name="grown", steps=5000)
    with (
        attempt("node comes: on with more workers", PROMISE) as figures,
        cluster_of(1) as nodes,
        start(config, *ELASTIC, "loop.checkpoint_every=1000", env=nodes.environment) as run,
    ):
        run.wait_for_step(3)
        now = time.time()
        nodes.add()
        run.wait_for(lambda: "a node has come" in run.log())
        run.wait_for(lambda: run.starts() != [])
        made = run.step()
        figures.lost_updates, figures.seconds = made - run.starts()[-1], time.time() - now
        run.wait_for_step(made + 3)
        ask_to_stop(run.folder)
        assert "stopped after update" in run.end()
        assert run.starts()[-1] > 3, "nothing but the checkpoint that the coming node caused is there"
        assert re.findall(r"(\d) of 2 workers:", run.log()) == ["1", "2"]
        check(config, run.folder, run.step(), tmp_path / "straight")


def test_a_node_whose_loss_is_announced_costs_only_what_came_after_the_notice(tmp_path, tiny_sd, tiny_pairs):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, name="announced", steps=5000)
    with (
        attempt(
            "node is taken away with notice", PROMISE + "; checkpoints at the notice and before it goes"
        ) as figures,
        cluster_of(2) as nodes,
        start(config, *ELASTIC, "loop.checkpoint_every=1000", env=nodes.environment) as run,
    ):
        run.wait_for_step(3)
        at = run.step()
        assert nodes.there[1].node_id in node_ids_by_the_manifest()
        gone = time.time() + 40  # a busy machine tells of it late
        nodes.announce_loss(1, seconds=40)
        run.wait_for(lambda: "will be taken away" in run.log(), 60)
        run.wait_for(lambda: run.starts() != [])
        made = run.step()
        run.recovered(figures, gone, made)
        figures.lost_updates = made - run.starts()[-1]
        assert run.starts()[-1] >= at
        assert "is about to go" in run.log()
        ask_to_stop(run.folder)
        run.end()
        check(config, run.folder, run.step(), tmp_path / "straight")
