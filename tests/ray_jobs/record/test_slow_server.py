"""A tracking server that is slow, hangs or is away: training waits for none of it, and everything arrives later."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from ray_jobs.record.tracking import Tracker, TrackingSection
from tests.fault_table import attempt
from tests.mlflow_servers import LONGEST_S, free_port, log_step, mlflow_server, notes, timed

pytestmark = pytest.mark.timeout(400)
HANGING_S = 3600.0
LATER = "nothing waits for it, everything arrives later"


class SlowDoor:
    """A TCP door to a server: what comes from outside waits ``delay_s`` before it goes through."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay_s = 0.0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.visits = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                visitor, _ = self.listener.accept()
            except OSError:
                return
            self.visits += 1
            threading.Thread(target=self._through, args=(visitor,), daemon=True).start()

    def _through(self, visitor: socket.socket) -> None:
        self._wait()
        inside = socket.create_connection(("127.0.0.1", self.target))
        threading.Thread(target=_pump, args=(visitor, inside, self._wait), daemon=True).start()
        threading.Thread(target=_pump, args=(inside, visitor, lambda: None), daemon=True).start()

    def _wait(self) -> None:
        start = time.monotonic()
        while time.monotonic() - start < self.delay_s:
            time.sleep(0.02)


def _pump(source: socket.socket, sink: socket.socket, wait: Callable[[], None]) -> None:
    try:
        while data := source.recv(65536):
            wait()
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def test_a_server_that_never_answers_holds_up_nothing(tmp_path: Path) -> None:
    door = SlowDoor(target=1)
    door.delay_s = HANGING_S
    made: list[Tracker] = []
    section = TrackingSection(uri=f"http://127.0.0.1:{door.port}")
    with attempt("MLflow server never answers", "nothing waits for it") as figures:
        longest = timed([lambda: made.append(Tracker(section, tmp_path))])
        (tracker,) = made
        longest = max(longest, timed(notes(tracker, tmp_path, range(20))))
        end = time.monotonic() + 60
        while door.visits == 0 and time.monotonic() < end:  # then mlflow is imported, and hangs in its first request
            time.sleep(0.05)
        assert door.visits > 0
        figures.longest_wait = max(longest, timed(notes(tracker, tmp_path, range(20, 40))))
        assert figures.longest_wait < LONGEST_S
        assert not tracker.finish(patience_s=0.5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    with mlflow_server(tmp_path, port):
        yield port


@pytest.mark.slow
def test_what_a_slow_and_then_hanging_server_missed_arrives_later(tmp_path: Path, server: int) -> None:
    door, run_dir = SlowDoor(server), tmp_path / "run"
    run_dir.mkdir()
    section = TrackingSection(uri=f"http://127.0.0.1:{door.port}")
    with attempt("MLflow server slow, then hanging", LATER) as figures:
        figures.faults = 2
        door.delay_s = 2.0
        tracker = Tracker(section, run_dir, poll_s=0.1)
        slow = timed(notes(tracker, run_dir, range(5)), pause_s=0.2)
        assert tracker.wait_for_run_id(60) is not None
        door.delay_s = HANGING_S
        hanging = timed(notes(tracker, run_dir, range(5, 10)), pause_s=0.2)
        figures.longest_wait = max(slow, hanging)
        assert figures.longest_wait < LONGEST_S
        assert not tracker.finish(patience_s=0.5)

        door.delay_s, better = 0.0, time.monotonic()
        again = Tracker(section, run_dir, poll_s=0.1)
        log_step(run_dir, 10, loss=10.0)
        assert again.finish(patience_s=30)
        figures.seconds = time.monotonic() - better
        client = MlflowClient(tracking_uri=f"http://127.0.0.1:{server}")
        run_id = json.loads((run_dir / "mlflow.json").read_text())["run_id"]
        points = sorted((point.step, point.value) for point in client.get_metric_history(run_id, "train/loss"))
        assert points == [(step, float(step)) for step in range(11)]
        names = " ".join(item.path for item in client.list_artifacts(run_id, "images"))
        assert all(f"samples~grid+step+{step}+" in names for step in range(10))
        assert client.get_run(run_id).info.status == "FINISHED"
