"""A run folder and its copy in storage that fails, hangs and comes back; the storage is real, its faults are made."""

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from dpo_core import mirror as module
from dpo_core.checkpoint import TrainingState, is_intact, load_latest, save_checkpoint
from dpo_core.mirror import Mirror
from dpo_core.recipe import TrainSection
from tests.fault_table import attempt
from tests.train_runs import make_config, rows, run, same

STEPS = 4


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits a hundredth of what it would."""
    for name in ("FIRST_WAIT_S", "LONGEST_WAIT_S", "START_LIMIT_S", "END_LIMIT_S"):
        monkeypatch.setattr(module, name, getattr(module, name) / 100)


def config_of(model: Path, pairs: Path, place: Path | None, **loop: Any) -> TrainSection:
    given = {"max_steps": STEPS, "mirror": None if place is None else f"file://{place}"}
    return make_config(model, pairs, loop=given | loop)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tiny_sd, tiny_pairs):
    """A run that was never stopped, without a mirror."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, run(config_of(tiny_sd, tiny_pairs, None), folder)


def kept(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "checkpoints").iterdir())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoint(folder: Path, step: int, keep: int = 2) -> Path:
    weights = {"w": torch.full((64,), float(step))}
    return save_checkpoint(folder / "checkpoints", TrainingState(step, weights, {}, {}), keep)


def test_a_machine_with_an_empty_run_folder_goes_on_to_the_bits_of_a_run_never_stopped(
    tiny_sd, tiny_pairs, tmp_path, straight
):
    run(config_of(tiny_sd, tiny_pairs, tmp_path / "far", max_steps=2), tmp_path / "one machine")
    shutil.rmtree(tmp_path / "one machine")
    weights = run(config_of(tiny_sd, tiny_pairs, tmp_path / "far"), tmp_path / "another")
    assert same(weights, straight[1])
    assert rows(tmp_path / "another") == rows(straight[0])
    assert (tmp_path / "another" / "ledger.jsonl").read_text() == (straight[0] / "ledger.jsonl").read_text()


def test_the_mirror_holds_what_the_run_folder_holds_when_training_ends(tiny_sd, tiny_pairs, tmp_path):
    run(config_of(tiny_sd, tiny_pairs, tmp_path / "far"), tmp_path / "near")
    far, near = tmp_path / "far" / "test", tmp_path / "near"
    assert kept(far) == kept(near) == ["step-00000003", "step-00000004"]
    assert files(far) == files(near)
    assert any(name.startswith("model/unet/") for name in files(far))


@attempt("storage of the run's copy gone in the middle", "no step waits, everything is there in the end, same bits")
@pytest.mark.usefixtures("impatient")
def test_storage_that_is_gone_for_a_while_holds_up_no_step_and_has_everything_in_the_end(
    tiny_sd, tiny_pairs, tmp_path, straight, caplog, monkeypatch
):
    monkeypatch.setattr(module, "END_LIMIT_S", 60.0)
    far = tmp_path / "far"
    near = tmp_path / "near"

    def goes_and_comes_back() -> None:
        while not (near / "checkpoints" / "step-00000001").exists():
            time.sleep(0.01)
        shutil.rmtree(far, ignore_errors=True)
        far.write_text("where the folder was is now a file")
        while not (near / "model").exists():  # every step was made meanwhile
            time.sleep(0.01)
        far.unlink()

    outage = threading.Thread(target=goes_and_comes_back)
    outage.start()
    with caplog.at_level(logging.WARNING, "dpo_core.mirror"):
        weights = run(config_of(tiny_sd, tiny_pairs, far), near)
    outage.join()
    assert same(weights, straight[1])
    assert files(far / "test") == files(near)
    assert sum("tried again" in message for message in caplog.messages) == 1
    assert any("has everything again" in message for message in caplog.messages)


@pytest.mark.usefixtures("impatient")
def test_storage_that_hangs_holds_up_no_step_and_what_is_missing_is_named_at_the_end(
    tiny_sd, tiny_pairs, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(module, "END_LIMIT_S", 0.3)
    answers = threading.Event()
    put = LocalFileSystem.put_file

    def hang(*words: Any, **named: Any) -> Any:
        answers.wait(60)
        return put(*words, **named)

    monkeypatch.setattr(LocalFileSystem, "put_file", hang)
    run(config_of(tiny_sd, tiny_pairs, tmp_path / "far"), tmp_path / "near")
    assert len(rows(tmp_path / "near")) == STEPS
    told = next(message for message in caplog.messages if "after 0.3 s" in message)
    answers.set()
    for name in ("metrics.jsonl", "checkpoints/step-00000004", "model"):
        assert name in told


@pytest.mark.parametrize("fault_at", range(12))
@attempt("machine lost during an upload", "the newest complete checkpoint is fetched, no part of one")
def test_whatever_upload_is_the_last_one_the_newest_complete_checkpoint_is_fetched(tmp_path, monkeypatch, fault_at):
    near, far = tmp_path / "near", tmp_path / "far"
    put, count = LocalFileSystem.put_file, iter(range(1000))

    def die(self: Any, local: Any, remote: Any, **named: Any) -> Any:
        if next(count) >= fault_at:
            Path(remote).parent.mkdir(parents=True, exist_ok=True)
            Path(remote).write_bytes(Path(local).read_bytes()[:7])  # a torn file, and nothing after it
            raise OSError("the machine is gone")
        return put(self, local, remote, **named)

    complete: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "put_file", die)
        for step in (1, 2, 3):
            checkpoint(near, step)
            mirror = Mirror(f"file://{far}", near, 2)
            try:
                mirror._send()
                complete.append(step)
            except OSError:
                break
    Mirror(f"file://{far}", tmp_path / "another", 2).fetch()
    found = load_latest(tmp_path / "another" / "checkpoints")
    assert (found.step if found else None) == (complete[-1] if complete else None)
    assert not list((tmp_path / "another").rglob("*.partial"))


def test_a_checkpoint_that_the_run_deleted_before_it_was_sent_is_passed_over(tmp_path):
    near, far = tmp_path / "near", tmp_path / "far"
    mirror = Mirror(f"file://{far}", near, 2)
    first = checkpoint(near, 1)
    listed = mirror._items()
    for step in (2, 3):
        checkpoint(near, step)
    assert not first.exists()
    mirror._items = lambda: [*listed, *Mirror(f"file://{far}", near, 2)._items()]  # type: ignore[method-assign]
    mirror._send()
    assert kept(far) == ["step-00000002", "step-00000003"]


def test_a_damaged_copy_is_passed_over_and_sent_anew(tmp_path):
    near, far = tmp_path / "near", tmp_path / "far"
    for step in (1, 2):
        checkpoint(near, step)
    Mirror(f"file://{far}", near, 2)._send()
    damaged = far / "checkpoints" / "step-00000002"
    weights = damaged / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    other = tmp_path / "other"
    Mirror(f"file://{far}", other, 2).fetch()
    assert kept(other) == ["step-00000001"]
    checkpoint(other, 2)
    Mirror(f"file://{far}", other, 2)._send()
    assert is_intact(damaged)


def test_a_newer_checkpoint_in_storage_comes_before_an_older_one_in_the_run_folder(tmp_path):
    near, far, other = tmp_path / "near", tmp_path / "far", tmp_path / "other"
    checkpoint(other, 1)
    checkpoint(near, 1)
    checkpoint(near, 2)
    Mirror(f"file://{far}", near, 2)._send()
    Mirror(f"file://{far}", other, 2).fetch()
    assert kept(other) == ["step-00000001", "step-00000002"]
    checkpoint(other, 3)
    Mirror(f"file://{far}", other, 2).fetch()
    assert kept(other) == ["step-00000002", "step-00000003"]


@pytest.mark.usefixtures("impatient")
def test_a_run_does_not_begin_anew_while_storage_that_may_hold_it_cannot_be_read(tmp_path, caplog):
    (tmp_path / "far").write_text("a file where a folder should be")
    near = tmp_path / "near"
    mirror = Mirror(f"file://{tmp_path}/far", near, 2)
    with pytest.raises(ValueError, match="not known whether this run has begun"):
        mirror.fetch()
    checkpoint(near, 1)
    mirror.fetch()
    assert "going on from step-00000001" in caplog.messages[-1]


def test_telling_the_mirror_takes_no_time_while_it_is_sending(tmp_path, monkeypatch):
    slow = threading.Event()
    monkeypatch.setattr(LocalFileSystem, "put_file", lambda *words, **named: slow.wait(30))
    near = tmp_path / "near"
    checkpoint(near, 1)
    mirror = Mirror(f"file://{tmp_path}/far", near, 2)
    mirror.notify()
    began = time.monotonic()
    for _ in range(100):
        mirror.notify()
    assert time.monotonic() - began < 0.5
    slow.set()
    mirror.finish(5)
