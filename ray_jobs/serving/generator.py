"""The Serve deployment that holds models and draws images, and nothing else."""

import asyncio
import logging
from dataclasses import replace
from typing import Any, cast

import torch
from ray import serve

from eval.generate import use_scheduler
from eval.models import load_pipeline
from ray_jobs.serving.images import ImageJob, draw
from ray_jobs.serving.models import ServedModel
from ray_jobs.serving.section import ServeSection

logger = logging.getLogger("ray.serve")


class ModelLoadError(RuntimeError):
    """The weights of a served model cannot be read."""


def load(model: ServedModel, section: ServeSection) -> Any:
    """The pipeline of ``model`` on this process's device. Raises ModelLoadError."""
    device = "cuda" if section.replica.num_gpus > 0 else "cpu"
    try:
        pipeline = load_pipeline(model.source, device, section.sampler.dtype, base=model.base)
        use_scheduler(pipeline, section.sampler.scheduler)
    except Exception as error:
        raise ModelLoadError(f"model {model.name!r} cannot be loaded from {model.source!r}: {error}") from error
    return pipeline


def generator_deployment(section: ServeSection, models: dict[str, ServedModel]) -> serve.Application:
    """The generator, bound and ready to be handed to the ingress.

    One batch is drawn at a time per process; images wait in the process until their batch starts, so a request whose
    client has gone costs nothing more. The queue is bounded by the ingress (see :mod:`ray_jobs.serving.api`).
    """

    class Generator:
        async def __init__(self) -> None:
            self.busy = asyncio.Lock()
            torch.set_num_threads(max(1, int(section.replica.num_cpus)))
            for name in list(models)[: section.replica.max_models]:
                try:
                    await cast(Any, self.pipeline)(name)
                except ModelLoadError as error:
                    # The other models can be served; who asks for this one is told.
                    logger.error("%s", error)

        @serve.multiplexed(max_num_models_per_replica=section.replica.max_models)
        async def pipeline(self, name: str) -> Any:
            return await asyncio.to_thread(load, models[name], section)

        @serve.batch(max_batch_size=section.sampler.batch_size, batch_wait_timeout_s=section.replica.batch_wait_s)
        async def image(self, jobs: list[ImageJob]) -> list[bytes | Exception]:
            # Serve hands over one model at a time, but runs the models of a batch side by side: the lock keeps
            # a model in memory only as long as the cache does.
            async with self.busy:
                pipeline = await cast(Any, self.pipeline)(jobs[0].settings.model)
                return await asyncio.to_thread(draw, pipeline, jobs)

        async def __call__(self, job: ImageJob) -> list[bytes]:
            results = await asyncio.gather(*(self.image(replace(job, seeds=(seed,))) for seed in job.seeds))
            images: list[bytes] = []
            for result in results:
                if isinstance(result, Exception):
                    raise result
                images.append(result)
            return images

    options = {"num_cpus": section.replica.num_cpus, "num_gpus": section.replica.num_gpus}
    deployment = serve.deployment(
        num_replicas=section.num_replicas,
        ray_actor_options=options,
        max_ongoing_requests=max(8, section.sampler.batch_size * 2),
        graceful_shutdown_timeout_s=5,
    )(Generator)
    return deployment.bind()
