import json
import logging
import time
from pathlib import Path

import pytest
import yaml

from dpo_core.stopping import STOP_FILE, ask_to_stop
from ray_jobs.cli import main
from ray_jobs.config import load_config
from ray_jobs.record.readings import duration
from ray_jobs.record.run_status import RunStatus
from ray_jobs.record.runlog import logged_end, written_log
from ray_jobs.train import run_training
from ray_jobs.training.alone import LOCK, only_one
from ray_jobs.training.job import TrainJob
from tests.ray_jobs.jobs import write_job


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path, tiny_pairs: Path) -> Path:
    folder = tmp_path_factory.mktemp("status")
    return run_training(load_config(TrainJob, write_job(folder, tiny_sd, tiny_pairs, steps=3), []))


def started(folder: Path, *, age: float, rows: int = 4) -> Path:
    """A run that has logged ``rows`` of 100 updates, one a second, the last one ``age`` seconds ago."""
    folder.mkdir()
    config = {
        "loop": {"max_steps": 100, "log_every": 1, "global_batch_size": 8},
        "objective": {"kind": "dpo"}, "policy": {"method": "full"}, "family": {"model": "embedded"},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    last = time.time() - age
    lines = [{"step": i + 1, "time": last - (rows - 1 - i), "train/loss": 0.5} for i in range(rows)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_finished_run_says_so_with_its_numbers_and_a_page_that_needs_nothing_else(finished, capsys):
    assert main(["status", str(finished), "--html"]) == 0
    said = capsys.readouterr().out
    assert "finished" in said
    assert "3 of 3 (100 %)" in said
    page = (finished / "run.html").read_text()
    assert page.count("<svg") == 3
    assert "http-equiv" not in page
    assert "src=" not in page
    assert "href=" not in page.replace('xlink:href="#', "").replace('href="#', "")


def test_speed_and_remaining_time_follow_from_the_log(tmp_path):
    status = RunStatus.read(started(tmp_path / "run", age=1))
    assert status.state == "running"
    assert status.facts()["speed"] == "8.00 pairs/s, 1.00 s per update"
    assert status.facts()["ends in about"] == "96 s"


def test_a_run_that_has_long_been_silent_is_stopped(tmp_path):
    assert RunStatus.read(started(tmp_path / "run", age=300)).state == "stopped"


def test_a_run_that_an_error_has_ended_failed_until_it_is_started_again(tmp_path, capsys):
    folder = started(tmp_path / "run", age=1)
    with pytest.raises(ValueError, match="no such pairs"), logged_end(folder):
        raise ValueError("no such pairs [data/a]\nand more")
    assert RunStatus.read(folder).state == "failed"
    assert main(["status", str(folder)]) == 0
    assert "no such pairs [data/a]" in capsys.readouterr().out
    with written_log(folder):
        logging.getLogger("ray_jobs").info("in this process")
    assert RunStatus.read(folder).state == "running"


def test_whether_a_run_is_alive_is_known_on_its_own_machine(tmp_path):
    folder = started(tmp_path / "run", age=300)
    with only_one(folder):
        assert RunStatus.read(folder).state == "running"
        ask_to_stop(folder)
        assert RunStatus.read(folder).state == "stopping"
    assert RunStatus.read(folder).state == "stopped"
    lately = started(tmp_path / "lately", age=1)
    with only_one(lately):
        pass
    assert RunStatus.read(lately).state == "stopped"
    (lately / LOCK).write_text("process 1 on another-machine\n")
    assert RunStatus.read(lately).state == "running"


def test_stop_leaves_the_file_that_the_run_looks_for(tmp_path, capsys):
    folder = started(tmp_path / "run", age=1)
    assert main(["status", str(folder), "--stop", "--json"]) == 0
    assert (folder / STOP_FILE).exists()
    assert json.loads(capsys.readouterr().out)["state"] == "stopping"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "not the folder of a run"),
        (["a", "b"], "one run, 2 were given"),
        (["a", "--hmtl"], "no such option"),
    ],
)
def test_a_wrong_call_gets_one_sentence_and_exit_code_two(words, said, capsys):
    assert main(["status", *words]) == 2
    assert said in capsys.readouterr().err


def test_durations_are_said_in_the_unit_that_fits():
    assert [duration(s) for s in (5, 119, 120, 7200, 200000)] == ["5 s", "119 s", "2.0 min", "2.0 h", "2.3 d"]
