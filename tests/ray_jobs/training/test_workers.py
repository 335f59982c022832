import os
import signal
import threading
from unittest.mock import patch

import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

from ray_jobs.training import workers
from ray_jobs.training.workers import TOLD_TO_END, fit, hear_sigterm, leave_out_draining, reason, users_error


def in_a_worker(error: Exception) -> WorkerGroupError:
    """What Ray Train makes of an error in the training function."""
    return WorkerGroupError("failed", {1: UserExceptionWithTraceback(error, "Traceback ...")})


def in_a_task(error: Exception) -> Exception:
    """What Ray makes of an error in a task that reads."""
    return RayTaskError("read_unit", "Traceback ...", error).as_instanceof_cause()


def test_the_users_error_is_found_in_whatever_ray_makes_of_it():
    mine = ValueError("a.parquet cannot be read")
    assert users_error(in_a_worker(mine)) is mine
    assert users_error(in_a_worker(in_a_task(mine))) is mine
    assert users_error(ControllerError(mine)) is mine


def test_an_error_keeps_its_own_words_and_not_those_of_its_cause():
    mine = ValueError("what the user can mend")
    mine.__cause__ = ValueError("not a parquet file")
    assert users_error(in_a_worker(mine)) is mine


@pytest.mark.parametrize("error", [RuntimeError("connection closed by peer"), in_a_task(OSError("gone"))])
def test_what_is_not_the_users_is_left_to_ray(error):
    assert users_error(in_a_worker(error)) is None


def test_a_worker_that_cannot_be_asked_tells_why():
    why = ActorUnavailableError("no answer", None)
    assert reason(WorkerHealthCheckFailedError("A worker health check failed.", why)) is why
    crash = RuntimeError("crash")
    assert reason(crash) is crash


def test_no_worker_is_counted_on_a_node_that_is_to_go():
    class Policy:
        def _count_possible_workers(self, reserved):
            return len(reserved)

    for _ in range(2):
        leave_out_draining(Policy)
    with patch.object(workers.cluster_state, "get_draining_nodes", return_value={"b": 1_700_000_000_000}):
        assert Policy()._count_possible_workers({"a": {"CPU": 2}, "b": {"CPU": 2}}) == 1
    assert hasattr(ElasticScalingPolicy, "_count_possible_workers"), "Ray has another name for it"


def test_the_first_sigterm_of_a_worker_is_noted_and_the_second_one_acts():
    acted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: acted.append(number))
    try:
        hear_sigterm()
        assert not TOLD_TO_END.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert TOLD_TO_END.is_set()
        assert acted == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert acted == [signal.SIGTERM]
    finally:
        TOLD_TO_END.clear()
        signal.signal(signal.SIGTERM, before)


class Trainer:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.thread: threading.Thread | None = None

    def fit(self) -> None:
        self.thread = threading.current_thread()
        if self.error is not None:
            raise self.error


def test_fit_runs_beside_the_main_thread_so_that_signals_stay_ours():
    trainer = Trainer()
    fit(trainer)
    assert trainer.thread not in (None, threading.main_thread())


def test_an_error_of_fit_is_raised_where_it_was_called():
    with pytest.raises(TimeoutError, match="its own"):
        fit(Trainer(TimeoutError("its own")))
