"""Where the record of a run goes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Destination:
    """The MLflow run that should exist."""

    uri: str
    experiment: str
    run_name: str
    parent_run_id: str | None
