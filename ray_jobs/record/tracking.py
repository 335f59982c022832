"""The record of a run in MLflow, kept by the driver process alone."""

import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel

from dpo_core.section import Section
from ray_jobs.record.delivery import FILES, Delivery
from ray_jobs.record.destination import Destination
from ray_jobs.record.journal import append_line
from ray_jobs.record.system import SystemMonitor
from ray_jobs.settings.secrets import without_secrets

LOG_SCALE = {"log10_lr": "optim.lr", "log10_beta": "objective.beta"}
"""MLflow's parallel coordinates print five decimals, so small values are logged by their exponent too."""
SLOW_STORE_S = 60.0
"""A local database is set up by its first user, which takes a while on a busy machine, but it does not go away."""
BRIEF_S = 5.0
"""A server answers or does not; and whoever waits for the end of a run that has failed should soon see it."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackingSection(Section):
    """Where the record of a run goes besides its own folder."""

    enabled: bool = True
    """Whether to write to MLflow at all. The run folder holds every number in any case."""
    experiment: str = "palate"
    """Name of the MLflow experiment; it is made when it does not exist."""
    uri: str | None = None
    """MLflow server or database. null: MLFLOW_TRACKING_URI where that is set, else `mlflow.db` beside the run."""
    tags: dict[str, str] = {}
    """Tags of the MLflow run."""
    system_metrics: bool = True
    """Whether to log processors, memory, disk, network and GPUs of the driver's machine, every ten seconds."""


def tracking_uri(section: TrackingSection, storage: Path) -> str:
    """The MLflow store that ``section`` means for runs that live in ``storage``."""
    return section.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage.resolve() / 'mlflow.db'}"


def flat(config: BaseModel | Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted name to text, for every value of a nested config."""
    data = config.model_dump(mode="json") if isinstance(config, BaseModel) else config
    values: dict[str, str] = {}
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = str(value)
    return values


class Tracker:
    """Notes things for MLflow. Every call returns at once: it writes to the run folder, and a thread delivers.

    One run folder is one MLflow run: ``mlflow.json`` keeps its id and what it has got, so the same run started again
    goes on where it was, and delivers first what could not be delivered before. ``metrics.jsonl`` and
    ``validation.jsonl`` of the run folder are shipped as they grow, with the sample grids that the latter names; an
    infinite value is left out and counted in ``tracking/infinite_values``.
    """

    def __init__(
        self,
        section: TrackingSection,
        run_dir: str | Path,
        *,
        name: str | None = None,
        parent_run_id: str | None = None,
        poll_s: float = 2.0,
    ) -> None:
        """``name`` is the run's name in MLflow (the folder's where None); ``parent_run_id`` nests it below a sweep."""
        self._run_dir = Path(run_dir).resolve()
        self._spool = self._run_dir / "tracking"
        self._lock, self._delivery, self._monitor = threading.Lock(), None, None
        self._enabled = section.enabled
        self._not_noted: list[str] = []
        if not section.enabled:
            return
        self._spool.mkdir(parents=True, exist_ok=True)
        uri = tracking_uri(section, self._run_dir.parent)
        self.uri = without_secrets(uri)
        self._note("status", status="RUNNING")
        self.set_tags({"palate.run_dir": str(self._run_dir), **section.tags})
        destination = Destination(uri, section.experiment, name or self._run_dir.name, parent_run_id)
        self._delivery = Delivery(self._run_dir, destination, poll_s)
        if section.system_metrics:
            self._monitor = SystemMonitor(self._run_dir / FILES["system"])

    @property
    def _outbox(self) -> Path:
        return self._run_dir / FILES["outbox"]

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run; None before the store has been reached for the first time."""
        return (self._delivery.state.run_id or None) if self._delivery else None

    @property
    def in_trouble(self) -> bool:
        """Whether the last attempt to deliver something has failed."""
        return self._delivery is not None and self._delivery.error != ""

    def wait_for_run_id(self, timeout_s: float = 30.0) -> str | None:
        """The id of the MLflow run, waiting for the store to answer; None when it does not, or tracking is off."""
        end = time.monotonic() + timeout_s
        while self._delivery and not self.run_id and not self._delivery.error and time.monotonic() < end:
            time.sleep(0.05)
        return self.run_id

    def _note(self, kind: str, **record: Any) -> None:
        if not self._enabled:
            return
        try:
            append_line(self._outbox, {"kind": kind, "time": int(1000 * time.time()), **record}, self._lock)
        except OSError as error:  # the record must not end a training, nor take the place of the error that did
            self._not_noted.append(f"{kind}: {error}")

    def log_params(self, config: BaseModel | Mapping[str, Any]) -> None:
        """Log a config as flat dotted params, and the exponents of its learning rate and beta."""
        values = flat(config)
        for name, source in LOG_SCALE.items():
            if source in values and (number := _number(values[source])) > 0:
                values[name] = f"{math.log10(number):.4f}"
        self._note("params", values=values)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._note("tags", values={name: str(value) for name, value in tags.items()})

    def log_image(self, image: Image.Image | str | Path, key: str, step: int) -> None:
        """One picture of a series with a step slider, such as ``samples/grid``; a path must stay where it is."""
        self._note("image", file=self._keep(image, key), key=key, step=step)

    def log_table(self, columns: Mapping[str, list[Any]], artifact_file: str) -> None:
        """Columns of text, numbers and images as a table, such as ``eval/compare.json``; rows add to those there."""
        cells = {
            name: [{"image": self._keep(value, name)} if isinstance(value, Image.Image) else value for value in values]
            for name, values in columns.items()
        }
        self._note("table", columns=cells, artifact_file=artifact_file)

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """A file or a folder, put into ``folder`` of the run's artifacts; it must stay where it is until delivered."""
        self._note("artifact", file=self._relative(Path(path)), folder=folder)

    def log_version(
        self, name: str, *, folder: str, files: Sequence[Path], tags: Mapping[str, str], alias: str | None = None
    ) -> None:
        """A version of the registered model ``name`` that points at ``folder`` of the run's artifacts, where ``files``
        are put. ``alias`` moves to it from an older version."""
        for file in files:
            self.log_artifact(file, folder)
        self._note("version", name=name, folder=folder, tags=dict(tags), alias=alias)

    def _keep(self, image: Image.Image | str | Path, name: str) -> str:
        """The path of an image relative to the run folder, saved there when it is not a file yet."""
        if not isinstance(image, Image.Image):
            return self._relative(Path(image))
        path = self._spool / f"{time.time_ns()}-{re.sub(r'[^A-Za-z0-9.-]', '_', name)}.png"
        if self._enabled:
            image.save(path)
        return self._relative(path)

    def _relative(self, path: Path) -> str:
        path = path.resolve()
        return str(path.relative_to(self._run_dir) if path.is_relative_to(self._run_dir) else path)

    def finish(self, status: Status = "FINISHED", patience_s: float | None = None) -> bool:
        """End the MLflow run; True when MLflow has got everything.

        Waits while things are being delivered, and gives up ``patience_s`` seconds after the last sign of progress
        (default: 5 with a server, 60 with a local database) with one line on stderr. What is left is delivered when
        the same run is started again.
        """
        if self._delivery is None:
            return True
        if self._monitor is not None:
            self._monitor.close()
        self._note("status", status=status)
        if patience_s is None:
            patience_s = BRIEF_S if self.uri.startswith("http") else SLOW_STORE_S
        left = self._delivery.close(patience_s)
        refused, error = self._delivery.state.refused, self._delivery.error
        self._delivery = None
        if left:
            print(
                f"tracking: {left} lines were not delivered to {self.uri} ({error or 'no answer'}); they are safe in "
                f"{self._run_dir} and go out when this run is started again",
                file=sys.stderr,
            )
        if self._not_noted:
            what = f"{len(self._not_noted)} things could not be noted for MLflow, first {self._not_noted[0]}"
            print(f"tracking: {what}", file=sys.stderr)
        if refused:
            print(f"tracking: {self.uri} refused {len(refused)} things, first {refused[0]}", file=sys.stderr)
        return not left


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


@contextmanager
def track_run(
    section: TrackingSection,
    run_dir: str | Path,
    *,
    name: str | None = None,
    config: BaseModel | Mapping[str, Any] | None = None,
    parent_run_id: str | None = None,
) -> Iterator[Tracker]:
    """A Tracker that ends its run as FINISHED, FAILED (an error) or KILLED (Ctrl-C)."""
    tracker = Tracker(section, run_dir, name=name, parent_run_id=parent_run_id)
    if config is not None:
        tracker.log_params(config)
    try:
        yield tracker
    except Exception:
        tracker.finish("FAILED", BRIEF_S if tracker.in_trouble else None)
        raise
    except BaseException:
        tracker.finish("KILLED", BRIEF_S)
        raise
    tracker.finish()
