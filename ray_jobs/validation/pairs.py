"""The held-out pairs: which ones, and reading them once."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpo_core import randomness
from dpo_core.data.batches import PairBatch
from dpo_core.data.loader import BatchLoader
from dpo_core.data.order import NEAR_DONORS
from dpo_core.data.plan import Plan, Slot
from dpo_core.data.section import DataSection
from dpo_core.families.base import LoadedFamily
from ray_jobs.record.journal import replace_json
from ray_jobs.validation.section import ValidationSection

FILE = "validation/pairs.json"


@dataclass(frozen=True)
class HeldOut:
    """Pairs that are measured, in their order."""

    pair_ids: list[str]
    trained_on: int
    """Pairs of the held-out data that were left out because the run trains on them."""
    training: dict[str, Any]
    """What the training says of its own data, for the provenance of a model that is kept."""

    @classmethod
    def choose(cls, plan: Plan, trained: Plan, section: ValidationSection) -> "HeldOut":
        """The first ``section.pairs`` pairs by a hash of seed and id; ValueError when all of them are trained on."""
        ids: list[str] = plan.pair_ids.to_pylist()
        known, files = set(trained.pair_ids.to_pylist()), {group.file for group in trained.groups}
        one_set = plan.fingerprint == trained.fingerprint or plan.cache is not None
        shared = {i for i in range(plan.rows) if _is_trained_on(plan.slot(i, 0), known, files, one_set)}
        if len(shared) == plan.rows:
            raise ValueError(
                f"all {plan.rows} pairs of validation.paths are trained on; give pairs that data.paths does not hold"
            )
        kept = [
            (randomness.key(section.seed, 0, ids[i], "held out"), ids[i]) for i in range(len(ids)) if i not in shared
        ]
        facts = {"data_sha256": trained.fingerprint, "pairs": trained.rows, "ties_left_out": trained.ties}
        return cls([pair_id for _, pair_id in sorted(kept)[: section.pairs]], len(shared), facts)

    @classmethod
    def load(cls, run_dir: Path) -> "HeldOut":
        return cls(**json.loads((run_dir / FILE).read_text(encoding="utf-8")))

    def save(self, run_dir: Path) -> None:
        (run_dir / FILE).parent.mkdir(parents=True, exist_ok=True)
        replace_json(run_dir / FILE, asdict(self))

    def slots(self, plan: Plan, *, donors: bool) -> list[Slot]:
        """Where the pairs lie; with ``donors`` (data.rejected=other), the pairs after each give it an image."""
        places = {pair_id: i for i, pair_id in enumerate(plan.pair_ids.to_pylist())}
        rows = np.array([places[pair_id] for pair_id in self.pair_ids], dtype=np.int64)
        slots = [plan.slot(int(row), 0) for row in rows]
        if not donors:
            return slots
        return [
            replace(slot, donors=plan.where(np.roll(rows, -i - 1)[: min(NEAR_DONORS, len(rows) - 1)]))
            for i, slot in enumerate(slots)
        ]


def _is_trained_on(slot: Slot, known: set[str], files: set[str], one_set: bool) -> bool:
    """By file or by id; an id that only counts the rows of a file says nothing of another set of files."""
    return slot.group.file in files or (slot.pair_id in known and (one_set or "#" not in slot.pair_id))


def held_out_data(data: DataSection, section: ValidationSection) -> DataSection:
    """``data`` for the held-out pairs: nothing at random, every caption kept."""
    fixed = {
        "paths": section.paths, "crop": "center", "flip": "none", "quality": False,
        "caption_dropout": 0.0, "prompt_image_dropout": 0.0, "joint_dropout": 0.0,
    }  # fmt: skip
    return DataSection.model_validate(data.model_dump() | fixed)


def read_pairs(plan: Plan, data: DataSection, section: ValidationSection, held_out: HeldOut) -> Iterator[PairBatch]:
    """The pairs in batches; one that cannot be read has weight 0."""
    loader = BatchLoader(data, section.seed, plan.cache, plan.quality_shape, cache_bytes=256 << 20)
    slots = held_out.slots(plan, donors=data.rejected == "other")
    for first in range(0, len(slots), section.batch_size):
        yield loader.load(slots[first : first + section.batch_size])


@torch.no_grad()
def encoded(batch: PairBatch, family: LoadedFamily, device: torch.device) -> PairBatch:
    """The same batch with the autoencoder's posterior in place of pixels: it is measured again and again."""
    if batch.pixels is None:
        return batch
    mean, std = family.encode_images(batch.pixels.to(device).transpose(0, 1).flatten(0, 1))
    both = [part.float().cpu().unflatten(0, (2, len(batch))).transpose(0, 1) for part in (mean, std)]
    return replace(batch, pixels=None, posterior=torch.stack(both, dim=2))
