import json
import os
import signal
import threading

import pytest

from dpo_core.context import LocalContext
from dpo_core.stopping import STOP_FILE, ask_to_stop, clear_stop, signals_stop
from tests.fault_table import attempt
from tests.train_runs import make_config, rows, run, same


class StopsAfter(LocalContext):
    """A run that somebody stops while a given update is made."""

    def __init__(self, run_dir, updates: int) -> None:
        super().__init__(run_dir, "cpu")
        self.updates = updates

    def request(self):
        self.updates -= 1
        if self.updates == 0:
            ask_to_stop(self.run_dir)
        return super().request()


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_stopped_between_log_rows_goes_on_as_if_nothing_had_happened(tiny_sd, tiny_pairs, tmp_path, after):
    config = make_config(tiny_sd, tiny_pairs, loop={"log_every": 2, "checkpoint_every": 4}, optim={"ema_decay": 0.9})
    straight = run(config, tmp_path / "straight")
    (tmp_path / "stopped").mkdir()
    run(config, tmp_path / "stopped", StopsAfter(tmp_path / "stopped", after))
    assert not (tmp_path / "stopped" / "model").exists()
    assert [row["step"] for row in rows(tmp_path / "stopped")] == list(range(2, after + 1, 2))
    clear_stop(tmp_path / "stopped")
    assert same(straight, run(config, tmp_path / "stopped"))
    assert rows(tmp_path / "stopped") == rows(tmp_path / "straight")
    assert (tmp_path / "stopped" / "model").exists()


def test_a_request_during_the_last_update_changes_nothing(tiny_sd, tiny_pairs, tmp_path):
    run(make_config(tiny_sd, tiny_pairs), tmp_path, StopsAfter(tmp_path, 4))
    assert (tmp_path / "model").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_one_acts(tmp_path, number):
    acted: list[int] = []
    before = signal.signal(number, lambda got, _: acted.append(got))
    try:
        with signals_stop(tmp_path):
            os.kill(os.getpid(), number)
            assert (tmp_path / STOP_FILE).exists()
            assert acted == []
            os.kill(os.getpid(), number)
            assert acted == [number]
    finally:
        signal.signal(number, before)


def test_signals_are_left_alone_outside_of_the_main_thread(tmp_path):
    handlers: list[object] = []

    def work() -> None:
        with signals_stop(tmp_path):
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


@attempt("gradient not finite", "skipped and counted; too many end the run and name the pairs")
def test_updates_without_a_finite_gradient_are_skipped_counted_and_too_many_end_the_run(tiny_sd, tiny_pairs, tmp_path):
    loop = {"max_steps": 6, "max_skipped_in_a_row": 2}
    config = make_config(tiny_sd, tiny_pairs, objective={"beta": 1e39}, loop=loop)
    with pytest.raises(ValueError, match="not finite in 3 updates in a row, up to update"):
        run(config, tmp_path)
    assert rows(tmp_path)[-1]["train/skipped_updates"] > 0
    named = json.loads((tmp_path / "not_finite.json").read_text())
    assert len(named["pair_ids"]) == 8
