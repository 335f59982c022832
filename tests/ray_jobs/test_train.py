import io
import math
import os
from pathlib import Path

import pytest
import torch
from rich.console import Console

from dpo_core.data.quarantine import read_quarantine
from dpo_core.metrics import read_complete_rows
from dpo_core.stopping import ask_to_stop, stop_asked
from ray_jobs.config import load_config
from ray_jobs.train import plan_rows, run_training, train_here
from ray_jobs.training.alone import only_one
from ray_jobs.training.job import TrainJob
from tests.ray_jobs.jobs import final_weights, kill_once_there, palate, write_job


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tiny_sd, tiny_pairs) -> Path:
    """The folder of a run in one process that was never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    done = palate("train", "--config", write_job(folder, tiny_sd, tiny_pairs))
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "run"


def test_a_run_leaves_its_config_metrics_quarantine_checkpoint_and_model(straight):
    assert {"config.yaml", "metrics.jsonl", "quarantine.parquet", "checkpoints", "model"} <= {
        path.name for path in straight.iterdir()
    }
    rows = read_complete_rows(straight / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_saved_config_can_be_given_back(straight):
    done = palate("train", "--config", straight / "config.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "usable pairs" in done.stdout
    assert "24" in done.stdout


def test_a_dry_run_tells_where_the_model_is(tmp_path, tiny_sd, tiny_pairs):
    config = write_job(tmp_path, tiny_sd, tiny_pairs)
    told = [
        dict(plan_rows(load_config(TrainJob, config, [f"family.model={model}"])))["model"]
        for model in (tiny_sd, tmp_path / "none", "somebody/model")
    ]
    absent = f"{tmp_path / 'none'} (there is no such folder on this machine)"
    assert told == [str(tiny_sd), absent, "somebody/model (from the hub)"]


def test_a_stop_asked_for_after_the_last_update_stops_nothing(tmp_path, tiny_sd, tiny_pairs, monkeypatch):
    job = load_config(TrainJob, write_job(tmp_path, tiny_sd, tiny_pairs, steps=1), [])

    def late(job, folder, plan):
        train_here(job, folder, plan)
        ask_to_stop(folder)

    monkeypatch.setattr("ray_jobs.train.train_here", late)
    said = io.StringIO()
    folder = run_training(job, Console(file=said))
    assert (folder / "model" / "provenance.json").exists()
    assert not stop_asked(folder)
    assert "1/1" in said.getvalue()
    assert "stopped" not in said.getvalue()


def test_a_run_killed_with_sigkill_and_started_again_ends_with_the_same_bits(straight, tmp_path, tiny_sd, tiny_pairs):
    config = write_job(tmp_path, tiny_sd, tiny_pairs)
    kill_once_there(config, tmp_path / "runs" / "run" / "checkpoints" / "step-00000002")
    assert not (tmp_path / "runs" / "run" / "model").exists()
    done = palate("train", "--config", config)
    assert done.returncode == 0, done.stderr
    expected, resumed = final_weights(straight), final_weights(tmp_path / "runs" / "run")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_a_changed_config_is_refused_by_name_before_anything_is_touched(tmp_path, tiny_sd, tiny_pairs):
    config = write_job(tmp_path, tiny_sd, tiny_pairs, steps=1)
    folder = run_training(load_config(TrainJob, config, []), Console(quiet=True))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"objective\.beta was 500\.0, now 100\.0; optim\.lr was 0\.001, now 0\.002"):
        run_training(load_config(TrainJob, config, ["objective.beta=100", "optim.lr=0.002"]), Console(quiet=True))
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_training_in_the_same_folder_is_refused_and_leaves_the_first_alone(tmp_path, tiny_sd, tiny_pairs):
    config = write_job(tmp_path, tiny_sd, tiny_pairs)
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    with only_one(folder):
        done = palate("train", "--config", config)
        assert done.returncode == 1
        assert f"another process (process {os.getpid()} on " in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
        assert [path.name for path in folder.iterdir()] == [".lock"]
    with only_one(folder):
        pass


def test_a_misspelt_field_is_answered_with_did_you_mean_and_exit_code_two(tmp_path, tiny_sd, tiny_pairs):
    done = palate("train", "--config", write_job(tmp_path, tiny_sd, tiny_pairs), "optim.lrr=1e-5")
    assert done.returncode == 2
    assert "optim.lrr" in done.stderr
    assert "did you mean" in done.stderr
    assert "Traceback" not in done.stderr


def test_real_photographs_train_and_rows_that_cannot_be_used_are_counted_with_reasons(tmp_path, tiny_sd):
    assets = Path(__file__).parents[1] / "assets"
    config = write_job(tmp_path, tiny_sd, assets / "hostile.parquet", steps=4)
    real = assets / "real_pairs.parquet"
    done = palate("train", "--config", config, f"data.paths=[{assets / 'hostile.parquet'}, {real}]",
                  "data.max_quarantined_share=0.5", "data.min_side=32", "loop.global_batch_size=16")  # fmt: skip
    assert done.returncode == 0, done.stderr
    reasons = {str(item.reason) for item in read_quarantine(tmp_path / "runs" / "run" / "quarantine.parquet")}
    assert {"image_truncated", "image_too_large", "label_nan", "caption_null"} <= reasons


@pytest.mark.ray
def test_two_ray_workers_train_what_one_process_trains(straight, tmp_path, tiny_sd, tiny_pairs):
    done = palate("train", "--config", write_job(tmp_path, tiny_sd, tiny_pairs, workers=2))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "run"
    alone, together = read_complete_rows(straight / "metrics.jsonl"), read_complete_rows(run / "metrics.jsonl")
    for one, two in zip(alone, together, strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-3)
        assert two["train/pairs"] == one["train/pairs"]
    assert (run / "model" / "model_index.json").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_two_ray_workers_killed_and_started_again_end_with_the_same_bits(tmp_path, tiny_sd, tiny_pairs):
    never = write_job(tmp_path, tiny_sd, tiny_pairs, name="never-stopped", workers=2, steps=8)
    killed = write_job(tmp_path, tiny_sd, tiny_pairs, name="killed", workers=2, steps=8)
    assert palate("train", "--config", never).returncode == 0
    kill_once_there(killed, tmp_path / "runs" / "killed" / "checkpoints" / "step-00000003")
    done = palate("train", "--config", killed)
    assert done.returncode == 0, done.stderr
    expected, resumed = (final_weights(tmp_path / "runs" / name) for name in ("never-stopped", "killed"))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
