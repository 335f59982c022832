"""The model that is kept, and when it gives way to another one."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.provenance import training_of
from ray_jobs.validation.best import FOLDER, OLD, is_best, keep, mend, picked, provenance_of
from ray_jobs.validation.section import BestSection

MOST = BestSection()


def model(run: Path, section: BestSection, step: int, value: float, setup: str = "a") -> Path:
    folder = run / "validation" / "model"
    folder.mkdir(parents=True)
    facts = provenance_of(section, setup, step, {f"validation/{section.metric}": value})
    (folder / "provenance.json").write_text(json.dumps(facts))
    return folder


def step_of(run: Path) -> Any:
    found = picked(run)
    return found and found["step"]


@pytest.mark.parametrize(
    ("mode", "value", "better"),
    [("max", 0.7, True), ("max", 0.6, False), ("max", 0.5, False), ("min", 0.5, True), ("min", 0.7, False)],
)
def test_only_a_better_checkpoint_replaces_the_best_and_an_equal_one_does_not(tmp_path, mode, value, better):
    section = BestSection(metric="chosen_error", mode=mode)
    keep(tmp_path, model(tmp_path, section, 1, 0.6))
    assert is_best(tmp_path, section, "a", {"validation/chosen_error": value}, []) is better


def test_the_first_checkpoint_is_the_best_so_far(tmp_path):
    assert is_best(tmp_path, MOST, "a", {"validation/implicit_accuracy": 0.1}, [])


def test_no_metric_and_no_number_keep_nothing(tmp_path):
    assert not is_best(tmp_path, BestSection(metric=None), "a", {"validation/implicit_accuracy": 0.9}, [])
    assert not is_best(tmp_path, MOST, "a", {}, [])


def test_a_best_model_that_was_picked_by_something_else_gives_way(tmp_path):
    keep(tmp_path, model(tmp_path, MOST, 1, 0.9))
    assert is_best(tmp_path, MOST, "other held-out pairs", {"validation/implicit_accuracy": 0.1}, [])
    margin = BestSection(metric="margin")
    assert is_best(tmp_path, margin, "a", {"validation/margin": -1.0}, [])


def test_a_better_one_that_only_the_rows_know_is_not_replaced(tmp_path):
    rows = [{"step": 0, "validation/implicit_accuracy": 0.9}, {"step": 1, "validation/implicit_accuracy": 0.6}]
    assert not is_best(tmp_path, MOST, "a", {"validation/implicit_accuracy": 0.6}, rows)
    assert is_best(tmp_path, MOST, "a", {"validation/implicit_accuracy": 0.7}, rows)


def test_a_crash_between_the_two_renames_loses_no_model(tmp_path):
    keep(tmp_path, model(tmp_path, MOST, 1, 0.6))
    model(tmp_path, MOST, 2, 0.7)
    (tmp_path / FOLDER).rename(tmp_path / OLD)
    mend(tmp_path)
    assert step_of(tmp_path) == 1
    assert not (tmp_path / OLD).exists()


def test_a_crash_after_the_second_rename_keeps_the_new_model(tmp_path):
    keep(tmp_path, model(tmp_path, MOST, 1, 0.6))
    new = model(tmp_path, MOST, 2, 0.7)
    (tmp_path / FOLDER).rename(tmp_path / OLD)
    new.rename(tmp_path / FOLDER)
    mend(tmp_path)
    assert step_of(tmp_path) == 2
    assert not (tmp_path / OLD).exists()


def test_evaluation_reads_what_picked_the_model(tmp_path):
    keep(tmp_path, model(tmp_path, MOST, 1, 0.6))
    assert training_of(tmp_path / FOLDER).picked_by == ["implicit_accuracy"]
