"""What surrounds the workers of Ray Train: failures, lost nodes, signals, Ctrl-C at the driver."""

import logging
import signal
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.train import UserCallback
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

log = logging.getLogger(__name__)
TOLD_TO_END = threading.Event()
"""Set in a worker process that has got SIGTERM."""
REFRESH_S = 10.0
NODE_LOST_S = 30.0
"""Ray takes a node for lost after about 15 seconds of silence."""


class AfterFailure(UserCallback):
    """What happens in Ray Train's controller between a failure and the next attempt.

    A ValueError is the user's to mend, and ends the run at once: it would come again. Otherwise Ray is made to look at
    the cluster before it decides how many workers to start. A worker cannot be reached some seconds before Ray takes
    its node for lost, and Ray counts nodes only every 20 seconds; without this the first restarts after the loss of a
    node ask for workers on that node, and wait for them until they time out.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        del run_context
        for failure in worker_exceptions.values():
            if error := users_error(failure):
                raise error
        unreachable = any(isinstance(reason(failure), ActorUnavailableError) for failure in worker_exceptions.values())
        try:
            before, end = nodes_alive(), time.monotonic() + NODE_LOST_S
            while unreachable and nodes_alive() >= before and time.monotonic() < end:
                time.sleep(0.5)
            coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
            ray.get(coordinator.get_reserved_resources.remote("", recompute=True), timeout=REFRESH_S)
        except Exception as error:  # only the time that the restart takes depends on it
            log.warning("Ray's view of the cluster could not be refreshed: %s", error)


def reason(failure: BaseException) -> BaseException:
    """Why a worker could not be asked how it is; the failure itself where it could."""
    return getattr(failure, "health_check_failure", failure)


def nodes_alive() -> int:
    """Nodes that Ray takes for alive."""
    return sum(node["Alive"] for node in ray.nodes())


def users_error(error: BaseException | None) -> ValueError | None:
    """The ValueError inside of what Ray has made of it; None where there is none."""
    if error is None or (isinstance(error, ValueError) and not isinstance(error, RayError)):
        return error
    inside = [getattr(error, name, None) for name in ("_base_exc", "cause", "__cause__", "controller_failure")]
    inside += getattr(error, "worker_failures", {}).values()
    return next((found for one in inside if (found := users_error(one)) is not None), None)


def hear_sigterm() -> None:
    """In a worker: the first SIGTERM asks for a checkpoint (see `RayContext.request`), a second one acts."""
    TOLD_TO_END.clear()
    before = signal.getsignal(signal.SIGTERM)

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        TOLD_TO_END.set()
        signal.signal(number, before)

    signal.signal(signal.SIGTERM, ask)


class HearingBackend(_TorchBackend):
    """Torch's process group, in workers that hear SIGTERM."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        # Signals can only be caught in the main thread; the training function runs in another one.
        worker_group.execute(hear_sigterm)
        super().on_start(worker_group, backend_config)


@dataclass
class HearingTorch(TorchConfig):
    """Torch's process group, in workers that hear SIGTERM."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return HearingBackend


def fit(trainer: Any) -> None:
    """``trainer.fit()`` in a thread: in the main thread Ray takes Ctrl-C for itself and ends without a checkpoint."""
    outcome: Future[None] = Future()

    def work() -> None:
        try:
            trainer.fit()
            outcome.set_result(None)
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="fit", daemon=True).start()
    while not outcome.done():
        wait([outcome], timeout=0.5)
    outcome.result()
