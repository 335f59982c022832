"""The model of a run, loaded once to judge its checkpoints one after the other."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpo_core.checkpoint import load_checkpoint
from dpo_core.data.plan import Plan
from dpo_core.data.texts import load_family
from dpo_core.export import export_model
from dpo_core.families import DTYPES, weights_hash
from dpo_core.policy import Policy
from dpo_core.recipe import TrainSection
from ray_jobs.training.job import TrainJob
from ray_jobs.validation.measure import measure
from ray_jobs.validation.pairs import HeldOut, encoded, held_out_data, read_pairs


def setup_of(job: TrainJob, held_out: HeldOut | None) -> str:
    """Names everything that the numbers and images depend on besides the weights: only equal setups are compared."""
    free = {"every", "batch_size", "cpus", "gpus", "keep_best"}
    facts = {
        "validation": job.validation.model_dump(mode="json", exclude=free),
        "pair_ids": held_out.pair_ids if held_out is not None else [],
        "precision": job.loop.precision,
        "resolution": job.data.resolution,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


class Bench:
    """Policy, reference and held-out pairs; checkpoints are put in one at a time."""

    def __init__(self, job: TrainJob, held_out: HeldOut | None, device: torch.device) -> None:
        self.job, self.device = job, device
        precision, policy = job.loop.precision, job.policy.model_copy(update={"gradient_checkpointing": False})
        plan = data = None
        if held_out is not None:
            data = held_out_data(job.data, job.validation)
            plan = Plan.build(data)
            family = load_family(job.family, device, precision, plan, data, encodes=policy.text_encoder)
        else:
            family = job.family.load(device, precision)
        self.family: Any = family
        base_hash = weights_hash([family.denoiser])
        self.policy = Policy(policy, family, device, precision, job.loop.seed, needs_reference=held_out is not None)
        self.config = job.model_dump(mode="json", include=set(TrainSection.model_fields))
        self.facts: dict[str, Any] = {"base_weights_sha256": base_hash}
        if held_out is not None:
            self.facts |= held_out.training | {"held_out": job.validation.paths}
        self.pairs = len(held_out.pair_ids) if held_out is not None else 0
        self.batches = []
        if plan is not None and data is not None and held_out is not None:
            self.batches = [encoded(b, family, device) for b in read_pairs(plan, data, job.validation, held_out)]

    def put_in(self, checkpoint: Path) -> None:
        """Take the weights that an export of ``checkpoint`` would have: the average, where the run keeps one."""
        saved = load_checkpoint(checkpoint, mapped=True)
        self.config = saved.config
        averaged = self.job.optim.ema_decay is not None
        self.policy.load_state(saved.optim["learner"]["ema"]["average"] if averaged else saved.weights)

    def measure(self, progress: Callable[[int], None]) -> dict[str, float]:
        """The numbers of the weights that are in; empty without held-out pairs."""
        if not self.batches:
            return {}
        section = self.job.validation
        return measure(self.policy, self.batches, seed=section.seed, levels=section.levels, progress=progress)

    def export(self, folder: Path, step: int, facts: dict[str, Any]) -> None:
        """Write the model with the weights that are in."""
        name, dtype = self.job.run.name, DTYPES[self.job.loop.export_dtype]
        facts = {"steps": step, **self.facts, **facts}
        export_model(folder, self.family, name=name, config=self.config, facts=facts, dtype=dtype)
