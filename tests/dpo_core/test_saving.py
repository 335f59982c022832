"""Checkpoints written beside the updates that follow."""

import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from dpo_core import saving
from dpo_core.checkpoint import TrainingState, load_checkpoint, load_latest, save_checkpoint
from dpo_core.context import LocalContext
from dpo_core.saving import CheckpointWriter, checkpoint_writer
from tests.dpo_core.test_checkpoint import disk_of
from tests.fault_table import attempt
from tests.train_runs import make_config, rows, run


def state(step: int, weight: torch.Tensor) -> TrainingState:
    moments = {"state": {0: {"step": torch.tensor(float(step)), "exp_avg": weight}}, "groups": [{"lr": 0.1}]}
    return TrainingState(step, {"weight": weight}, {"optimizer": moments}, {"seed": 1})


class Gate:
    """Lets checkpoints be written only once it is open."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __call__(self, folder: Path, state: TrainingState, keep: int) -> Path:
        assert self.open.wait(30)
        return save_checkpoint(folder, state, keep)


def writer_to(folder: Path, told: list[str], *, copies: bool = True) -> CheckpointWriter:
    return CheckpointWriter(folder, 2, lambda: told.append(load_name(folder)), background=True, copies=copies)


def load_name(folder: Path) -> str:
    return max(path.name for path in folder.glob("step-????????"))


def test_what_changes_while_it_is_written_is_written_as_it_was(tmp_path):
    weight, gate, told = torch.zeros(1000), Gate(), []
    writer = writer_to(tmp_path, told)
    with patch.object(saving, "save_checkpoint", gate):
        for step in (1, 2):
            at_first = state(step, weight)
            writer.save(at_first, now=False)
            weight += 1
            at_first.optim["optimizer"]["state"][0]["step"] += 100
            at_first.optim["optimizer"]["groups"][0]["lr"] = 0.0
            assert len(told) == step - 1, "it was not written beside what came next"
            gate.open.set()
            writer.wait()
            gate.open.clear()
            loaded = load_latest(tmp_path)
            assert loaded is not None
            (values,) = loaded.optim["optimizer"]["state"].values()
            assert (loaded.step, values["step"].item()) == (step, step)
            assert loaded.weights["weight"].eq(step - 1).all()
            assert values["exp_avg"].eq(step - 1).all()
            assert loaded.optim["optimizer"]["groups"] == [{"lr": 0.1}]
    assert told == ["step-00000001", "step-00000002"]


def test_a_checkpoint_waits_for_the_one_before_and_one_that_is_asked_for_now_is_there_at_once(tmp_path):
    told: list[str] = []
    writer, gate = writer_to(tmp_path, told), Gate()
    with patch.object(saving, "save_checkpoint", gate):
        writer.save(state(1, torch.ones(3)), now=False)
        threading.Timer(0.3, gate.open.set).start()
        writer.save(state(2, torch.ones(3)), now=True)
    assert told == ["step-00000001", "step-00000002"]


def alike(one: Any, other: Any) -> bool:
    """Whether two checkpoints hold the same, tensors to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return type(one) is type(other) and one == other


def test_a_run_leaves_the_same_checkpoints_with_it_and_without_it(tmp_path, tiny_sd, tiny_pairs):
    left = []
    for background in (True, False):
        loop = {"background_checkpoints": background, "keep_checkpoints": 9}
        config = make_config(tiny_sd, tiny_pairs, loop=loop, optim={"ema_decay": 0.9, "schedule": "cosine"})
        run(config, tmp_path / str(background))
        left.append([load_checkpoint(path) for path in sorted(tmp_path.glob(f"{background}/checkpoints/step-*"))])
    assert [saved.step for saved in left[0]] == [saved.step for saved in left[1]] == [1, 2, 3, 4]
    for one, other in zip(*left, strict=True):
        assert alike(one.weights, other.weights)
        assert alike(one.optim, other.optim)
        assert not alike(one.optim, left[0][0].optim) or one.step == 1


@attempt("disk full while a checkpoint is written", "one clear error, the one before whole, nothing left")
def test_a_disk_that_is_full_ends_the_run_that_trains_on_meanwhile(tmp_path, tiny_sd, tiny_pairs):
    def steps(count: int):
        return make_config(tiny_sd, tiny_pairs, loop={"max_steps": count, "checkpoint_every": 2})

    run(steps(2), tmp_path)
    with disk_of(20_000), pytest.raises(ValueError, match=r"update 4 cannot be written .* there: step-00000002\. Make"):
        run(steps(400), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert max(row["step"] for row in rows(tmp_path)) < 20, "the run went on long after"


def test_the_error_that_ends_a_run_comes_first_and_what_was_being_written_is_whole(tmp_path, caplog):
    gate, context = Gate(), LocalContext(tmp_path, "cpu")

    def train(step: int, size: int) -> None:
        gate.open.clear()
        with (
            checkpoint_writer(context, 2, lambda: None, background=True, copies=True) as writer,
            patch.object(saving, "save_checkpoint", gate),
        ):
            assert writer is not None
            writer.save(state(step, torch.ones(size)), now=False)
            threading.Timer(0.3, gate.open.set).start()
            raise RuntimeError("the loss is a poem")

    for step, size in ((1, 3), (2, 10**6)):
        with disk_of(10**6), pytest.raises(RuntimeError, match="poem"):
            train(step, size)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert "update 2 cannot be written" in caplog.text
