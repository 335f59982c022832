"""A tiny training job as YAML, for tests that start the program as a user would."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from dpo_core.checkpoint import load_latest

ROOT = Path(__file__).parents[2]


def write_job(folder: Path, model: Path, pairs: Path, *, name: str = "run", workers: int = 0, steps: int = 6) -> Path:
    """A config file for ``palate train``: a checkpoint after every update."""
    job = {
        "run": {"name": name, "storage": str(folder / "runs")},
        "family": {"kind": "sd15", "model": str(model)},
        "objective": {"kind": "dpo", "beta": 500.0},
        "data": {"paths": [str(pairs)], "resolution": 16, "min_side": 16, "lanes": 4},
        "optim": {"lr": 0.001},
        "loop": {
            "max_steps": steps,
            "global_batch_size": 8,
            "worker_batch_size": 2,
            "log_every": 1,
            "checkpoint_every": 1,
            "keep_checkpoints": 100,
        },
        "cluster": {"num_workers": workers},
        "tracking": {"enabled": False},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def palate(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python -m ray_jobs.<verb> ...`` to its end."""
    verb, *rest = map(str, words)
    command = [sys.executable, "-m", f"ray_jobs.{verb}", *rest]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | (env or {}), timeout=280)


def kill_once_there(config: Path, checkpoint: Path) -> None:
    """Start ``palate train`` and SIGKILL it and all its children as soon as ``checkpoint`` exists."""
    command = [sys.executable, "-m", "ray_jobs.train", "--config", str(config)]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 240
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    saved = load_latest(run / "checkpoints")
    assert saved is not None
    return saved.weights
