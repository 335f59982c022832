"""Where rows are stored: the one place that turns configured paths into parquet files."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dpo_core.data import locations

QUARANTINE_FILE = "quarantine.parquet"
JOB_FILE = "job.json"
"""Both lie beside the rows that they are about, and hold none to train on."""


def expand_paths(paths: Sequence[str]) -> list[str]:
    """The parquet files behind ``paths`` (files, globs, folders, here or at a URL): entries in the given order, each
    sorted inside.

    Raises ValueError for an entry that leads to no file, for a file that is reached twice, and for a place that cannot
    be read.
    """
    if not paths:
        raise ValueError("data.paths is empty; give parquet files, globs or folders")
    files: list[str] = []
    for path in paths:
        found = [file for file in locations.find(path, (".parquet",)) if holds_rows(file, path)]
        if not found:
            raise ValueError(f"data.paths: {path!r} leads to no parquet file; give existing files, globs or folders")
        files += found
    seen: set[str] = set()
    for file in files:
        real = file if locations.is_url(file) else os.path.realpath(file)
        if real in seen:
            raise ValueError(f"data.paths reaches {file} twice; its rows would be counted twice")
        seen.add(real)
    return files


def short_names(files: Sequence[str]) -> list[str]:
    """A name per file, the same wherever the set lies: the file name, or the path below the common folder."""
    names = [os.path.basename(file) for file in files]
    if len(set(names)) == len(names):
        return names
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    return [Path(os.path.relpath(os.path.abspath(file), folder)).as_posix() for file in files]


open_parquet = locations.open_parquet


def read_row_group(parquet: pq.ParquetFile, file: str, row_group: int, columns: Sequence[str]) -> pa.Table:
    """Columns of one row group of the open ``file``: those of ``columns`` that it has. Raises ValueError for damage."""
    present = [name for name in columns if name in parquet.schema_arrow.names]
    return _read(
        lambda: parquet.read_row_group(row_group, columns=present, use_threads=False),
        file,
        f"row group {row_group} of {file}",
    )


def read_columns(parquet: pq.ParquetFile, file: str, columns: Sequence[str]) -> pa.Table:
    """Columns of the whole of the open ``file``. Raises ValueError for damage."""
    return _read(lambda: parquet.read(columns=list(columns), use_threads=False), file, file)


def read_column(file: str, column: str) -> pa.ChunkedArray:
    """One column of a whole file. Raises ValueError for damage."""
    with open_parquet(file) as parquet:
        return read_columns(parquet, file, [column]).column(0)


def _read(read: Callable[[], pa.Table], file: str, what: str) -> pa.Table:
    try:
        return locations.tried(read, file) if locations.is_url(file) else read()
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{what} cannot be read: {error}") from error


def holds_rows(file: str, path: str) -> bool:
    """Whether ``path`` means this file: what a job notes lies beside its rows, unless it is asked for by name."""
    return file == os.path.expanduser(path) or locations.name_of(file) not in (QUARANTINE_FILE, JOB_FILE)
