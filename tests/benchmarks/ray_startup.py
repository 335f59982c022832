"""What Ray costs before the first update, and what a second run in the same place still costs.

python -m tests.benchmarks.ray_startup [--workers 2] [--updates 40]

Trains a tiny model with `palate train`'s own worker twice in one Ray: joining Ray, placing workers, importing, forming
the process group, planning, the first update. Seconds of wall time; nothing else should run on the machine.
"""

import argparse
import contextlib
import os
import tempfile
import time
from datetime import datetime
from pathlib import Path


def train_once(folder: Path, model: Path, pairs: Path, workers: int, updates: int) -> dict[str, float]:
    """Seconds of each stage of one run."""
    from rich.console import Console

    from dpo_core.metrics import read_complete_rows
    from ray_jobs.config import load_config
    from ray_jobs.train import run_training
    from ray_jobs.training.job import TrainJob
    from tests.ray_jobs.jobs import write_job

    job = load_config(TrainJob, write_job(folder, model, pairs, workers=workers, steps=updates), [])
    start = time.time()
    run = run_training(job, Console(quiet=True))
    end = time.time()
    rows = read_complete_rows(run / "metrics.jsonl")
    began = first_line(run / "run.log")
    return {
        "until the training function runs": began - start,
        "plan, model, first update": rows[0]["time"] - began,
        "each further update": (rows[-1]["time"] - rows[0]["time"]) / max(updates - 1, 1),
        "export and end": end - rows[-1]["time"],
        "all": end - start,
    }


def first_line(log: Path) -> float:
    """When the training function began."""
    return datetime.strptime(log.read_text()[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--updates", type=int, default=40)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    took: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(name: str):
        before = time.perf_counter()
        yield
        took[name] = time.perf_counter() - before

    with timed("import ray"):
        import ray
    with timed("import of palate train"):
        import ray_jobs.train  # noqa: F401
    with timed("import ray.train.torch"):
        import ray.train.torch
    from ray_jobs.cluster import start_ray
    from tests.tiny_data import make_pairs
    from tests.tiny_models import make_tiny_sd

    with timed("ray.init"):
        start_ray()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, pairs = make_tiny_sd(folder / "model"), make_pairs(folder / "pairs", 24)
        runs = {
            "in this process": train_once(folder / "here", model, pairs, 0, options.updates),
            "on Ray": train_once(folder / "one", model, pairs, options.workers, options.updates),
            "on Ray again": train_once(folder / "two", model, pairs, options.workers, options.updates),
        }
        ray.shutdown()
    for name, seconds in took.items():
        print(f"{name:40} {seconds:6.1f}")
    print(f"{'':40} " + " ".join(f"{name:>16}" for name in runs))
    for stage in runs["on Ray"]:
        print(f"{stage:40} " + " ".join(f"{run[stage]:16.1f}" for run in runs.values()))


if __name__ == "__main__":
    main()
