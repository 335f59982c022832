"""The trainable policy and its frozen reference."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from dpo_core.adapters import CLIP_TARGETS, adapters_off, add_adapter, level_magnitudes
from dpo_core.data.batches import PairBatch
from dpo_core.families.base import DTYPES, Conditioning, LoadedFamily, Precision
from dpo_core.families.ip_adapter import IPAdapterSection
from dpo_core.families.unet import LoadedUNet
from dpo_core.noising import Timesteps
from dpo_core.section import Section
from dpo_core.sharding import Sharding

ONLY_OF = dict.fromkeys(("rank", "alpha", "targets", "dora", "text_encoder"), "lora") | {"ip_adapter": "ip_adapter"}
"""Fields that one method alone reads."""


class PolicySection(Section):
    """What is trained of the model."""

    method: Literal["full", "lora", "ip_adapter"] = "full"
    """All weights of the denoiser, low-rank adapters (LoRA, arXiv 2106.09685), or an IP-Adapter put into it."""
    rank: int = Field(default=8, ge=1)
    """Rank of the adapters; only with ``method: lora``."""
    alpha: float | None = Field(default=None, gt=0)
    """Scale of the adapters is alpha / rank; null means alpha = rank."""
    targets: tuple[str, ...] | None = None
    """Names of the layers that get an adapter; null means the family's attention projections."""
    dora: bool = False
    """Also train the magnitude of each adapted layer's output (DoRA, arXiv 2402.09353)."""
    text_encoder: bool = False
    """Give the CLIP text encoders adapters too. Captions are then encoded in every step."""
    ip_adapter: IPAdapterSection = IPAdapterSection()
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a quarter more work."""
    sharding: Literal["none", "full"] = "none"
    """``full`` shares out weights, reference, gradients and optimiser state among the workers, for models that do not
    fit into the memory of one (FSDP2); a single worker has nothing to share out. May change when a run goes on."""

    @model_validator(mode="after")
    def _fits_the_method(self) -> "PolicySection":
        for name, method in ONLY_OF.items():
            if self.method != method and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for method: {method}, not for method: {self.method}")
        missing = [name for name in ("model", "image_encoder") if getattr(self.ip_adapter, name) is None]
        if self.dora and self.sharding == "full":
            raise ValueError("dora needs whole weights where they are trained: set sharding to none")
        if self.method == "ip_adapter" and missing:
            raise ValueError(f"method: ip_adapter needs {' and '.join(f'ip_adapter.{name}' for name in missing)}")
        return self


class Policy:
    """Policy and reference of one run. Both go through the same modules under the same autocast.

    A LoRA policy is its own reference with the adapters switched off; any other keeps its start weights in a second,
    frozen copy. Either way, at step 0 both predict the same to the last bit. What is trained is kept in float32, and so
    is a copy of it; what stays frozen beside it is in the precision of the run.
    """

    def __init__(
        self,
        config: PolicySection,
        family: LoadedFamily,
        device: torch.device,
        precision: Precision,
        seed: int,
        needs_reference: bool,
        sharding: Sharding | None = None,
    ) -> None:
        self.config = config
        self.family = family
        self.device = device
        self.precision = precision
        self.model: Any = family.denoiser
        self.frozen: torch.nn.Module | None = None
        self.adapted: list[Any] = []
        self.sharding = sharding
        # What is cut goes to the device block by block: it need not fit there whole.
        place = device if sharding is None else torch.device("cpu")
        if config.method == "full":
            self.model.requires_grad_(True).to(place)
        elif config.method == "ip_adapter":
            if not isinstance(family, LoadedUNet):
                raise ValueError("policy.method: ip_adapter is for the families sd15 and sdxl")
            family.add_image_prompt(config.ip_adapter, DTYPES[precision])
            store(self.model, DTYPES[precision], place)
        else:
            self._add_adapters(seed, place)
        if config.method != "lora" and needs_reference:
            self.frozen = copy.deepcopy(self.model).requires_grad_(False)
        if config.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
            self.model.train()
        if sharding is not None:
            for network in (self.model, self.frozen):
                if network is not None:
                    sharding.cut(network)
        self.trained = self._trained(sharding)

    def _trained(self, sharding: Sharding | None) -> dict[str, torch.nn.Parameter]:
        named = dict(self.model.named_parameters()) if sharding is None else sharding.train(self.model)
        for index, encoder in enumerate(self.adapted[1:]):
            named |= {f"text_encoders.{index}.{name}": p for name, p in encoder.named_parameters()}
        return {name: p for name, p in named.items() if p.requires_grad}

    def _add_adapters(self, seed: int, place: torch.device) -> None:
        config, targets = self.config, self.config.targets or self.family.lora_targets
        self.adapted = [self.model, *(self.family.text_encoders if config.text_encoder else ())]
        if config.text_encoder and len(self.adapted) == 1:
            raise ValueError(
                "policy.text_encoder: this family has no text encoder that takes adapters; set it to false"
            )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in self.adapted:
                layers = targets if module is self.model else CLIP_TARGETS
                add_adapter(module, layers, rank=config.rank, alpha=config.alpha or config.rank, dora=config.dora)
                store(module, DTYPES[self.precision], place if module is self.model else self.device)
                with self.autocast() if module is self.model else nullcontext():
                    level_magnitudes(module)

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trainable parameters, in a fixed order: the denoiser's, then those of each text encoder.

        Of weights that are shared out, this rank's parts.
        """
        return self.trained

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.named_parameters().values())

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The one precision context of policy and reference; float32 runs outside of any autocast."""
        half = self.precision != "fp32"
        # Casts that are kept would keep every block that is shared out whole.
        keep = self.sharding is None
        with torch.autocast(self.device.type, dtype=DTYPES[self.precision], enabled=half, cache_enabled=keep):
            yield

    def condition(self, batch: PairBatch, sides: int) -> tuple[Conditioning, Conditioning]:
        """What policy and reference are told of the images of a batch: all chosen first, then all rejected.

        It is one and the same unless text encoders are trained: then the policy's captions are encoded with gradient,
        the reference's as the start weights encode them.
        """
        captions = batch.chosen_captions + (batch.rejected_captions if sides == 2 else [])
        assert batch.geometry is not None
        geometry = batch.geometry[:, :sides].transpose(0, 1).flatten(0, 1).to(self.device)
        with ExitStack() as stack:
            for encoder in self.adapted[1:]:
                stack.enter_context(adapters_off(encoder))
            reference = self.family.condition(captions, geometry)
        if self.config.method == "ip_adapter":
            if batch.prompt_image is None:
                raise ValueError("policy.method: ip_adapter needs data with image prompts")
            assert isinstance(self.family, LoadedUNet)
            reference |= {"image": self.family.embed_images(batch.prompt_image).repeat(sides, 1, 1, 1)}
        if not self.config.text_encoder:
            return reference, reference
        return self.family.condition(captions, geometry, remember=False), reference

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
        if self.config.method == "lora":
            with adapters_off(self.model), self.autocast():
                return self.family.predict(self.model, noisy, timesteps, conditioning)
        assert self.frozen is not None, "this run was started without a reference"
        with self.autocast():
            return self.family.predict(self.frozen, noisy, timesteps, conditioning)

    def state(self) -> dict[str, Tensor]:
        """The trainable weights, float32; where they are shared out, for rank 0 alone."""
        weights = {name: p.detach() for name, p in self.named_parameters().items()}
        return weights if self.sharding is None else self.sharding.gather(weights)

    def whole_weights(self) -> AbstractContextManager[None]:
        """Inside, rank 0 can export the model."""
        return nullcontext() if self.sharding is None else self.sharding.whole_weights()

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put trainable weights back; the reference stays what it was at the start."""
        own = self.named_parameters()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())[:3]
            raise ValueError(f"the checkpoint holds other trainable weights than this policy, for example {odd}")
        for name, parameter in own.items():
            parameter.copy_(state[name] if self.sharding is None else self.sharding.part(name, state[name]))


def store(module: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Keep what is trained of ``module`` in float32 and what is frozen in ``dtype``, on ``device``.

    It is cast where it is: twelve billion float32 parameters need not fit on an accelerator that will hold half.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
    module.to(device)
