"""Starting and stopping the server on Ray Serve."""

import asyncio
import logging
import math
import os
import socket
from typing import cast

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from ray_jobs.serving.api import build_app
from ray_jobs.serving.errors import ApiError
from ray_jobs.serving.generator import ModelLoadError, generator_deployment
from ray_jobs.serving.images import ImageJob
from ray_jobs.serving.models import ServedModel
from ray_jobs.serving.section import ServeSection

logger = logging.getLogger("ray.serve")

APP = "palate"
LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # On a small or busy machine the HTTP process takes longer to come up than the 5 seconds that Serve gives it.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
OBJECT_STORE_BYTES = 256 * 2**20


class Ingress:
    """The deployment that speaks HTTP. One process: its count of requests inside is the count of the server."""

    def __init__(
        self, generator: DeploymentHandle, section: ServeSection, models: dict[str, ServedModel], digest: bytes | None
    ) -> None:
        self.generator, self.section, self.models, self.digest = generator, section, models, digest

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self.section, self.models, self._generate, self._ready, self.digest)

    async def _generate(self, job: ImageJob) -> list[bytes]:
        name = job.settings.model
        try:
            return await self.generator.options(multiplexed_model_id=name).remote(job)
        except ModelLoadError as error:
            logger.error("%s", error)
            message = f"The model {name!r} cannot be loaded; the server's log says why."
            raise ApiError(500, message, "model_load_failed", "model") from error
        except (RayActorError, DeploymentUnavailableError) as error:
            logger.error("%s", error)
            raise ApiError(503, "The generator went away; try again.", "generator_lost", retry_after_s=2) from error

    async def _ready(self) -> bool:
        status = await asyncio.to_thread(serve.status)
        states = cast(dict[str, int], status.applications[APP].deployments["Generator"].replica_states)
        return states.get("RUNNING", 0) > 0


def start(section: ServeSection, models: dict[str, ServedModel], digest: bytes | None) -> None:
    """Start Ray (or join the cluster of ``RAY_ADDRESS``) and serve; returns when the replicas are up.

    Raises ValueError if the port is taken, or if the cluster that was joined already runs Serve.
    """
    logger.setLevel(logging.WARNING)
    if joins_cluster():
        ray.init(logging_level=logging.WARNING)
        if serve_runs():
            raise ValueError("the cluster of RAY_ADDRESS already runs Ray Serve; stop it there with: serve shutdown")
    else:
        _check_port(section.host, section.port)
        for name, value in LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        ray.init(
            address="local",
            num_cpus=math.ceil(section.num_replicas * section.replica.num_cpus),
            num_gpus=math.ceil(section.num_replicas * section.replica.num_gpus),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.ERROR,
        )
    logging_config = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"host": section.host, "port": section.port}, logging_config=logging_config)
    ingress = serve.deployment(
        name="Ingress",
        max_ongoing_requests=section.limits.queue_length * 4 + 64,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress()(Ingress))
    app = ingress.bind(generator_deployment(section, models), section, models, digest)
    serve.run(app, name=APP, route_prefix="/", logging_config=logging_config)


def stop() -> None:
    """Take down what :func:`start` started: the application and Serve, and Ray if it is this process's own."""
    if joins_cluster():
        serve.shutdown()
    else:
        serve.delete(APP)
    ray.shutdown()


def joins_cluster() -> bool:
    return bool(os.environ.get("RAY_ADDRESS"))


def serve_runs() -> bool:
    """Whether the cluster that is joined has a Serve controller."""
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def _check_port(host: str, port: int) -> None:
    try:
        [(family, kind, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port=<n>") from error
