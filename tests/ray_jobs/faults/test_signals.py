"""Processes of a run on Ray that are killed, told to end, or interrupted."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dpo_core.checkpoint import load_latest
from dpo_core.stopping import ask_to_stop
from ray_jobs.config import load_config
from ray_jobs.training.job import TrainJob
from tests.fault_table import attempt
from tests.ray_jobs.faults.nodes import Run, start
from tests.ray_jobs.jobs import final_weights, write_job
from tests.train_runs import rows, run_ranks, same

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]
STEPS = 200
SPARSE = "loop.checkpoint_every=8"


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tiny_sd, tiny_pairs):
    """The folder of the same run by two threads of this process, which nobody disturbs."""
    folder = tmp_path_factory.mktemp("straight")
    job = load_config(TrainJob, write_job(folder, tiny_sd, tiny_pairs, steps=STEPS), [SPARSE])
    run_ranks(job, folder / "run", 2)
    return folder / "run"


def workers_of(run: Run) -> list[int]:
    """The training workers below the process of a run, by the name that Ray gives them."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    processes = [line.split(None, 2) for line in listed.splitlines()[1:]]
    below, grown = {run.process.pid}, True
    while grown:
        more = {int(pid) for pid, parent, *_ in processes if int(parent) in below} - below
        below, grown = below | more, bool(more)
    return [int(pid) for pid, _, *name in processes if int(pid) in below and name and "RayTrainWorker" in name[0]]


def lives(process: int) -> bool:
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
    return bool(listed.strip()) and not listed.strip().startswith("Z")


@contextmanager
def held_up(process: int) -> Iterator[None]:
    """Inside, a process stands still three quarters of the time."""
    over = threading.Event()

    def hold() -> None:
        while not over.wait(0.1):
            os.kill(process, signal.SIGSTOP)
            over.wait(0.3)
            os.kill(process, signal.SIGCONT)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_slow_worker_is_named_and_one_that_stands_still_is_waited_for(tmp_path, tiny_sd, tiny_pairs):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, workers=2, steps=5000)
    with (
        attempt("one worker slow, then all stopped for 10 s", "named with its node; the run goes on") as figures,
        start(config, "loop.checkpoint_every=5000", "optim.lr=1e-6") as run,
    ):
        run.wait_for_step(1)
        with held_up(workers_of(run)[1]):
            run.wait_for(lambda: "is slow" in run.log(), 120)
        assert len(set(re.findall(r"rank (\d) on node \S+ \(\w+\) is slow", run.log()))) == 1
        for process in workers_of(run):
            os.kill(process, signal.SIGSTOP)
        time.sleep(10)  # as when the storage does not answer
        at, now = run.step(), time.time()
        for process in workers_of(run):
            os.kill(process, signal.SIGCONT)
        run.recovered(figures, now, at)
        figures.lost_updates = 0
        ask_to_stop(run.folder)
        assert "is slow" in run.end()
        assert run.starts() == []


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_costs_no_bit(straight, tmp_path, tiny_sd, tiny_pairs, victim):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, workers=2, steps=STEPS)
    with (
        attempt("worker killed by SIGKILL", "same bits, same metrics") as figures,
        start(config, SPARSE) as run,
    ):
        run.wait_for_step(10)
        victims = workers_of(run)
        assert len(victims) == 2
        at, now = run.step(), time.time()
        os.kill(victims[victim], signal.SIGKILL)
        run.recovered(figures, now, at)
        run.end()
        assert same(final_weights(straight), final_weights(run.folder))
        assert rows(run.folder) == rows(straight)


def test_a_worker_told_to_end_leaves_a_checkpoint_first(straight, tmp_path, tiny_sd, tiny_pairs):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, workers=2, steps=STEPS)
    with (
        attempt("worker told to end by SIGTERM", "checkpoint before it ends, same bits") as figures,
        start(config, SPARSE) as run,
    ):
        run.wait_for_step(3)
        at, now = run.step(), time.time()
        os.kill(workers_of(run)[0], signal.SIGTERM)
        run.wait_for(lambda: run.starts() != [])
        made = run.step()
        run.recovered(figures, now, made)
        figures.lost_updates = made - run.starts()[0]
        assert run.starts()[0] >= at, "the checkpoint is older than the signal"
        run.end()
        assert "SIGTERM to 1 of 2 workers" in run.log()
        assert same(final_weights(straight), final_weights(run.folder))
        assert rows(run.folder) == rows(straight)


def test_a_killed_driver_can_be_started_again_at_once(straight, tmp_path, tiny_sd, tiny_pairs):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, workers=2, steps=STEPS)
    with attempt("driver killed by SIGKILL, started again", "same bits, same metrics") as figures:
        with start(config, SPARSE) as run:
            run.wait_for_step(10)
            left, now = workers_of(run), time.time()
            run.process.kill()
            run.process.wait()
            while any(lives(worker) for worker in left):  # they may make some more updates
                assert time.time() < now + 60
                time.sleep(0.05)
            at = run.step()
        with start(config, SPARSE) as again:
            again.recovered(figures, now, at)
            assert figures.lost_updates is not None
            again.end()
            assert same(final_weights(straight), final_weights(again.folder))
            assert rows(again.folder) == rows(straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_driver_ends_with_a_checkpoint_and_goes_on_later(
    straight, tmp_path, tiny_sd, tiny_pairs, number
):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, workers=2, steps=STEPS)
    with attempt("Ctrl-C or SIGTERM at the driver", "clean end with a checkpoint, same bits later") as figures:
        with start(config, SPARSE) as run:
            run.wait_for_step(3)
            # A terminal sends Ctrl-C to everything in the foreground; SIGTERM is sent to one process.
            (os.killpg if number == signal.SIGINT else os.kill)(run.process.pid, number)
            assert "the same command goes on" in run.end(60)
            saved = load_latest(run.folder / "checkpoints")
            assert saved is not None
            assert saved.step == run.step() < STEPS
            figures.lost_updates = 0
        run_ranks(load_config(TrainJob, config, [SPARSE]), run.folder, 2)
        assert same(final_weights(straight), final_weights(run.folder))
        assert rows(run.folder) == rows(straight)
