"""From the files of a run to its MLflow run, in a thread that training never waits for."""

import json
import math
import os
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.record.destination import Destination
from ray_jobs.record.journal import Position, read_lines, replace_json
from ray_jobs.settings.secrets import without_secrets

if TYPE_CHECKING:
    from ray_jobs.record.mlflow_run import MlflowRun

FILES = {
    "metrics": "metrics.jsonl",
    "validation": "validation.jsonl",
    "system": "tracking/system.jsonl",
    "outbox": "tracking/outbox.jsonl",
}
"""What is shipped of a run folder, in this order."""
LINES_AT_ONCE = 200
IMPORT_S = 60.0
REASONS_KEPT = 20
QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""MLflow's own retries block for minutes; ours wait outside of any request. What the user has set wins."""


@dataclass
class State:
    """What ``mlflow.json`` keeps: which MLflow run this is, and how much of each file it has got."""

    uri: str = ""
    run_id: str = ""
    metrics: Position = field(default_factory=Position)
    validation: Position = field(default_factory=Position)
    system: Position = field(default_factory=Position)
    outbox: Position = field(default_factory=Position)
    infinite_values: int = 0
    refused: list[str] = field(default_factory=list)
    """What the server will never take, one line each."""

    @classmethod
    def load(cls, path: Path, uri: str) -> "State":
        """The state in ``path``; a fresh one when there is none, or when it belongs to another server."""
        if not path.exists():
            return cls(uri=uri)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            state = cls(**data | {name: Position(**data[name]) for name in FILES if name in data})
        except (ValueError, TypeError, KeyError):
            return cls(uri=uri, refused=[f"{path.name} was damaged, so a new MLflow run was begun"])
        return state if state.uri == uri else cls(uri=uri)


class Delivery:
    """Tails the growing files of a run folder and ships them, each in order, exactly once.

    Metric points carry the time of their line, so a batch that is repeated after a crash changes nothing.
    """

    def __init__(self, run_dir: Path, destination: Destination, poll_s: float) -> None:
        self._files = {name: run_dir / file for name, file in FILES.items()}
        self._state_file = run_dir / "mlflow.json"
        self._run_dir, self._destination, self._poll_s = run_dir, destination, poll_s
        self.state = State.load(self._state_file, without_secrets(destination.uri))
        self.error = ""
        self._run: MlflowRun | None = None
        self._wake, self._closing, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        self._imported = False
        self._progress = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="mlflow-delivery", daemon=True)
        self._thread.start()

    def pending(self) -> int:
        """Lines in the files that MLflow has not got."""
        return sum(len(read_lines(file, getattr(self.state, name), 10**9)[0]) for name, file in self._files.items())

    def close(self, patience_s: float) -> int:
        """Deliver the rest; gives up ``patience_s`` seconds after the last sign of progress.

        A short run may end while mlflow is still being imported, which is given a minute in any case.
        Returns how many lines were not delivered.
        """
        self._progress = time.monotonic()
        self._closing.set()
        self._wake.set()
        while self._thread.is_alive():
            patience = patience_s if self._imported else max(patience_s, IMPORT_S)
            if time.monotonic() - self._progress > patience:
                break
            self._thread.join(0.05)
        self._abandoned.set()
        return self.pending()

    def _loop(self) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        delay = self._poll_s
        while not self._abandoned.is_set():
            closing = self._closing.is_set()
            try:
                self._deliver()
                self.error, delay = "", self._poll_s
                if closing:
                    return
            except Exception as error:  # whatever the server, the network or the disk may throw: it is tried again
                self.error, self._run = without_secrets(f"{type(error).__name__}: {error}".splitlines()[0]), None
                delay = min(max(2 * delay, 1.0), 1.0 if closing else 60.0)
            self._wake.wait(delay)
            self._wake.clear()

    def _deliver(self) -> None:
        """Ship all that is there now."""
        if self._run is None:
            self._run = self._connect()
            self._save()
        for name, ship in (
            ("metrics", self._ship_metrics),
            ("validation", self._ship_validation),
            ("system", self._ship_metrics),
            ("outbox", self._ship_outbox),
        ):
            limit = LINES_AT_ONCE if ship == self._ship_metrics else 1
            while not self._abandoned.is_set():
                lines, position = read_lines(self._files[name], getattr(self.state, name), limit)
                if not lines:
                    break
                ship(self._run, [self._parse(line) for line in lines])
                setattr(self.state, name, position)
                self._save()

    def _connect(self) -> "MlflowRun":
        from ray_jobs.record.mlflow_run import MlflowRun

        if (
            not self._imported
        ):  # a later attempt that fails is no progress, or a dead server would be waited for for ever
            self._imported, self._progress = True, time.monotonic()
        run = MlflowRun.open(self._destination, self.state.run_id)
        if run.run_id != self.state.run_id:
            self.state = State(
                uri=without_secrets(self._destination.uri), run_id=run.run_id, refused=self.state.refused
            )
        return run

    def _save(self) -> None:
        if not self._abandoned.is_set():
            replace_json(self._state_file, asdict(self.state))
        self._progress = time.monotonic()  # not before: on a full disk every attempt would count as one

    def _parse(self, line: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            return record
        self._refuse(f"not a JSON object: {line[:80]!r}")
        return {}

    def _refuse(self, reason: str) -> None:
        reason = without_secrets(reason)
        if reason not in self.state.refused and len(self.state.refused) < REASONS_KEPT:
            self.state.refused.append(reason)

    def _ship_metrics(self, run: "MlflowRun", records: list[dict[str, Any]]) -> None:
        points: list[tuple[str, float, int, int]] = []
        infinite = self.state.infinite_values
        for record in filter(None, records):
            step, seconds = record.pop("step", None), record.pop("time", None)
            if not isinstance(step, int) or not isinstance(seconds, int | float):
                self._refuse(f"a line without step and time: {str(record)[:80]}")
                continue
            numbers = {name: float(value) for name, value in record.items() if isinstance(value, int | float)}
            finite = {name: value for name, value in numbers.items() if not math.isinf(value)}
            if len(finite) < len(numbers):  # MLflow would store 1.8e308, which ruins the axis of every chart
                infinite += len(numbers) - len(finite)
                finite["tracking/infinite_values"] = float(infinite)
            points += [(name, value, int(1000 * seconds), step) for name, value in finite.items()]
        for reason in run.log_points(points):
            self._refuse(reason)
        self.state.infinite_values = infinite

    def _ship_validation(self, run: "MlflowRun", records: list[dict[str, Any]]) -> None:
        """The numbers of a validated checkpoint, and its grid of samples."""
        images = [
            {"kind": "image", "key": "samples/grid", "time": int(1000 * row["time"])}
            | {"file": row["grid"], "step": row["step"]}
            for row in records
            if "grid" in row
        ]
        self._ship_metrics(run, records)
        self._ship_outbox(run, images)

    def _ship_outbox(self, run: "MlflowRun", records: list[dict[str, Any]]) -> None:
        for record in records:
            if record and (reason := run.log_record(record, self._run_dir)):
                self._refuse(reason)
