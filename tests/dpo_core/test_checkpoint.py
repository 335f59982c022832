import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from dpo_core import checkpoint
from dpo_core.checkpoint import TrainingState, load_agreed, load_latest, save_checkpoint
from tests.fault_table import attempt
from tests.train_runs import Ranks, ThreadContext


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


def on_two_ranks(*folders: Path) -> list[TrainingState | ValueError | None]:
    """What each rank loads, in a folder of its own if there are two."""
    ranks = Ranks(2)

    def load(rank: int) -> TrainingState | ValueError | None:
        try:
            return load_agreed(folders[rank % len(folders)], ThreadContext(ranks, rank, folders[0]))
        except ValueError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(load, range(2)))


def test_every_rank_goes_on_from_the_checkpoint_that_rank_0_found_intact_and_only_rank_0_verifies(tmp_path):
    assert on_two_ranks(tmp_path) == [None, None]
    save_checkpoint(tmp_path, state(1), keep=2)
    damaged = save_checkpoint(tmp_path, state(2), keep=2) / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x00")
    with patch.object(checkpoint, "sha256", wraps=checkpoint.sha256) as hashed:
        loaded = on_two_ranks(tmp_path)
    assert [saved.step for saved in loaded if isinstance(saved, TrainingState)] == [1, 1]
    names = [call.args[0] for call in hashed.call_args_list]
    assert len(names) == len(set(names)) == 4


def test_a_rank_that_does_not_see_the_checkpoint_says_so_instead_of_starting_anew(tmp_path):
    save_checkpoint(tmp_path / "one", state(1), keep=2)
    loaded, told = on_two_ranks(tmp_path / "one", tmp_path / "other")
    assert isinstance(loaded, TrainingState)
    assert "rank 1 does not see" in str(told)
    assert "every node sees" in str(told)
