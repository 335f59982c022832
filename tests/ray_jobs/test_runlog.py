import logging
import time

from rich.console import Console

from ray_jobs.runlog import LOG_FILE, shown_log, written_log


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
