"""The gradient of one update: every micro-batch of this rank forwards and backwards, then the sum over ranks."""

from dataclasses import dataclass, replace

import torch

from dpo_core.context import RunContext
from dpo_core.data.batches import PairBatch
from dpo_core.diagnostics import diagnose
from dpo_core.metrics import RunningMeans
from dpo_core.objectives.base import PairErrors
from dpo_core.policy import Policy
from dpo_core.recipe import TrainSection
from dpo_core.shaping import shape_errors, shape_loss, timestep_weight
from dpo_core.step import pair_errors, prepare_denoising


@dataclass(frozen=True)
class Update:
    """What every update of a run has in common."""

    config: TrainSection
    policy: Policy
    context: RunContext
    scaler: torch.amp.GradScaler  # pyright: ignore[reportPrivateImportUsage]
    means: RunningMeans

    def accumulate(self, micro_batches: list[PairBatch]) -> None:
        """Leave the gradient of the global batch in every parameter, on every rank alike, and the means in ``means``.

        Each pair's loss is divided by the number of usable pairs in the whole global batch, so neither accumulation nor
        the number of ranks changes the update.
        """
        config, context, sharding = self.config, self.context, self.policy.sharding
        noising = self.policy.family.noising
        weights = [batch.weights.to(context.device) for batch in micro_batches]
        pairs = context.all_reduce(torch.stack([weight.sum() for weight in weights]).sum()).clamp(min=1)
        if sharding is not None:
            micro_batches, weights = as_many_as_others(micro_batches, weights, context)
        baseline = self._baseline(micro_batches, weights, pairs)
        for number, (batch, weight) in enumerate(zip(micro_batches, weights, strict=True), start=1):
            raw, shaped = self._errors(batch)
            shaped = replace(shaped, baseline=baseline)
            output = config.objective(shaped)
            loss = shape_loss(config.shaping, shaped, output)
            self.means.add(diagnose(raw, output, loss, noising), weight)
            if sharding is not None:
                sharding.before_backward(number == len(micro_batches))
            self.scaler.scale((loss * weight).sum() / pairs).backward()
        trained = self.policy.named_parameters()
        if sharding is not None:
            sharding.hand_over_gradients(trained)
            trained = {name: parameter for name, parameter in trained.items() if name not in sharding.named}
        sum_gradients(list(trained.values()), context)

    def _errors(self, batch: PairBatch) -> tuple[PairErrors, PairErrors]:
        """Errors as the denoiser made them, and as the objective sees them."""
        config, shaping = self.config, self.config.shaping
        denoising = prepare_denoising(
            self.policy, config.objective, batch, config.loop.seed, config.timesteps, config.noise
        )
        guarded, delta = shaping.winner_guard is not None, shaping.huber_delta
        raw = pair_errors(self.policy, config.objective, denoising, needs_product=guarded, huber_delta=delta)
        weight = timestep_weight(shaping, self.policy.family.noising, raw.timesteps)
        return raw, shape_errors(shaping, raw, weight)

    @torch.no_grad()
    def _baseline(
        self, micro_batches: list[PairBatch], weights: list[torch.Tensor], pairs: torch.Tensor
    ) -> torch.Tensor | None:
        """The mean of the objective's baseline terms over the global batch, or None where it has no baseline.

        It takes a forward pass of its own, since no micro-batch can be trained on before all have been seen.
        """
        objective = self.config.objective
        if not objective.needs_baseline:
            return None
        terms = [
            (objective.baseline_terms(self._errors(batch)[1]) * weight).sum()
            for batch, weight in zip(micro_batches, weights, strict=True)
        ]
        return self.context.all_reduce(torch.stack(terms).sum()) / pairs


def as_many_as_others(
    micro_batches: list[PairBatch], weights: list[torch.Tensor], context: RunContext
) -> tuple[list[PairBatch], list[torch.Tensor]]:
    """The last micro-batch again, without weight, until this rank has as many as any.

    Weights that are shared out are gathered by all ranks together, so all must run as often.
    """
    counts = torch.zeros(context.world_size, dtype=torch.int64, device=context.device)
    counts[context.rank] = len(micro_batches)
    missing = int(context.all_reduce(counts).max()) - len(micro_batches)
    return micro_batches + micro_batches[-1:] * missing, weights + [torch.zeros_like(weights[-1])] * missing


def sum_gradients(parameters: list[torch.nn.Parameter], context: RunContext) -> None:
    """Add up the gradients of all ranks, as one flat buffer; each rank's losses are already over the global count."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if context.world_size == 1 or not parameters:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = context.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))
