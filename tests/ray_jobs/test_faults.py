"""Faults of a running cluster, on a real one: `make faults`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo_core.metrics import read_complete_rows
from tests.ray_jobs.jobs import ROOT, final_weights, palate, write_job
from tests.train_runs import same

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]


def wait_for_step(run: Path, step: int, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rows = read_complete_rows(run / "metrics.jsonl")
        if rows and rows[-1]["step"] >= step:
            return
        time.sleep(0.1)
    raise TimeoutError(f"update {step} was not reached")


def workers_of(process: int) -> list[int]:
    """The training workers below a process, by the name that Ray gives them."""
    lines = subprocess.run(
        ["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rows = [line.split(None, 2) for line in lines[1:]]
    below, grown = {process}, True
    while grown:
        more = {int(pid) for pid, parent, *_ in rows if int(parent) in below} - below
        below, grown = below | more, bool(more)
    return [int(pid) for pid, _, *name in rows if int(pid) in below and name and "RayTrainWorker" in name[0]]


def test_a_killed_worker_costs_no_bit(tmp_path, tiny_sd, tiny_pairs):
    steps = 30
    straight = write_job(tmp_path / "straight", tiny_sd, tiny_pairs, workers=2, steps=steps)
    assert palate("train", "--config", straight).returncode == 0
    config = write_job(tmp_path / "killed", tiny_sd, tiny_pairs, workers=2, steps=steps)
    command = [sys.executable, "-m", "ray_jobs.train", "--config", str(config)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "killed" / "runs" / "run"
    wait_for_step(run, 3)
    victims = workers_of(process.pid)
    assert len(victims) == 2
    os.kill(victims[1], signal.SIGKILL)
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said[-3000:]
    assert same(final_weights(tmp_path / "straight" / "runs" / "run"), final_weights(run))
