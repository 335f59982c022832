"""One run in an MLflow store: the only module that imports mlflow, and only the delivery thread imports it."""

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from PIL import Image

from ray_jobs.record.destination import Destination

# A database that cannot be written is told by `Tracker.finish` in a line, not at every attempt with a traceback.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
"""Error codes that no second attempt will change."""
POINTS_AT_ONCE, PAIRS_AT_ONCE = 1000, 100
VALUE_LENGTH = 6000

Point = tuple[str, float, int, int]
"""Metric name, value, milliseconds since 1970, step."""


def chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


class MlflowRun:
    """Writes to one MLflow run. Errors of the server or the network are raised; refusals are returned as text."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id
        self._refused_names: set[str] = set()

    @classmethod
    def open(cls, destination: Destination, run_id: str) -> "MlflowRun":
        """The run ``run_id``; a new one when that is empty, unknown to the store or deleted there."""
        client = MlflowClient(tracking_uri=destination.uri)
        if run_id:
            try:
                if client.get_run(run_id).info.lifecycle_stage == "active":
                    return cls(client, run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        parent = {MLFLOW_PARENT_RUN_ID: destination.parent_run_id} if destination.parent_run_id else {}
        experiment = cls._experiment(client, destination)
        return cls(client, client.create_run(experiment, tags=parent, run_name=destination.run_name).info.run_id)

    @staticmethod
    def _experiment(client: MlflowClient, destination: Destination) -> str:
        found = client.get_experiment_by_name(destination.experiment)
        if found is not None:
            return found.experiment_id
        folder = None
        if destination.uri.startswith("sqlite:///"):
            folder = (Path(destination.uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
        try:
            return client.create_experiment(destination.experiment, artifact_location=folder)
        except MlflowException as error:
            found = client.get_experiment_by_name(destination.experiment)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
            return found.experiment_id

    def log_points(self, points: list[Point]) -> list[str]:
        """Log metric points; returns what was refused. Points that the store has already are left as they are."""
        refusals = []
        for chunk in chunks([point for point in points if point[0] not in self._refused_names], POINTS_AT_ONCE):
            try:
                self._log_chunk(chunk)
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
                refusals += self._log_by_name(chunk)
        return refusals

    def _log_chunk(self, points: list[Point]) -> None:
        self._client.log_batch(self.run_id, metrics=[Metric(*point) for point in points])

    def _log_by_name(self, points: list[Point]) -> list[str]:
        refusals = []
        for name in dict.fromkeys(point[0] for point in points):
            try:
                self._log_chunk([point for point in points if point[0] == name])
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
                self._refused_names.add(name)
                refusals.append(f"metric {name}: {str(error).splitlines()[0]}")
        return refusals

    def log_record(self, record: dict[str, Any], run_dir: Path) -> str:
        """Carry out one line of the outbox; returns why it was refused, or an empty string."""
        try:
            getattr(self, f"_log_{record['kind']}")(record, run_dir)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            return f"{record['kind']}: {str(error).splitlines()[0]}"
        except FileNotFoundError as error:
            return f"{record['kind']}: {error.filename} is gone"
        return ""

    def _log_params(self, record: dict[str, Any], run_dir: Path) -> None:
        """Params cannot be changed in MLflow: a resumed run with another value gets the tag ``changed.<name>``."""
        present = self._client.get_run(self.run_id).data.params
        values = {name: value[:VALUE_LENGTH] for name, value in record["values"].items()}
        new = [Param(name, value) for name, value in values.items() if name not in present]
        changed = {f"changed.{name}": value for name, value in values.items() if present.get(name, value) != value}
        for chunk in chunks(new, PAIRS_AT_ONCE):
            self._client.log_batch(self.run_id, params=chunk)
        self._set_tags(changed)

    def _log_tags(self, record: dict[str, Any], run_dir: Path) -> None:
        self._set_tags(record["values"])

    def _set_tags(self, values: dict[str, str]) -> None:
        for chunk in chunks([RunTag(name, value) for name, value in values.items()], PAIRS_AT_ONCE):
            self._client.log_batch(self.run_id, tags=chunk)

    def _log_image(self, record: dict[str, Any], run_dir: Path) -> None:
        with Image.open(run_dir / record["file"]) as image:
            self._client.log_image(
                self.run_id, image.convert("RGB"), key=record["key"], step=record["step"], timestamp=record["time"]
            )

    def _log_table(self, record: dict[str, Any], run_dir: Path) -> None:
        def cell(value: Any) -> Any:
            return mlflow.Image(Image.open(run_dir / value["image"])) if isinstance(value, dict) else value

        columns = {name: [cell(value) for value in values] for name, values in record["columns"].items()}
        self._client.log_table(self.run_id, columns, artifact_file=record["artifact_file"])

    def _log_artifact(self, record: dict[str, Any], run_dir: Path) -> None:
        path = run_dir / record["file"]
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), record["folder"])
        else:
            self._client.log_artifact(self.run_id, str(path), record["folder"])

    def _log_version(self, record: dict[str, Any], run_dir: Path) -> None:
        """The same version again, after a crash or a repeated evaluation, is found by its tags and not made twice."""
        name, tags = record["name"], {key: value for key, value in record["tags"].items() if value}
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = self._client.search_model_versions(f"name = '{name}'")
        version = next((found for found in known if found.run_id == self.run_id and found.tags == tags), None)
        if version is None:
            place = f"{self._client.get_run(self.run_id).info.artifact_uri}/{record['folder']}"
            version = self._client.create_model_version(name, place, self.run_id, tags=tags)
        if record["alias"]:
            self._client.set_registered_model_alias(name, record["alias"], version.version)

    def _log_status(self, record: dict[str, Any], run_dir: Path) -> None:
        if record["status"] == "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            self._client.set_terminated(self.run_id, record["status"], end_time=record["time"])
