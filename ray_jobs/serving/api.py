"""The HTTP interface: OpenAI's images API, a comparison of models, health, and the comparison page."""

import asyncio
import base64
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader

from ray_jobs.serving import errors
from ray_jobs.serving.errors import ApiError
from ray_jobs.serving.gate import Gate
from ray_jobs.serving.guard import Guard
from ray_jobs.serving.images import ImageJob
from ray_jobs.serving.models import ServedModel
from ray_jobs.serving.requests import SEEDS, CompareRequest, ImageRequest, compare_jobs, image_job
from ray_jobs.serving.section import ServeSection

logger = logging.getLogger("ray.serve")

WEB = Path(__file__).parent.parent / "web"
Generate = Callable[[ImageJob], Awaitable[list[bytes]]]
"""Draws the images of a job: one PNG per seed, in order."""
Ready = Callable[[], Awaitable[bool]]


def build_app(
    section: ServeSection, models: dict[str, ServedModel], generate: Generate, ready: Ready, digest: bytes | None
) -> FastAPI:
    """The application. It knows nothing of Ray: ``generate`` and ``ready`` are all it needs of what lies behind.

    ``digest`` is :func:`ray_jobs.serving.guard.key_digest` of the API key, None if none is asked for.
    """
    # FastAPI's own /docs pages load scripts from a CDN, which the content policy forbids.
    app = FastAPI(title="Palate", docs_url=None, redoc_url=None, responses=_documented_errors())
    app.add_middleware(Guard, section=section, digest=digest)
    errors.install(app)
    gate = Gate(section.limits.queue_length)
    page = _page(section)

    async def draw(jobs: list[ImageJob]) -> list[list[bytes]]:
        with gate.admit():
            try:
                async with asyncio.timeout(section.limits.timeout_s):
                    return await asyncio.gather(*(generate(job) for job in jobs))
            except TimeoutError as error:
                message = f"No answer within {section.limits.timeout_s:g} seconds; ask for fewer images or steps."
                raise ApiError(504, message, "timeout") from error

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_object(model) for model in models.values()]}

    @app.get("/v1/models/{name}")
    async def retrieve_model(name: str) -> dict[str, Any]:
        if name not in models:
            message = f"The model {name[:100]!r} does not exist; this server has: {', '.join(models)}"
            raise ApiError(404, message, "model_not_found", "model")
        return _model_object(models[name])

    @app.post("/v1/images/generations")
    async def generate_images(request: ImageRequest) -> dict[str, Any]:
        job = image_job(request, section, models)
        [images] = await draw([job])
        data = [{"b64_json": _base64(image), "seed": seed} for image, seed in zip(images, job.seeds, strict=True)]
        return {"created": int(time.time()), "data": data}

    @app.post("/v1/compare")
    async def compare_models(request: CompareRequest) -> dict[str, Any]:
        jobs = compare_jobs(request, section, models)
        drawn = await draw(jobs)
        data = [
            {"model": job.settings.model, "b64_json": _base64(images[0]), "seed": job.seeds[0]}
            for job, images in zip(jobs, drawn, strict=True)
        ]
        return {"created": int(time.time()), "prompt": request.prompt, "seed": jobs[0].seeds[0], "data": data}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        if not await ready():
            raise ApiError(503, "No generator is running.", "not_ready", retry_after_s=5)
        return {"status": "ready"}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def compare_page() -> str:
        return page

    app.mount("/static", StaticFiles(directory=WEB / "static"), name="static")
    return app


def _page(section: ServeSection) -> str:
    environment = Environment(loader=FileSystemLoader(WEB), autoescape=True)
    return environment.get_template("compare.html").render(
        sampler=section.sampler, limits=section.limits, examples=section.example_prompts, max_seed=SEEDS - 1
    )


def _model_object(model: ServedModel) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "palate"}


def _base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _documented_errors() -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI description says of every answer that is not a success."""
    field = {"type": ["string", "null"]}
    error = {"type": "object", "properties": dict.fromkeys(("message", "type", "param", "code"), field)}
    schema = {"type": "object", "properties": {"error": error}, "required": ["error"]}
    reasons = (
        "400 bad input, 401 no valid key, 403 wrong host, 404 no such model, 413 body too large, 429 overloaded "
        "(with Retry-After), 500 failed, 503 not ready, 504 took too long"
    )
    return {"default": {"description": reasons, "content": {"application/json": {"schema": schema}}}}
