import logging
import time

import pytest
from rich.console import Console

from ray_jobs.record.runlog import LOG_FILE, ended_by, full_disk_is_users, logged_end, shown_log, written_log


def test_what_the_training_says_stands_in_the_run_folder(tmp_path):
    with written_log(tmp_path):
        logging.getLogger("dpo_core.training").info("resumed at update %d", 7)
        logging.getLogger("elsewhere").warning("not of the run")
    logging.getLogger("dpo_core.training").warning("after the run")
    (line,) = (tmp_path / LOG_FILE).read_text().splitlines()
    assert line.endswith("INFO resumed at update 7")


def test_a_run_that_goes_on_adds_to_its_log(tmp_path):
    for name in ("one", "two"):
        with written_log(tmp_path):
            logging.getLogger("ray_jobs.train").info(name)
    assert len((tmp_path / LOG_FILE).read_text().splitlines()) == 2


def test_new_warnings_of_workers_are_shown_and_nothing_else(tmp_path, capsys):
    with written_log(tmp_path):
        logging.getLogger("dpo_core").warning("of the last attempt")
    with shown_log(tmp_path, Console(width=200)):
        with written_log(tmp_path):
            logging.getLogger("dpo_core").info("a detail")
            logging.getLogger("dpo_core").warning("rank 1 [is] slow")
        time.sleep(0.1)
    shown = capsys.readouterr().out
    assert "rank 1 [is] slow" in shown
    assert "of the last attempt" not in shown
    assert "a detail" not in shown


def test_what_ends_a_run_stands_in_its_log_by_kind(tmp_path):
    assert ended_by(tmp_path) == ""
    for error, told in (
        (ValueError("optim.lr was 1, now 2"), "optim.lr was 1, now 2"),
        (RuntimeError("a kernel\nand where"), "RuntimeError: a kernel"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ):
        with pytest.raises(type(error)), logged_end(tmp_path):
            raise error
        assert ended_by(tmp_path) == told


def train_on_a_full_disk(folder):
    with logged_end(folder), full_disk_is_users(folder), written_log(folder):
        logging.getLogger("dpo_core").warning("one that is lost")
        (folder / "metrics.jsonl").symlink_to("/dev/full")
        (folder / "metrics.jsonl").write_text("a row")


def test_a_full_disk_is_one_sentence_and_a_log_that_cannot_be_written_is_silent(tmp_path, capsys):
    (tmp_path / LOG_FILE).symlink_to("/dev/full")  # every write finds the disk full
    with pytest.raises(ValueError, match=r"cannot be written: .*No space left.* Make room"):
        train_on_a_full_disk(tmp_path)
    assert "Traceback" not in capsys.readouterr().err


def test_only_a_full_disk_is_taken_for_one(tmp_path):
    with pytest.raises(FileNotFoundError), full_disk_is_users(tmp_path):
        (tmp_path / "missing").read_text()
