"""Who labelled a set: what a scorer chose cannot be judged by that scorer."""

from collections.abc import Iterable
from pathlib import Path

from ray_jobs.shards import JOB_FILE, read_record

LABELLED_BY = "labelled_by"
"""In the report of a ``job.json``: the ``scorer/column`` names that decided who won, empty if no scorer did."""


def labelled_by(paths: Iterable[str]) -> list[str]:
    """The scorers that labelled the sets at ``paths`` (folders or files of ours), as far as they say.

    Sets made elsewhere say nothing. Raises ValueError for a damaged ``job.json``.
    """
    names: dict[str, None] = {}
    for path in paths:
        folder = Path(path).expanduser()
        folder = folder if folder.is_dir() else folder.parent
        if (folder / JOB_FILE).is_file():
            names |= dict.fromkeys(read_record(folder).report.get(LABELLED_BY, []))
    return list(names)
