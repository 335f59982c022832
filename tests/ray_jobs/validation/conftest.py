from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from ray_jobs.config import load_config
from ray_jobs.train import run_training
from ray_jobs.training.job import TrainJob
from tests.ray_jobs.jobs import write_job
from tests.ray_jobs.validation_jobs import STEPS, settings
from tests.tiny_data import make_pairs


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs 20 to 31 of a set of which 0 to 23 are trained on."""
    folder = make_pairs(tmp_path_factory.mktemp("held-out"), 32, shards=1)
    pq.write_table(pq.read_table(folder / "00000.parquet").slice(20), folder / "00000.parquet")
    return folder


@pytest.fixture(scope="session")
def validated(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path, tiny_pairs: Path, held_out: Path) -> Path:
    folder = tmp_path_factory.mktemp("validated")
    config = write_job(folder, tiny_sd, tiny_pairs, steps=STEPS)
    tracked = ["tracking.enabled=true", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"]
    return run_training(load_config(TrainJob, config, [*settings(held_out), *tracked]), Console(quiet=True))
