"""A real MLflow server on this machine, the log of a run that never was, and how long noting it takes."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient
from PIL import Image

from ray_jobs.record.tracking import Tracker

LONGEST_S = 1.0
"""No call of a run that notes something may take longer, whatever the server does."""


def log_step(run_dir: Path, step: int, **values: float) -> None:
    line = {"step": step, "time": 1_700_000_000.5 + step} | {f"train/{name}": value for name, value in values.items()}
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def notes(tracker: Tracker, run_dir: Path, steps: range) -> list[Callable[[], Any]]:
    """What a run of ``steps`` does with its record."""
    image = Image.new("RGB", (64, 64))
    calls: list[Callable[[], Any]] = [lambda: tracker.log_params({"a": {"b": 1}})]
    for step in steps:
        calls.append(lambda step=step: log_step(run_dir, step, loss=float(step)))
        calls.append(lambda step=step: tracker.log_image(image, "samples/grid", step))
    return calls


def timed(calls: list[Callable[[], Any]], pause_s: float = 0.0) -> float:
    """Seconds that the slowest of ``calls`` took; ``pause_s`` is between them."""
    longest = 0.0
    for call in calls:
        start = time.monotonic()
        call()
        longest = max(longest, time.monotonic() - start)
        time.sleep(pause_s)
    return longest


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    """``mlflow server`` with its data in ``folder``, answering from the first line of the block to the last."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "server-artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 200
        while True:
            try:
                MlflowClient(tracking_uri=f"http://127.0.0.1:{port}").search_experiments()
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise TimeoutError((folder / "server.log").read_text()) from None
                time.sleep(1)
        yield
    finally:
        server.terminate()
        server.wait(30)
