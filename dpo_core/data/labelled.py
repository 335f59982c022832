"""Who labelled a set: what a scorer chose cannot be judged by that scorer."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpo_core.data import latents
from dpo_core.data.files import JOB_FILE
from dpo_core.data.locations import folder_of, is_url, read_bytes, there

LABELLED_BY = "labelled_by"
"""In the report of a ``job.json`` and in a ``cache.json``: the ``scorer/column`` names that decided who won, empty if
no scorer did."""
LIMIT = 1 << 26
"""Bytes of a ``job.json`` that are read."""


def labelled_by(paths: Iterable[str]) -> list[str]:
    """The scorers that labelled the sets at ``paths`` (folders, files or caches of ours), as far as they say.

    Sets made elsewhere say nothing. Raises ValueError for a damaged ``job.json`` or ``cache.json``.
    """
    names: dict[str, None] = {}
    for folder in dict.fromkeys(_folder(path) for path in paths):
        # A web server may answer anything to a question for a file that is not there.
        if folder.startswith("http"):
            continue
        if latents.is_cache(folder):
            names |= dict.fromkeys(latents.read_cache(folder).labelled_by)
        elif there(f"{folder}/{JOB_FILE}"):
            names |= dict.fromkeys(_told(f"{folder}/{JOB_FILE}"))
    return list(names)


def _folder(path: str) -> str:
    if is_url(path):
        is_folder = not path.endswith(".parquet") and not any(sign in path for sign in "*?[")
        return path.rstrip("/") if is_folder else folder_of(path)
    place = Path(path).expanduser()
    return str(place if place.is_dir() else place.parent)


def _told(file: str) -> list[str]:
    try:
        record: Any = json.loads(read_bytes(file, LIMIT))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as the description of a job: {error}") from error
    report = record.get("report") if isinstance(record, dict) else None
    names = report.get(LABELLED_BY) if isinstance(report, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []  # or it is somebody else's job.json
