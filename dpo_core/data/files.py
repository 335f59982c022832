"""Where rows are stored: the one place that turns configured paths into parquet files."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

QUARANTINE_FILE = "quarantine.parquet"
"""Lies beside the rows that it is about, and holds none to train on."""


def expand_paths(paths: Sequence[str]) -> list[str]:
    """The parquet files behind ``paths`` (files, globs, folders): entries in the given order, each sorted inside.

    Raises ValueError for an entry that leads to no file and for a file that is reached twice.
    """
    if not paths:
        raise ValueError("data.paths is empty; give parquet files, globs or folders")
    files: list[str] = []
    for path in paths:
        found = _expand(os.path.expanduser(path))
        if not found:
            raise ValueError(
                f"data.paths: {path!r} leads to no parquet file; give existing local files, globs or folders"
            )
        files += found
    seen: set[str] = set()
    for file in files:
        real = os.path.realpath(file)
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


def open_parquet(file: str) -> pq.ParquetFile:
    """An open parquet file. Raises ValueError when it cannot be read or is not (or not all of) a parquet file."""
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{file} cannot be read as parquet (missing, truncated or another format): {error}") from error


def read_row_group(parquet: pq.ParquetFile, file: str, row_group: int, columns: Sequence[str]) -> pa.Table:
    """Columns of one row group of the open ``file``: those of ``columns`` that it has. Raises ValueError for damage."""
    present = [name for name in columns if name in parquet.schema_arrow.names]
    try:
        return parquet.read_row_group(row_group, columns=present, use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"row group {row_group} of {file} cannot be read: {error}") from error


def _expand(path: str) -> list[str]:
    if "://" in path:
        raise ValueError(f"data.paths: {path!r} is not a local path; copy or mount the files first")
    if os.path.isdir(path):
        return sorted(str(file) for file in Path(path).rglob("*.parquet") if file.name != QUARANTINE_FILE)
    if os.path.isfile(path):
        return [path]
    return sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
