"""The trainable policy and its frozen reference."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dpo_core.data.batches import PairBatch
from dpo_core.families.base import DTYPES, Conditioning, LoadedFamily, Precision
from dpo_core.noising import Timesteps
from dpo_core.section import Section

ADAPTER = "default"


class PolicySection(Section):
    """What is trained of the model."""

    method: Literal["full", "lora"] = "full"
    """All weights of the denoiser, or low-rank adapters (LoRA, arXiv 2106.09685)."""
    rank: int = Field(default=8, ge=1)
    """Rank of the adapters; only with ``method: lora``."""
    alpha: float | None = Field(default=None, gt=0)
    """Scale of the adapters is alpha / rank; null means alpha = rank."""
    targets: tuple[str, ...] | None = None
    """Names of the layers that get an adapter; null means the family's attention projections."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a quarter more work."""


class Policy:
    """Policy and reference of one run. Both go through the same modules under the same autocast.

    A full policy keeps its start weights in a second, frozen copy; a LoRA policy needs none, since its reference is
    itself with the adapters switched off. Either way, at step 0 both predict the same to the last bit.
    """

    def __init__(
        self,
        config: PolicySection,
        family: LoadedFamily,
        device: torch.device,
        precision: Precision,
        seed: int,
        needs_reference: bool,
    ) -> None:
        self.config = config
        self.family = family
        self.device = device
        self.precision = precision
        self.model: Any = family.denoiser
        self.frozen: torch.nn.Module | None = None
        if config.method == "full":
            if needs_reference:
                self.frozen = copy.deepcopy(self.model)
            self.model.requires_grad_(True)
        else:
            self._add_adapter(seed)
        if config.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
            self.model.train()

    def _add_adapter(self, seed: int) -> None:
        from peft import LoraConfig

        targets = self.config.targets or self.family.lora_targets
        adapter = LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha or self.config.rank,  # pyright: ignore[reportArgumentType]
            init_lora_weights="gaussian",
            target_modules=list(targets),
        )
        self.model.to(DTYPES[self.precision])
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            try:
                self.model.add_adapter(adapter, adapter_name=ADAPTER)
            except ValueError as error:
                raise ValueError(f"policy.targets: {list(targets)} fits no layer of the denoiser: {error}") from error
        for parameter in self.parameters():
            parameter.data = parameter.data.float()

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trainable parameters, in a fixed order."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.named_parameters().values())

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The one precision context of policy and reference; float32 runs outside of any autocast."""
        half = self.precision != "fp32"
        with torch.autocast(self.device.type, dtype=DTYPES[self.precision], enabled=half, cache_enabled=True):
            yield

    def condition(self, batch: PairBatch, sides: int) -> tuple[Conditioning, Conditioning]:
        """What policy and reference are told of the images of a batch: all chosen first, then all rejected."""
        captions = batch.chosen_captions + (batch.rejected_captions if sides == 2 else [])
        assert batch.geometry is not None
        geometry = batch.geometry[:, :sides].transpose(0, 1).flatten(0, 1).to(self.device)
        conditioning = self.family.condition(captions, geometry)
        return conditioning, conditioning

    def predict(
        self, noisy: Float[Tensor, "n c h w"], timesteps: Timesteps, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        """The policy's prediction, with gradient."""
        with self.autocast():
            return self.family.predict(self.model, noisy, timesteps, conditioning)

    @torch.no_grad()
    def predict_reference(
        self, noisy: Float[Tensor, "n c h w"], timesteps: Timesteps, conditioning: Conditioning
    ) -> Float[Tensor, "n c h w"]:
        """The prediction of the start weights."""
        if self.config.method == "full":
            assert self.frozen is not None, "this run was started without a reference"
            with self.autocast():
                return self.family.predict(self.frozen, noisy, timesteps, conditioning)
        self.model.disable_adapters()
        try:
            with self.autocast():
                return self.family.predict(self.model, noisy, timesteps, conditioning)
        finally:
            self.model.enable_adapters()

    def state(self) -> dict[str, Tensor]:
        """The trainable weights, float32."""
        return {name: p.detach() for name, p in self.named_parameters().items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put trainable weights back; the reference stays what it was at the start."""
        own = self.named_parameters()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())[:3]
            raise ValueError(f"the checkpoint holds other trainable weights than this policy, for example {odd}")
        for name, parameter in own.items():
            parameter.copy_(state[name])
