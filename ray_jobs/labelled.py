"""Who labelled a set: what a scorer chose cannot be judged by that scorer."""

from collections.abc import Iterable
from pathlib import Path

from dpo_core.data.locations import folder_of, is_url, there
from ray_jobs.shards import JOB_FILE, read_record

LABELLED_BY = "labelled_by"
"""In the report of a ``job.json``: the ``scorer/column`` names that decided who won, empty if no scorer did."""


def labelled_by(paths: Iterable[str]) -> list[str]:
    """The scorers that labelled the sets at ``paths`` (folders or files of ours), as far as they say.

    Sets made elsewhere say nothing. Raises ValueError for a damaged ``job.json``.
    """
    names: dict[str, None] = {}
    for path in paths:
        if is_url(path):
            is_folder = not path.endswith(".parquet") and not any(sign in path for sign in "*?[")
            folder = path.rstrip("/") if is_folder else folder_of(path)
        else:
            place = Path(path).expanduser()
            folder = str(place if place.is_dir() else place.parent)
        # A web server may answer anything to a question for a file that is not there.
        if not folder.startswith("http") and there(f"{folder}/{JOB_FILE}"):
            names |= dict.fromkeys(read_record(folder).report.get(LABELLED_BY, []))
    return list(names)
