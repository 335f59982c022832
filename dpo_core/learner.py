"""From a gradient to new weights: scaler, clipping, optimiser, schedule and average, and what they need to go on."""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dpo_core.context import RunContext
from dpo_core.ema import EMA
from dpo_core.optim import clip, make_optimizer, make_schedule
from dpo_core.policy import Policy
from dpo_core.recipe import TrainSection
from dpo_core.sharding import Sharding
from dpo_core.spikes import SpikeGuard

log = logging.getLogger(__name__)


class Learner:
    """Turns the gradient that lies in the parameters into an update, the same on every rank."""

    def __init__(self, config: TrainSection, policy: Policy, context: RunContext) -> None:
        self.policy = policy
        self.max_grad_norm = config.optim.max_grad_norm
        self.parameters = policy.parameters()
        self.optimizer = make_optimizer(config.optim, self.parameters, config.loop.global_batch_size)
        self.schedule = make_schedule(config.optim, self.optimizer, config.loop.max_steps)
        half = config.loop.precision == "fp16"
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=half)  # pyright: ignore[reportPrivateImportUsage]
        # Only rank 0 writes checkpoints and the model, so only it needs an average that is whole.
        decay = config.optim.ema_decay if context.rank == 0 or policy.sharding is not None else None
        self.ema = EMA(decay, policy.named_parameters()) if decay is not None else None
        loop = config.loop
        self.spikes = SpikeGuard(loop.spike_factor, loop.spike_window) if loop.spike_factor is not None else None
        self.spiked = False
        """Whether the last update was left out as a spike."""
        self.skipped = 0
        """Updates so far that were left out because their gradient was not finite, or a spike."""
        self.skipped_in_a_row = 0

    def update(self) -> torch.Tensor:
        """One update, or none where the gradient is not finite or a spike; the gradient's norm before clipping.

        The gradient is the sum over all ranks, so every rank skips alike. In half precision the first updates are
        often skipped, until the scaler has found a scale that does not overflow.
        """
        sharding = self.policy.sharding
        if sharding is not None and self.scaler.is_enabled():
            sharding.share_overflow(self.policy.named_parameters())
        self.scaler.unscale_(self.optimizer)
        norm = clip(
            self.parameters,
            self.max_grad_norm,
            None if sharding is None else sharding.norm(self.policy.named_parameters()),
        )
        finite = bool(norm.isfinite())
        self.spiked = finite and self.spikes is not None and self.spikes.judge(norm.item())
        if not self.spiked and (self.scaler.is_enabled() or finite):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        left_out = self.spiked or not finite
        self.skipped += left_out
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if left_out else 0
        return norm

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the policy's weights are those to be exported."""
        return self.ema.swapped() if self.ema is not None else nullcontext()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the weights; where those are shared out, for rank 0 alone."""
        parts: dict[str, Any] = {
            "optimizer": self._optimizer_state(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": [self.skipped, self.skipped_in_a_row],
        }
        if self.spikes is not None:
            parts["spikes"] = self.spikes.state()
        return parts | ({"ema": self._whole_average(self.ema)} if self.ema is not None else {})

    def _optimizer_state(self) -> dict[str, Any]:
        state, sharding = self.optimizer.state_dict(), self.policy.sharding
        if sharding is None:
            return state
        names = list(self.policy.named_parameters())
        kinds = sorted({kind for values in state["state"].values() for kind in values})
        whole: dict[int, dict[str, Tensor]] = {index: {} for index in state["state"]}
        for kind in kinds:
            of_kind = {names[index]: values[kind] for index, values in state["state"].items() if kind in values}
            for name, tensor in sharding.gather(of_kind).items():
                whole[names.index(name)][kind] = tensor
        return state | {"state": whole}

    def _whole_average(self, ema: EMA) -> dict[str, Any]:
        state, sharding = ema.state(), self.policy.sharding
        return state if sharding is None else state | {"average": sharding.gather(state["average"])}

    def load_state(self, state: dict[str, Any]) -> None:
        sharding = self.policy.sharding
        if sharding is not None:
            state = state | {"optimizer": self._own_part(state["optimizer"], sharding)}
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.skipped, self.skipped_in_a_row = state["skipped"]
        if self.spikes is not None:
            self.spikes.load_state(state["spikes"])
        if self.ema is not None:
            average = state["ema"]["average"]
            if sharding is not None:
                average = {name: sharding.part(name, tensor) for name, tensor in average.items()}
            self.ema.load_state(state["ema"] | {"average": average})

    def _own_part(self, state: dict[str, Any], sharding: Sharding) -> dict[str, Any]:
        names = list(self.policy.named_parameters())
        own = {
            index: {kind: sharding.part(names[index], tensor) for kind, tensor in values.items()}
            for index, values in state["state"].items()
        }
        return state | {"state": own}
