"""Whether a run may go on with the config that is given now."""

import json
from pathlib import Path
from typing import Any

from dpo_core.checkpoint import MANIFEST
from dpo_core.data.plan import Plan
from dpo_core.recipe import TrainSection

MAY_CHANGE = {
    "data.paths",
    "data.max_quarantined_share",
    "loop.background_checkpoints",
    "loop.checkpoint_every",
    "loop.chosen_error_alarm",
    "loop.export_dtype",
    "loop.keep_checkpoints",
    "loop.log_every",
    "loop.max_skipped_in_a_row",
    "loop.mirror",
    "loop.worker_batch_size",
    "policy.sharding",
}
"""Fields that a resumed run may have changed: they do not touch the mathematics (the data has a hash of its own)."""


def run_record(config: TrainSection, plan: Plan) -> dict[str, Any]:
    """What a checkpoint keeps of the run that made it: its config, and a hash of its data."""
    return config.model_dump(mode="json", include=set(TrainSection.model_fields)) | {"data_sha256": plan.fingerprint}


def refuse_to_go_on(checkpoints: Path, config: TrainSection, plan: Plan) -> None:
    """`refuse_changed_maths` by the newest checkpoint, before anything is loaded, started or written."""
    for path in sorted(checkpoints.glob("step-????????"), reverse=True):
        try:
            saved = json.loads((path / MANIFEST).read_text())["config"]
        except (OSError, ValueError, KeyError):  # damaged: the run will pass it over
            continue
        refuse_changed_maths(saved, run_record(config, plan))
        return


def refuse_changed_maths(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """ValueError when the run in this folder was started with another config, or other data, than now."""
    was, given = flatten(saved), flatten(now)
    free = MAY_CHANGE | ({"loop.max_steps"} if given.get("optim.schedule", "").startswith("constant") else set())
    if was.get("loop.spike_factor") is None and given.get("loop.spike_factor") is None:
        free = free | {"loop.spike_window"}
    changed = [key for key in sorted(was.keys() | given.keys()) if was.get(key) != given.get(key) and key not in free]
    if changed:
        listed = "; ".join(f"{key} was {was.get(key)!r}, now {given.get(key)!r}" for key in changed)
        raise ValueError(
            f"this run cannot go on with a changed config: {listed}. Give it another run.name, or change only "
            f"{', '.join(sorted(free))}."
        )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
