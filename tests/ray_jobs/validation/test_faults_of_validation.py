"""Whatever happens to the validator, training ends well, and the next start makes up for it."""

import os
import signal
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from dpo_core.stopping import ask_to_stop
from ray_jobs.config import load_config
from ray_jobs.status import RunStatus
from ray_jobs.train import run_training, updates_done
from ray_jobs.training.job import TrainJob
from ray_jobs.validation.told import at_work, validation_rows
from tests.ray_jobs.jobs import kill_once_there, palate, write_job
from tests.ray_jobs.validation_jobs import PAIRS, STEPS, settings


def test_a_validation_that_fails_is_told_and_does_not_end_the_training(tmp_path, tiny_sd, tiny_pairs, held_out, capsys):
    unreadable = tmp_path / "unreadable.parquet"
    table = pq.read_table(held_out).slice(6)
    for name in ("jpg_0", "jpg_1"):
        broken = pa.array([b"no image"] * len(table), type=pa.binary())
        table = table.set_column(table.column_names.index(name), name, broken)
    pq.write_table(table, unreadable)
    job = load_config(TrainJob, write_job(tmp_path, tiny_sd, tiny_pairs, steps=2), settings(unreadable))
    folder = run_training(job)
    assert (folder / "model" / "provenance.json").exists()
    assert "validation of update 2 failed: ValueError: no held-out pair" in " ".join(capsys.readouterr().out.split())
    facts = RunStatus.read(folder).facts()
    assert facts["state"] == "finished"
    assert "update 2: ValueError: no held-out pair can be read" in facts["validation failed"]


@pytest.mark.slow
def test_a_validator_that_is_killed_goes_on(tmp_path, tiny_sd, tiny_pairs, held_out):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, steps=3)
    run = tmp_path / "runs" / "run"

    def kill() -> None:
        end = time.monotonic() + 100
        while time.monotonic() < end and not validation_rows(run):
            time.sleep(0.01)
        os.kill(int((run / "validation" / "lock").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    run_training(load_config(TrainJob, config, settings(held_out)), Console(quiet=True))
    killer.join()
    rows = validation_rows(run)
    steps = [row["step"] for row in rows if "weights" in row]
    assert (steps[0], steps[-1]) == (0, 3)
    assert len(set(steps)) == len(steps)
    assert "Traceback" not in (run / "validation" / "log.txt").read_text()


@pytest.mark.slow
def test_a_validator_ends_when_its_training_was_killed_and_the_next_start_finishes_its_work(
    tmp_path, tiny_sd, tiny_pairs, held_out
):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, steps=6)
    run = tmp_path / "runs" / "run"
    job = yaml.safe_load(config.read_text())
    job["validation"] = {"enabled": True, "paths": [str(held_out)], "pairs": PAIRS}
    config.write_text(yaml.safe_dump(job))
    kill_once_there(config, run / "checkpoints" / "step-00000002")
    done = palate("train", "--config", config)
    assert done.returncode == 0, done.stderr
    rows = [row for row in validation_rows(run) if "weights" in row]
    assert (rows[0]["step"], rows[-1]["step"]) == (0, 6)
    assert len({row["step"] for row in rows}) == len(rows)


@pytest.mark.slow
def test_what_comes_after_the_end_of_the_training_reaches_the_copy_in_object_storage(
    tmp_path, tiny_sd, tiny_pairs, held_out
):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, steps=2)
    job = load_config(TrainJob, config, [*settings(held_out), f"loop.mirror={(tmp_path / 'far').as_uri()}"])
    run, far = run_training(job, Console(quiet=True)), tmp_path / "far" / "run"
    names = ["validation.jsonl", *(f"best/{file.relative_to(run / 'best')}" for file in (run / "best").rglob("*.*"))]
    assert [name for name in names if (far / name).read_bytes() != (run / name).read_bytes()] == []


@pytest.mark.slow
def test_a_stop_waits_for_no_validation(tmp_path, tiny_sd, tiny_pairs, held_out):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, steps=300)
    run = tmp_path / "runs" / "run"
    job = load_config(TrainJob, config, settings(held_out))

    def stop() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not (run / "checkpoints" / "step-00000002").exists():
            time.sleep(0.01)
        ask_to_stop(run)

    stopper = threading.Thread(target=stop)
    stopper.start()
    run_training(job, Console(quiet=True))
    stopper.join()
    assert not at_work(run)
    done = updates_done(run)
    assert 2 <= done < 300
    assert done not in {row["step"] for row in validation_rows(run)}


@pytest.mark.slow
@pytest.mark.ray
def test_an_actor_validates_what_ray_workers_train(tmp_path, tiny_sd, tiny_pairs, held_out, validated):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, steps=STEPS, workers=1)
    done = palate("train", "--config", config, *settings(held_out), "validation.cpus=0.25")
    assert done.returncode == 0, done.stderr
    rows = [row for row in validation_rows(tmp_path / "runs" / "run") if "weights" in row]
    assert (rows[0]["step"], rows[-1]["step"]) == (0, STEPS)
    alone = validation_rows(validated)[-1]
    numbers = {name: value for name, value in alone.items() if name.startswith("validation/") and "best" not in name}
    assert {name: rows[-1][name] for name in numbers} == pytest.approx(numbers, abs=1e-4)
