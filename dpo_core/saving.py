"""Checkpoints written beside the updates that follow: a copy in memory first, then a thread and the disk."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_core.checkpoint import TrainingState, save_checkpoint
from dpo_core.context import RunContext

log = logging.getLogger(__name__)
NOTABLE_S = 1.0
"""A wait for the disk that is shorter than this is not told."""


@contextmanager
def checkpoint_writer(
    context: RunContext, keep: int, then: Callable[[], None], *, background: bool, copies: bool
) -> Iterator["CheckpointWriter | None"]:
    """On rank 0 a `CheckpointWriter` that has written everything when the block ends, also by an error of the run.

    Ctrl-C and the like do not wait for it.
    """
    if context.rank != 0:
        yield None
        return
    writer = CheckpointWriter(context.run_dir / "checkpoints", keep, then, background=background, copies=copies)
    try:
        yield writer
    except Exception:
        try:
            writer.wait()
        except ValueError as error:  # the error that ended the run comes first
            log.warning("%s", error)
        raise
    writer.wait()


class CheckpointWriter:
    """Writes checkpoints into ``folder``, one at a time, and calls ``then`` after each.

    A checkpoint that is being written when the process dies is absent, as one that was never begun: the run goes on
    from the one before.
    """

    def __init__(self, folder: Path, keep: int, then: Callable[[], None], *, background: bool, copies: bool) -> None:
        """``copies`` says that what is to be written goes on changing, so that a copy must be made first."""
        self.folder, self.keep, self.then = folder, keep, then
        self.background, self.copies = background, copies
        self._copy = HostCopy()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written beside training."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, state: TrainingState, *, now: bool) -> None:
        """Write ``state``; with ``now`` it is on the disk when this returns.

        The one before must be there first, and is waited for. Raises ValueError, as `save_checkpoint` does, also for
        the one before.
        """
        began = time.monotonic()
        self.wait()
        if (waited := time.monotonic() - began) > NOTABLE_S:
            log.warning("update %d waited %.1f s until the checkpoint before was written", state.step, waited)
        if now or not self.background:
            self._write(state)
            return
        if self.copies:
            state = replace(state, weights=self._copy.of(state.weights, "weights"), optim=self._copy.of(state.optim))
        self._thread = threading.Thread(target=self._work, args=(state,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written. Raises ValueError when what was written could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises ValueError when something could not be written; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self, state: TrainingState) -> None:
        try:
            self._write(state)
        except Exception as error:  # raised in the training thread, which ends the run
            self._error = error

    def _write(self, state: TrainingState) -> None:
        began = time.monotonic()
        save_checkpoint(self.folder, state, self.keep)
        log.info("checkpoint of update %d written in %.1f s", state.step, time.monotonic() - began)
        self.then()


class HostCopy:
    """Copies of tensors in the machine's memory, which is kept for the next copy: getting it anew takes longer than
    filling it."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def of(self, value: Any, name: str = "") -> Any:
        """``value`` with every tensor in its dicts and lists copied; valid until the next call with this ``name``."""
        if isinstance(value, Tensor):
            kept = self._kept.get(name)
            if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
                kept = self._kept[name] = torch.empty(value.shape, dtype=value.dtype)
            return kept.copy_(value.detach())
        if isinstance(value, dict):
            return {key: self.of(inner, f"{name}/{key}") for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.of(inner, f"{name}/{index}") for index, inner in enumerate(value))
        return value
