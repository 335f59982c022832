"""Replays a recorded training case with our own step, update, clipping, optimiser and schedule."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from dpo_core import update as update_module
from dpo_core.context import LocalContext
from dpo_core.data.batches import PairBatch
from dpo_core.data.loader import BatchLoader
from dpo_core.data.plan import DataSection, Plan
from dpo_core.families.base import Conditioning
from dpo_core.learner import Learner
from dpo_core.metrics import RunningMeans
from dpo_core.objectives import LossOutput, PairErrors
from dpo_core.objectives.base import per_pair
from dpo_core.policy import Policy
from dpo_core.recipe import TrainSection
from dpo_core.step import Denoising, pair_errors
from dpo_core.update import Update
from tests.recorded import CASES

OBJECTIVES = {"sudo_sd": "sudo", "dcpo_sd": "dcpo", "salesforce_sft_sd": "sft", "diffusers_lora_sd_hinge": "hinge"}


def model_folder(name: str, tmp: Path) -> Path:
    """A pipeline folder; ``sd_v`` is ``sd`` with another scheduler, so only that is stored."""
    folder = CASES / "models" / name
    if (folder / "unet").exists():
        return folder
    whole = tmp / name
    shutil.copytree(CASES / "models" / name.partition("_")[0], whole)
    shutil.copytree(folder, whole, dirs_exist_ok=True)
    return whole


def load_rows(section: DataSection, tmp: Path) -> dict[int, PairBatch]:
    """The recorded data set as our loader reads it: every usable row, alone in a batch.

    It has the column label_1 of Pick-a-Pic added, which only our schema asks for.
    """
    table = pq.read_table(CASES / "pickapic_tiny" / "train.parquet")
    file = tmp / "pickapic_tiny.parquet"
    label_1 = pa.array([1 - label for label in table["label_0"].to_pylist()])
    pq.write_table(table.append_column("label_1", label_1), file)
    section = section.model_copy(update={"paths": [str(file)], "rejected": "given"})
    plan = Plan.build(section)
    loader = BatchLoader(section, 0, None)
    slots = [plan.slot(index, 0) for index in range(plan.rows)]
    return {slot.group.first_row + slot.row: loader.load([slot]) for slot in slots}


@dataclass
class Seen:
    """What our step made of one micro-batch."""

    denoising: Denoising
    prediction: Tensor
    reference: Tensor | None
    errors: PairErrors
    output: LossOutput


class Case:
    """A recorded case, the config that says the same in our words, and a policy with its start weights."""

    def __init__(self, name: str, tmp: Path, precision: str = "fp32") -> None:
        self.name = name
        self.meta: dict[str, Any] = json.loads((CASES / name / "meta.json").read_text())
        self.tensors = load_file(CASES / name / "steps.safetensors")
        self.tolerance: dict[str, float] = self.meta["tolerance"]["advice"]
        self.updates: int = self.meta["n_optimizer_steps"]
        self.config = self._config(tmp, precision)
        self.context = LocalContext(tmp, "cpu")
        loop, family = self.config.loop, self.config.family.load(self.context.device, self.config.loop.precision)
        self.policy = Policy(
            self.config.policy, family, self.context.device, loop.precision, 0, self.config.objective.needs_reference
        )
        start = CASES / name / "init_trainable.safetensors"
        if start.exists():
            self.policy.load_state(load_file(start))

    def _config(self, tmp: Path, precision: str) -> TrainSection:
        meta, hyper, lora = self.meta, self.meta["hyper_parameters"], self.meta["lora"]
        objective: dict[str, Any] = {"kind": OBJECTIVES.get(self.name, "dpo")}
        if meta["loss"]["beta"] is not None:
            # The paper's factor one half is in our beta.
            objective["beta"] = meta["loss"]["beta"] * -2 * meta["loss"]["factor"]
        pairs = hyper["train_batch_size"]
        return TrainSection.model_validate(
            {
                "family": {
                    "kind": "sdxl" if meta["model"] == "sdxl" else "sd15",
                    "model": str(model_folder(meta["model"], tmp)),
                },
                "objective": objective,
                "policy": {"method": "lora", "rank": lora["rank"], "alpha": lora["alpha"]} if lora else {},
                "data": {
                    "paths": [str(CASES / "pickapic_tiny")],
                    "resolution": hyper["resolution"],
                    "captions": "per_image" if self.name == "dcpo_sd" else "shared",
                    "rejected": "other" if self.name == "sudo_sd" else "given",
                },
                "optim": {
                    "name": meta["optimizer"]["name"].lower(),
                    "lr": meta["optimizer"]["lr"],
                    "weight_decay": meta["optimizer"]["weight_decay"],
                    "warmup_steps": hyper["lr_warmup_steps"],
                    "max_grad_norm": meta["max_grad_norm"],
                },
                "loop": {
                    "precision": precision,
                    "max_steps": hyper["max_train_steps"],
                    "global_batch_size": pairs * meta["accumulation"],
                    "worker_batch_size": pairs,
                },
            }
        )

    def micro(self, index: int) -> dict[str, Tensor]:
        """The recorded tensors of a micro-step, with the halves that a pair shares."""
        found = self._named(f"m{index:02}.")
        rows = len(found["latents"])
        return {
            name: tensor.repeat(2, *[1] * (tensor.ndim - 1))
            if name in ("noise", "timesteps", "encoder_hidden_states", "pooled_prompt_embeds") and len(tensor) < rows
            else tensor
            for name, tensor in found.items()
        }

    def update(self, index: int) -> dict[str, Tensor]:
        """The recorded outcome of an update."""
        return self._named(f"o{index:02}.")

    def _named(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def micro_steps(self, update: int) -> list[int]:
        return [step["micro"] for step in self.meta["micro_steps"] if step["opt"] == update]

    def conditioning(self, recorded: dict[str, Tensor]) -> Conditioning:
        names = {"text": "encoder_hidden_states", "text_embeds": "pooled_prompt_embeds", "time_ids": "add_time_ids"}
        return {ours: recorded[theirs] for ours, theirs in names.items() if theirs in recorded}

    def denoising(self, index: int) -> Denoising:
        """A recorded micro-batch, noised by us."""
        recorded, noising = self.micro(index), self.policy.family.noising
        latents, noise, timesteps = recorded["latents"], recorded["noise"], recorded["timesteps"]
        conditioning = self.conditioning(recorded)
        return Denoising(
            noisy=noising.add_noise(latents, noise, timesteps),
            target=noising.target(latents, noise, timesteps),
            timesteps=timesteps,
            conditioning=conditioning,
            reference_conditioning=conditioning,
            pairs=len(recorded["rows"]),
        )

    @torch.no_grad()
    def look(self, index: int) -> Seen:
        """Predictions, errors, margins and losses of a micro-batch."""
        denoising, objective = self.denoising(index), self.config.objective
        noisy, timesteps, conditioning = denoising.noisy, denoising.timesteps, denoising.conditioning
        reference = self.policy.predict_reference(noisy, timesteps, conditioning) if objective.needs_reference else None
        errors = pair_errors(self.policy, objective, denoising)
        return Seen(
            denoising, self.policy.predict(noisy, timesteps, conditioning), reference, errors, objective(errors)
        )

    def run(self) -> Iterator[tuple[int, list[tuple[int, Seen]], float, Tensor, dict[str, Tensor]]]:
        """Of each update: its number, what was seen before it, its learning rate, the norm of its gradient before
        clipping, and the parameters after it, in the order of the recording."""
        learner = Learner(self.config, self.policy, self.context)
        update = Update(self.config, self.policy, self.context, learner.scaler, RunningMeans())
        for number in range(self.updates):
            micro_steps = self.micro_steps(number)
            seen = [(index, self.look(index)) for index in micro_steps]
            denoisings = iter([self.denoising(index) for index in micro_steps])
            with patch.object(update_module, "prepare_denoising", lambda *_, given=denoisings: next(given)):
                update.accumulate([self._batch(index) for index in micro_steps])
            lr = learner.schedule.get_last_lr()[0]
            norm = learner.update()
            named = self.policy.named_parameters()
            yield number, seen, lr, norm, {name: named[name].detach() for name in self.meta["trainable"]}

    def _batch(self, index: int) -> PairBatch:
        rows = [str(row) for row in self.micro(index)["rows"].tolist()]
        empty = [""] * len(rows)
        return PairBatch(rows, [0] * len(rows), torch.ones(len(rows)), empty, empty)


def errors_of_images(errors: PairErrors, of: str) -> Tensor:
    """The error of each image, chosen first, of the ``policy`` or the ``reference``."""
    sides = [getattr(errors, f"{of}_chosen"), getattr(errors, f"{of}_rejected")]
    return torch.cat([per_pair(side) for side in sides if side is not None])
