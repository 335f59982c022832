"""A secret that stands where secrets belong is found nowhere else."""

import socket
from pathlib import Path

import pytest

from ray_jobs.config import ConfigError, load_config
from ray_jobs.settings.secrets import without_secrets
from ray_jobs.training.job import TrainJob
from tests.ray_jobs.jobs import palate, write_job

SECRET = "planted-4f0c9d"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (f"http://me:{SECRET}@host:5000/x?y=1", "http://host:5000/x?y=1"),
        (f"postgresql://me:{SECRET}@db/mlflow", "postgresql://db/mlflow"),
        (f"GET http://me:{SECRET}@host:5000/x failed", "GET http://host:5000/x failed"),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/mlflow.db"),
        ("hf://datasets/org/name@main/a.parquet", "hf://datasets/org/name@main/a.parquet"),
    ],
)
def test_addresses_are_written_without_user_and_password(address, public):
    assert without_secrets(address) == public


@pytest.mark.parametrize("field", ["tracking.uri=", "data.paths=[a.parquet, ", "tracking.tags.server="])
def test_a_password_in_a_config_is_refused_without_being_repeated(field):
    value = f"{field}https://me:{SECRET}@host/x" + ("]" if "[" in field else "")
    with pytest.raises(ConfigError, match="holds a password") as raised:
        load_config(TrainJob, None, [value])
    assert SECRET not in str(raised.value)
    assert field.partition("=")[0] in str(raised.value)


def test_secrets_of_the_environment_are_neither_said_nor_kept(tmp_path, tiny_sd, tiny_pairs):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and no server answers
        environment = {
            "MLFLOW_TRACKING_URI": f"http://me:{SECRET}@127.0.0.1:{nobody.getsockname()[1]}",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "RAY_AUTH_TOKEN": SECRET,
            "HF_TOKEN": SECRET,
        }
        config = write_job(tmp_path, tiny_sd, tiny_pairs, steps=2)
        done = palate("train", "--config", config, "tracking.enabled=true", env=environment)
    assert done.returncode == 0, done.stderr
    assert "were not delivered to http://127.0.0.1" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert [path for path in (tmp_path / "runs").rglob("*") if holds(path)] == []


def test_secrets_of_the_environment_do_not_reach_mlflow(tmp_path, tiny_sd, tiny_pairs):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, steps=2)
    environment = {"AWS_SECRET_ACCESS_KEY": SECRET, "RAY_AUTH_TOKEN": SECRET, "MLFLOW_TRACKING_PASSWORD": SECRET}
    done = palate("train", "--config", config, "tracking.enabled=true", env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mlflow.db").exists()
    assert [path for path in (tmp_path / "runs").rglob("*") if holds(path)] == []


def holds(path: Path) -> bool:
    return path.is_file() and SECRET.encode() in path.read_bytes()
