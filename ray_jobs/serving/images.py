"""What is to be drawn, and drawing it: jobs in, PNG bytes out."""

import io
import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from eval.generate import generate

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Settings:
    """What images that are drawn together have in common."""

    model: str
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str | None
    height: int | None
    width: int | None


@dataclass(frozen=True)
class ImageJob:
    """One image per seed."""

    prompt: str
    seeds: tuple[int, ...]
    settings: Settings


def draw(pipeline: Any, jobs: list[ImageJob]) -> list[bytes | Exception]:
    """The PNG of each job (of one seed each), in order; jobs with equal settings are drawn together.

    A job that fails gives its exception and leaves the others alone.
    """
    groups: dict[Settings, list[int]] = defaultdict(list)
    for index, job in enumerate(jobs):
        groups[job.settings].append(index)
    results: dict[int, bytes | Exception] = {}
    for settings, indices in groups.items():
        try:
            images = generate(
                pipeline,
                [jobs[i].prompt for i in indices],
                [jobs[i].seeds[0] for i in indices],
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                negative_prompt=settings.negative_prompt,
                height=settings.height,
                width=settings.width,
            )
            results.update((i, png(image)) for i, image in zip(indices, images, strict=True))
        except Exception as error:
            logger.exception("could not draw %d image(s) of model %s", len(indices), settings.model)
            results.update((i, error) for i in indices)
    return [results[i] for i in range(len(jobs))]


def png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
