"""The config of ``palate serve``."""

import ipaddress
import re

from pydantic import Field, field_validator, model_validator

from dpo_core.section import Section
from eval.generate import SamplerSection

MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""What a served model may be called: it is shown in pages and URLs and is never used as a path."""


class Limits(Section):
    """What one request may ask for; more is refused with HTTP 400, or 429 when the server is full."""

    max_n: int = Field(default=4, ge=1, le=10)
    """Images per request."""
    max_steps: int = Field(default=100, ge=1)
    """Denoising steps per image."""
    max_prompt_length: int = Field(default=1000, ge=1)
    """Characters in a prompt or a negative prompt."""
    sizes: list[str] = Field(default=["64x64", "512x512", "768x768", "1024x1024"])
    """Allowed sizes, WIDTHxHEIGHT, both multiples of 8. A request without a size gets the model's own size."""
    queue_length: int = Field(default=16, ge=1)
    """Requests the server holds at once, running and waiting. One more gets 429 with Retry-After."""
    timeout_s: float = Field(default=300, gt=0)
    """Seconds after which a request that is still not answered gets 504 and its images are given up."""
    max_body_bytes: int = Field(default=65_536, ge=1024)
    """Bytes in a request body."""

    @field_validator("sizes")
    @classmethod
    def _sizes_are_multiples_of_eight(cls, sizes: list[str]) -> list[str]:
        for size in sizes:
            match = re.fullmatch(r"([1-9]\d{1,3})x([1-9]\d{1,3})", size)
            if match is None or any(int(side) % 8 for side in match.groups()):
                raise ValueError(f"{size!r} is not a size; write WIDTHxHEIGHT with multiples of 8, such as 512x512")
        return sizes


class Replica(Section):
    """What one generator process gets and holds."""

    num_cpus: float = Field(default=1, ge=0)
    """CPU cores; also the number of torch threads."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs; a fraction shares a GPU. 0 generates on the CPU."""
    max_models: int = Field(default=2, ge=1)
    """Models held in memory; the least recently used one is dropped for the next."""
    batch_wait_s: float = Field(default=0.02, ge=0)
    """Seconds an image waits for others to be generated with."""


class ServeSection(Section):
    """Which models are served, where, and with which limits."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but this machine alone needs `api_key_env`."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key; without it no key is asked for."""
    models: dict[str, str] = Field(default={})
    """Model name to diffusers folder, LoRA export, hub id or `embedded`. The first one is the default."""
    runs: str | None = None
    """A folder of runs: every `<run>/model` in it is served under the name of its run."""
    num_replicas: int = Field(default=1, ge=1)
    """Generator processes."""
    example_prompts: list[str] = Field(
        default=[
            "a red circle above a blue square",
            "a green triangle left of a purple circle",
            "a yellow square below a red triangle",
            "a blue circle",
        ]
    )
    """Prompts that the page offers to try."""
    replica: Replica = Replica()
    sampler: SamplerSection = SamplerSection()
    """What a request that does not say otherwise gets; `scheduler`, `dtype` and `batch_size` hold for every request."""
    limits: Limits = Limits()

    @field_validator("models")
    @classmethod
    def _names_are_safe(cls, models: dict[str, str]) -> dict[str, str]:
        for name in models:
            if not re.fullmatch(MODEL_NAME, name):
                raise ValueError(f"{name!r} is no model name; use letters, digits, '.', '_' and '-', at most 100")
        return models

    @model_validator(mode="after")
    def _is_consistent(self) -> "ServeSection":
        if not self.models and self.runs is None:
            raise ValueError("nothing to serve: set models.<name>=<folder> or runs=<folder of runs>")
        if not self.is_local and self.api_key_env is None:
            raise ValueError(
                f"host {self.host} can be reached by others and no API key is asked for: set api_key_env to the name "
                "of an environment variable that holds a key, or host to 127.0.0.1"
            )
        if not 1 <= self.sampler.num_inference_steps <= self.limits.max_steps:
            raise ValueError(
                f"sampler.num_inference_steps is {self.sampler.num_inference_steps}; allowed: 1 to limits.max_steps, "
                f"{self.limits.max_steps}"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
