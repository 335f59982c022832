"""What clients may ask: the OpenAI images request with diffusers' names for the rest, and a comparison of models."""

import secrets
from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.serving.errors import ApiError, bad_request
from ray_jobs.serving.images import ImageJob, Settings
from ray_jobs.serving.section import ServeSection

SEEDS = 2**32
AUTO = "auto"


class SamplingRequest(BaseModel):
    """What every request for images may say. A field this server does not know is refused, not ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    prompt: Annotated[str, Field(min_length=1)]
    """What the image should show."""
    size: str = AUTO
    """WIDTHxHEIGHT, or auto for the model's own size."""
    seed: Annotated[int | None, Field(ge=0, lt=SEEDS)] = None
    """The same model, prompt, seed and sampler settings give the same image. Drawn at random if not given."""
    num_inference_steps: Annotated[int | None, Field(ge=1)] = None
    """Denoising steps."""
    guidance_scale: Annotated[float | None, Field(ge=0, le=30, allow_inf_nan=False)] = None
    """Weight of classifier-free guidance; 1 switches it off."""
    negative_prompt: str | None = None
    """What the image should not show."""
    user: str | None = None
    """A name for the end user; accepted because clients send it, and neither used nor kept."""


class ImageRequest(SamplingRequest):
    """``POST /v1/images/generations``."""

    model: str | None = None
    """A name from ``/v1/models``; the first one if not given."""
    n: Annotated[int, Field(ge=1)] = 1
    """How many images. Image i has the seed ``seed + i``, so each can be asked for again alone."""
    response_format: Literal["b64_json"] = "b64_json"
    """How images come back: base64 of a PNG."""


class CompareRequest(SamplingRequest):
    """``POST /v1/compare``: one image per model, all from the same start noise."""

    models: Annotated[list[str] | None, Field(min_length=1)] = None
    """Names from ``/v1/models``; all of them if not given."""


def image_job(request: ImageRequest, section: ServeSection, models: Collection[str]) -> ImageJob:
    """The checked job of an images request. Raises ApiError naming the field that is wrong and what is allowed."""
    if request.n > section.limits.max_n:
        raise bad_request(f"n is {request.n}; at most {section.limits.max_n} images can be asked for at once", "n")
    model = next(iter(models)) if request.model is None else request.model
    settings = _settings(request, model, section, models, "model")
    first = _seed(request)
    return ImageJob(request.prompt, tuple((first + i) % SEEDS for i in range(request.n)), settings)


def compare_jobs(request: CompareRequest, section: ServeSection, models: Collection[str]) -> list[ImageJob]:
    """One checked job per model of a comparison. Raises ApiError."""
    names = list(models) if request.models is None else request.models
    if len(set(names)) != len(names):
        raise bad_request("models names a model twice", "models")
    seed = _seed(request)
    return [ImageJob(request.prompt, (seed,), _settings(request, name, section, models, "models")) for name in names]


def _seed(request: SamplingRequest) -> int:
    return secrets.randbelow(SEEDS) if request.seed is None else request.seed


def _settings(
    request: SamplingRequest, model: str, section: ServeSection, models: Collection[str], field: str
) -> Settings:
    limits, sampler = section.limits, section.sampler
    if model not in models:
        message = f"The model {model[:100]!r} does not exist; this server has: {', '.join(models)}"
        raise ApiError(404, message, "model_not_found", field)
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt or "")):
        if len(text) > limits.max_prompt_length:
            raise bad_request(f"{name} has {len(text)} characters; at most {limits.max_prompt_length}", name)
    steps = request.num_inference_steps or sampler.num_inference_steps
    if steps > limits.max_steps:
        raise bad_request(f"num_inference_steps is {steps}; allowed: 1 to {limits.max_steps}", "num_inference_steps")
    height, width = sampler.height, sampler.width
    if request.size != AUTO:
        if request.size not in limits.sizes:
            allowed = ", ".join([AUTO, *limits.sizes])
            raise bad_request(f"size is {request.size[:20]!r}; allowed: {allowed}", "size")
        width, height = (int(side) for side in request.size.split("x"))
    return Settings(
        model=model,
        num_inference_steps=steps,
        guidance_scale=sampler.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        negative_prompt=sampler.negative_prompt if request.negative_prompt is None else request.negative_prompt,
        height=height,
        width=width,
    )
