"""What is validated next, and what is written down."""

import json
from pathlib import Path

import pytest

from ray_jobs.record.journal import replace_json
from ray_jobs.validation.book import NOW, Book, checkpoints_there, choose_next, due_steps
from ray_jobs.validation.told import doing
from ray_jobs.validation.validator import alone, device_for


def test_start_weights_every_checkpoint_and_the_last_one_are_due():
    assert due_steps(0, checkpoint_every=10, every=None, last=45) == [0]
    assert due_steps(45, checkpoint_every=10, every=None, last=45) == [0, 10, 20, 30, 40, 45]


def test_every_takes_the_first_checkpoint_after_so_many_updates():
    assert due_steps(95, checkpoint_every=10, every=25, last=95) == [0, 30, 50, 80, 95]
    assert due_steps(60, checkpoint_every=10, every=30, last=60) == [0, 30, 60]


def test_the_start_weights_come_first_and_nothing_is_given_up_for_them():
    assert choose_next([0, 1, 2], {2}, set()) == choose_next([0], set(), set())


def test_a_validation_that_is_behind_takes_the_newest_checkpoint_and_names_the_others():
    found = choose_next([0, 1, 2, 3, 4, 5], {3, 4, 5}, {0, 1})
    assert (found.step, found.deleted, found.overtaken) == (5, [2], [3, 4])


def test_nothing_is_done_twice():
    assert choose_next([0, 1, 2], {1, 2}, {0, 1, 2}) == choose_next([0], {1, 2}, {0})


def test_a_row_cut_short_by_a_crash_is_not_glued_to_the_next_one(tmp_path: Path):
    book = Book(tmp_path, "a")
    book.append(0, weights="start")
    with book.path.open("a") as file:
        file.write('{"step": 1, "weig')
    book.append(1, weights="x")
    assert [json.loads(line)["step"] for line in book.path.read_text().splitlines()] == [0, 1]


def test_failed_steps_other_setups_and_remade_checkpoints_are_not_settled(tmp_path: Path):
    Book(tmp_path, "other").append(1, weights="x")
    book = Book(tmp_path, "a")
    book.append(2, weights="x")
    book.append(3, failed="ValueError: no")
    book.append(5, left_out=[4, 5], why="deleted")
    book.append(6, weights="x")
    assert book.settled({2: "x", 6: "remade"}) == {2, 4, 5}


def test_checkpoints_that_are_not_complete_are_not_there(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    for name in ("step-00000001", "step-00000002", "step-00000003.partial"):
        (folder / name).mkdir(parents=True)
    for name in ("step-00000001", "step-00000003.partial"):
        (folder / name / "manifest.json").write_text('{"sha256": {"weights.safetensors": "1"}}')
    assert list(checkpoints_there(tmp_path)) == [1]


def test_what_a_killed_validator_was_doing_is_not_told_as_if_it_still_did(tmp_path: Path):
    def nobody_else() -> None:
        raise AssertionError("the lock is taken")

    assert doing(tmp_path) == ""
    with alone(tmp_path, nobody_else):
        replace_json(tmp_path / NOW, {"step": 1500, "doing": "measuring", "done": 8, "of": 64})
        assert doing(tmp_path) == "update 1,500: measuring 8 of 64 pairs"
    assert doing(tmp_path) == ""


@pytest.mark.parametrize(
    ("asked", "there", "on_ray", "device"),
    [
        (None, 0, False, "cpu"),
        (None, 1, False, "cpu"),
        (None, 2, False, "cuda:1"),
        (0.5, 1, False, "cuda:0"),
        (0, 2, False, "cpu"),
        (None, 1, True, "cuda"),
        (0, 0, True, "cpu"),
    ],
)
def test_the_only_gpu_is_shared_with_a_training_when_that_is_asked_for(asked, there, on_ray, device):
    assert str(device_for(asked, there, on_ray=on_ray)) == device
