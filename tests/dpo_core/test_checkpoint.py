import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from dpo_core.checkpoint import TrainingState, load_latest, save_checkpoint
from tests.fault_table import attempt


def state(step: int) -> TrainingState:
    return TrainingState(step, {"weight": torch.full((3,), float(step))}, {"optimizer": {"step": step}}, {"seed": 1})


def test_what_was_saved_is_loaded(tmp_path):
    save_checkpoint(tmp_path, state(4), keep=2)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert (loaded.step, loaded.optim, loaded.config) == (4, {"optimizer": {"step": 4}}, {"seed": 1})
    assert loaded.weights["weight"].tolist() == [4.0] * 3


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@attempt("bit of a checkpoint flipped", "named in the log, the one before is taken")
def test_a_flipped_bit_makes_the_loader_take_the_checkpoint_before(tmp_path, caplog):
    save_checkpoint(tmp_path, state(1), keep=2)
    damaged = save_checkpoint(tmp_path, state(2), keep=2) / "weights.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 1
    assert "step-00000002" in caplog.text


def test_a_checkpoint_that_was_being_written_is_never_loaded_and_is_cleaned_up(tmp_path):
    leftover = tmp_path / "step-00000009.partial"
    leftover.mkdir()
    assert load_latest(tmp_path) is None
    save_checkpoint(tmp_path, state(1), keep=2)
    assert not leftover.exists()


def test_no_checkpoint_is_none(tmp_path):
    assert load_latest(tmp_path / "missing") is None


def test_a_damaged_checkpoint_is_written_again_when_the_run_is_there_again(tmp_path):
    save_checkpoint(tmp_path, state(1), keep=2)
    weights = save_checkpoint(tmp_path, state(2), keep=2) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    save_checkpoint(tmp_path, state(2), keep=2)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 2


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes: writing fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [200, 1200])
@attempt("disk full while a checkpoint is written", "one clear error, the one before whole, nothing left")
def test_a_full_disk_leaves_the_checkpoint_before_whole_and_nothing_of_the_new_one(tmp_path, size):
    save_checkpoint(tmp_path, state(1), keep=2)
    with (
        disk_of(size),
        pytest.raises(ValueError, match=r"update 2 cannot be written .* there: step-00000001\. Make room"),
    ):
        save_checkpoint(tmp_path, state(2), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    save_checkpoint(tmp_path, state(2), keep=2)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 2
