"""What the console shows of a training, from its log alone."""

import io
import json
import time
from pathlib import Path

from rich.console import Console

from ray_jobs.record.progress import training_progress
from ray_jobs.record.readings import seconds_per_update, summary

ROW = {
    "train/loss": 0.69312, "train/implicit_accuracy": 0.5625, "train/chosen_error_vs_reference": -0.00123,
    "train/rejected_error_vs_reference": 0.00045, "train/gpu_memory_gb": 31.24,
}  # fmt: skip
SAID = "8 pairs/s  loss 0.6931  accuracy 0.562  chosen -1.23e-03  rejected +4.50e-04  GPU GB 31.2  ends in 97 s"


def write_rows(folder: Path, steps: list[int]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "time": 1000.0 + step} | ROW) + "\n")


def watched(folder: Path, steps: list[int], *, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=140)
    with training_progress(folder, 100, console, "run", global_batch_size=8):
        write_rows(folder, steps)
        time.sleep(0.7)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_step_speed_loss_accuracy_both_errors_memory_and_the_time_left(tmp_path):
    said = watched(tmp_path, [1, 2, 3], terminal=True)
    assert SAID in said
    assert "3/100" in said


def test_a_log_file_gets_a_line_instead_of_a_bar(tmp_path):
    assert watched(tmp_path, [1, 2, 3], terminal=False) == f"run 3/100  {SAID}\n"


def test_the_last_row_is_told_also_when_another_one_was_told_just_before(tmp_path):
    write_rows(tmp_path, [98, 99])
    console = Console(file=io.StringIO(), force_terminal=False, width=140)
    with training_progress(tmp_path, 100, console, "run", global_batch_size=8):
        time.sleep(0.7)
        write_rows(tmp_path, [100])
    assert isinstance(console.file, io.StringIO)
    assert [line.split()[1] for line in console.file.getvalue().splitlines()] == ["99/100", "100/100"]


def test_a_break_between_two_starts_of_a_run_does_not_count_as_slowness():
    times = [0.0, 2.0, 4.0, 5004.0, 5006.0, 5008.0]
    assert seconds_per_update([{"step": 10 * i, "time": second} for i, second in enumerate(times)]) == 0.2


def test_an_objective_without_margin_or_a_machine_without_gpu_leaves_its_numbers_out():
    assert summary([{"step": 1, "time": 0.0, "train/loss": 1.0}], 8, 100) == "loss 1.0000"
