"""Files that a job writes, on a disk or in a bucket: each is whole or absent.

On a disk a file is written beside its place and renamed, in a bucket it is written on this machine and then sent, which
a store takes whole or not at all.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from dpo_core.data.locations import file_system, is_url, name_of, tried

READ_ONLY = ("http", "https", "hf")
"""Web servers take no files, and on the hub each would be a commit of its own."""


def _takes_files(folder: str) -> str:
    protocol = folder.partition("://")[0]
    if is_url(folder) and protocol in READ_ONLY:
        raise ValueError(f"{protocol}:// can be read but not written; give a local folder, s3:// or gs://")
    if is_url(folder) and any(sign in folder for sign in "*?["):
        raise ValueError("is a pattern; give the folder itself")
    return folder


OutFolder = Annotated[str, AfterValidator(_takes_files)]
"""A folder that a job writes: on a disk, or s3://bucket/folder and the like."""


def settled(folder: str | Path) -> str:
    """The folder as every process means it: an absolute path, or the URL without a slash at its end."""
    place = str(folder)
    return place.rstrip("/") if is_url(place) else str(Path(place).expanduser().resolve())


@contextmanager
def writing(location: str | Path) -> Iterator[Path]:
    """A path on this machine to write to; it becomes the file at ``location`` when the block ends without an error.

    Raises ValueError for a store that does not take it.
    """
    place = str(location)
    if is_url(place):
        with tempfile.TemporaryDirectory(prefix="palate-") as folder:
            local = Path(folder, name_of(place))
            yield local
            system, path = file_system(place)
            tried(lambda: system.put_file(str(local), path), place, "written")
        return
    target = Path(place)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    yield aside
    aside.replace(target)


def write_text(location: str | Path, text: str) -> None:
    """Raises as `writing`."""
    with writing(location) as path:
        path.write_text(text, encoding="utf-8")


def names_in(folder: str) -> list[str]:
    """Names of the files in a settled folder, sorted; empty when it is not there. Raises ValueError as `find` does."""
    if not is_url(folder):
        return sorted(path.name for path in Path(folder).iterdir() if path.is_file()) if Path(folder).is_dir() else []
    system, path = file_system(folder)
    system.invalidate_cache()
    try:
        found = tried(lambda: system.ls(path, detail=True), folder)
    except FileNotFoundError:
        return []
    return sorted(entry["name"].rpartition("/")[2] for entry in found if entry["type"] == "file")


def files_named(folder: str | Path, start: str) -> list[str]:
    """The parquet files in a folder whose names begin with ``start``, sorted. Raises ValueError as `find` does."""
    place = settled(folder)
    return [f"{place}/{name}" for name in names_in(place) if name.startswith(start) and name.endswith(".parquet")]


def move(location: str, new: str) -> None:
    """Give a file another name, beside it or elsewhere in its store. Raises ValueError as `writing`."""
    if not is_url(location):
        Path(location).replace(new)
        return
    system, path = file_system(location)
    target = file_system(new)[1]

    def act() -> None:
        if system.exists(path):  # or an attempt whose answer was lost has moved it
            system.mv(path, target)

    tried(act, location, "moved")


def remove(location: str) -> None:
    """Nothing happens where there is no such file. Raises ValueError as `writing`."""
    if not is_url(location):
        Path(location).unlink(missing_ok=True)
        return
    system, path = file_system(location)
    with suppress(FileNotFoundError):
        tried(lambda: system.rm_file(path), location, "deleted")


def remove_leftovers(folder: str) -> None:
    """Delete what killed processes left half written; in a bucket they leave nothing that can be seen."""
    for name in [] if is_url(folder) else names_in(folder):
        if name.startswith(".") and name.rpartition(".")[2].isdecimal():
            Path(folder, name).unlink(missing_ok=True)
