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
        shutil.rmtree(partial, ignore_errors=True)
        kept = ", ".join(path.name for path in sorted(folder.glob("step-????????"))) or "none"
        raise ValueError(
            f"the checkpoint of update {state.step} cannot be written to {folder}: {error}. Whole checkpoints there: "
            f"{kept}. Make room, or mend the storage, and give the same command again."
        ) from error
    flush(folder)
    for old in sorted(folder.glob("step-????????"))[:-keep]:
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
    for path in sorted(folder.glob("step-????????"), reverse=True):
        try:
            return load_checkpoint(path)
        except (OSError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is damaged and is passed over: %s", path, error)
    return None


def is_intact(path: Path) -> bool:
    """Whether every file of a checkpoint matches its manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        return all(sha256(path / name) == expected for name, expected in manifest["sha256"].items())
    except (OSError, ValueError, KeyError):
        return False


def load_checkpoint(path: Path) -> TrainingState:
    """Read one checkpoint; ValueError when a file does not match its manifest."""
    manifest = json.loads((path / MANIFEST).read_text())
    for name, expected in manifest["sha256"].items():
        if sha256(path / name) != expected:
            raise ValueError(f"{name} does not match the sha256 in {MANIFEST}")
    return TrainingState(
        step=manifest["step"],
        weights=load_file(path / "weights.safetensors"),
        optim=torch.load(path / "optim.pt", map_location="cpu", weights_only=True),
        config=manifest["config"],
    )
