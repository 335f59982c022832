"""What surrounds the workers of Ray Train: failures, lost nodes, signals, Ctrl-C at the driver."""

import logging
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
from ray._private.state import state as cluster_state
from ray.exceptions import ActorUnavailableError, RayError
from ray.train import UserCallback
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

log = logging.getLogger(__name__)
TOLD_TO_END = threading.Event()
"""Set in a worker process that has got SIGTERM."""
REFRESH_S = 10.0
NODE_LOST_S = 30.0
"""Ray takes a node for lost after about 15 seconds of silence."""


class AfterFailure(UserCallback):
    """What happens in Ray Train's controller when workers have failed.

    A ValueError is the user's to mend, and ends the run at once: it would come again. A worker cannot be reached some
    seconds before Ray takes its node for lost, which is waited for.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        del run_context
        for failure in worker_exceptions.values():
            if error := users_error(failure):
                raise error
        if any(isinstance(reason(failure), ActorUnavailableError) for failure in worker_exceptions.values()):
            before = nodes_alive()
            wait_while(lambda: nodes_alive() >= before)


class BeforeRestart(ControllerCallback):
    """What happens there at the start and before each new attempt, whatever the one before has ended by.

    Ray counts a node that is to go, and takes no worker there any more, as one that workers can be started on: it would
    ask for them in vain until the node is gone. And it counts nodes only every 20 seconds.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        del train_run_context
        leave_out_draining(ElasticScalingPolicy)

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        del failure_decision
        try:
            coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
            ray.get(coordinator.get_reserved_resources.remote("", recompute=True), timeout=REFRESH_S)
        except Exception as error:  # only the time that the restart takes depends on it
            log.warning("Ray's view of the cluster could not be refreshed: %s", error)


def leave_out_draining(policy: Any) -> None:
    """Make a class of Ray's scaling policies count workers without the nodes that are to go; once is enough."""
    count = policy._count_possible_workers
    if getattr(count, "without_draining", False):
        return

    def counted(self: Any, reserved: dict[str, Any]) -> int:
        going = cluster_state.get_draining_nodes()
        return count(self, {node: resources for node, resources in reserved.items() if node not in going})

    counted.without_draining = True  # pyright: ignore[reportFunctionMemberAccess]
    policy._count_possible_workers = counted


def wait_while(there: Callable[[], bool]) -> None:
    """Until ``there`` is over, for as long as Ray may take to notice that a node is lost."""
    end = time.monotonic() + NODE_LOST_S
    while there() and time.monotonic() < end:
        time.sleep(0.5)


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
