"""Resume state: trainable weights, optimiser, schedule and the position in the data, complete or absent."""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpo_core.context import RunContext

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


@dataclass
class TrainingState:
    """All that a run needs to go on exactly where it stood. Randomness is a function, so it is not in here."""

    step: int
    """Updates done; also the position in the data."""
    weights: dict[str, Tensor]
    """Trainable weights, float32."""
    optim: dict[str, Any]
    """State of optimiser, schedule and gradient scaler."""
    config: dict[str, Any]
    """The config that the run was started with."""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(folder: Path, state: TrainingState, keep: int) -> Path:
    """Write ``folder/step-N`` aside, flush it to disk, then rename it; keep only the newest ``keep``.

    Raises ValueError when it cannot be written, such as on a full disk; nothing of it is left, and those before are
    whole.
    """
    final = folder / f"step-{state.step:08d}"
    if final.exists():
        if is_intact(final):
            return final
        shutil.rmtree(final)  # the run went on from the one before, and is here again
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.partial"):
        shutil.rmtree(stale)
    partial = folder / f"{final.name}.partial"
    try:
        partial.mkdir()
        write_checkpoint(partial, state)
        partial.rename(final)
    except Exception as error:  # safetensors and torch have exceptions of their own for a full disk
        free = shutil.disk_usage(folder).free / 1e6
        shutil.rmtree(partial, ignore_errors=True)
        kept = ", ".join(path.name for path in sorted(folder.glob("step-????????"))) or "none"
        raise ValueError(
            f"the checkpoint of update {state.step} cannot be written to {folder}, where {free:,.1f} MB were left: "
            f"{error}. Whole checkpoints there: {kept}. Make room, or mend the storage, and give the same command "
            "again."
        ) from error
    flush(folder)
    # Newer ones are damaged, or this run would have gone on from them.
    for old in sorted(path for path in folder.glob("step-????????") if path.name <= final.name)[:-keep]:
        shutil.rmtree(old)
    return final


def write_checkpoint(partial: Path, state: TrainingState) -> None:
    """The files of a checkpoint, flushed to disk."""
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in state.weights.items()}, partial / "weights.safetensors"
    )
    torch.save(state.optim, partial / "optim.pt")
    manifest = {
        "step": state.step,
        "config": state.config,
        "sha256": {path.name: sha256(path) for path in sorted(partial.iterdir())},
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*partial.iterdir(), partial):
        flush(path)


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_latest(folder: Path) -> TrainingState | None:
    """The newest intact checkpoint, or None. A damaged one is named in the log and the one before it is taken."""
    path = newest_intact(folder)
    return read_checkpoint(path) if path is not None else None


def load_agreed(folder: Path, context: RunContext) -> TrainingState | None:
    """`load_latest` on every rank alike: rank 0 looks for it and verifies it, the others read what it has found.

    Raises ValueError on a rank that does not see it.
    """
    found = newest_intact(folder) if context.rank == 0 else None
    name = context.gather(None if found is None else found.name)[0]
    if name is None:
        return None
    try:
        return read_checkpoint(folder / name)
    except FileNotFoundError as error:
        raise ValueError(
            f"rank {context.rank} does not see {folder / name}, from which rank 0 goes on; the run folder must be one "
            "that every node sees under the same path"
        ) from error


def newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest; damaged ones are named in the log."""
    for path in sorted(folder.glob("step-????????"), reverse=True):
        try:
            verify(path)
        except (OSError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is damaged and is passed over: %s", path, error)
        else:
            return path
    return None


def is_intact(path: Path) -> bool:
    """Whether every file of a checkpoint matches its manifest."""
    try:
        verify(path)
    except (OSError, ValueError, KeyError):
        return False
    return True


def load_checkpoint(path: Path, *, mapped: bool = False) -> TrainingState:
    """Read one checkpoint; ValueError when a file does not match its manifest. ``mapped`` as in `read_checkpoint`."""
    verify(path)
    return read_checkpoint(path, mapped=mapped)


def verify(path: Path) -> None:
    """Raises ValueError, KeyError or OSError where a checkpoint is not what its manifest says."""
    for name, expected in json.loads((path / MANIFEST).read_text())["sha256"].items():
        if sha256(path / name) != expected:
            raise ValueError(f"{name} does not match the sha256 in {MANIFEST}")


def read_checkpoint(path: Path, *, mapped: bool = False) -> TrainingState:
    """Read one checkpoint that is known to be intact.

    ``mapped`` leaves the optimiser's state, twice the size of the weights, on the disk until it is looked at.
    """
    manifest = json.loads((path / MANIFEST).read_text())
    return TrainingState(
        step=manifest["step"],
        weights=load_file(path / "weights.safetensors"),
        optim=torch.load(path / "optim.pt", map_location="cpu", weights_only=True, mmap=mapped),
        config=manifest["config"],
    )
