"""Where files lie: local paths and the URLs of fsspec (s3://, gs://, hf://, https://, ...), opened in one place."""

import glob
import os
import posixpath
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper

EXTRAS = {"gs": "gcs", "gcs": "gcs", "hf": "hf"}
"""What must be installed with Palate for a protocol."""

ATTEMPTS = 3
"""How often a remote file is tried; a file that is not there is not tried again."""

ARCHIVES = (".zip", ".tar")


def is_url(location: str) -> bool:
    return "://" in location


def is_archive(location: str) -> bool:
    return location.lower().endswith(ARCHIVES)


def find(location: str, suffixes: Sequence[str]) -> list[str]:
    """The files behind a location: itself, what a glob matches, or what a folder holds at any depth; sorted.

    Of a folder only files with one of ``suffixes``, and none whose name begins with a dot. Empty when there is nothing.
    Raises ValueError for a protocol that is not known or not installed and for a server that does not answer.
    """
    location = os.path.expanduser(location)
    if not is_url(location):
        if os.path.isfile(location):
            return [location]
        if os.path.isdir(location):
            return sorted(str(file) for file in Path(location).rglob("*") if file.is_file() and _wanted(file, suffixes))
        return sorted(file for file in glob.glob(location, recursive=True) if os.path.isfile(file))
    system, path = file_system(location)
    is_http = location.startswith("http")
    # In a web address ? begins a query, and every address that answers looks like a file.
    if any(sign in location for sign in ("*[" if is_http else "*?[")):
        found = [file for file in tried(lambda: system.glob(path), location) if _wanted(file, ("",))]
    elif is_http and _wanted(location.partition("?")[0], suffixes):
        return [location]
    elif tried(lambda: system.isdir(path), location):
        found = [file for file in tried(lambda: system.find(path), location) if _wanted(file, suffixes)]
    else:
        found = [path] if _there(system, path, location) else []
    return sorted(str(system.unstrip_protocol(file)) for file in found)


def open_binary(location: str, *, whole: bool = True) -> Any:
    """An open, seekable file; ``whole`` says that it will be read from end to end.

    What fsspec opens is a file in all but type. Raises FileNotFoundError, and ValueError as `find` does.
    """
    if not is_url(location):
        return open(os.path.expanduser(location), "rb")
    system, path = file_system(location)
    if isinstance(system, ArrowFSWrapper):
        return tried(lambda: system.fs.open_input_file(path), location)
    # Parquet is read in ranges: what lies between them must not be fetched.
    options = {} if whole else {"cache_type": "none"}
    return tried(lambda: system.open(path, "rb", **options), location)


def open_parquet(location: str) -> pq.ParquetFile:
    """An open parquet file. Raises ValueError when it cannot be read or is not (or not all of) a parquet file."""
    try:
        if is_url(location):
            return tried(lambda: pq.ParquetFile(open_binary(location, whole=False), pre_buffer=True), location)
        return pq.ParquetFile(os.path.expanduser(location))
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{location} cannot be read as parquet (missing, truncated or another format): {error}"
        ) from error


def read_bytes(location: str, limit: int) -> bytes:
    """The file's first ``limit`` bytes. Raises as `open_binary` does."""

    if not is_url(location):
        with open_binary(location) as file:
            return file.read(limit)
    system, path = file_system(location)

    def read() -> bytes:
        with system.open(path, "rb") as file:
            return bytes(file.read(limit))  # type: ignore[arg-type]

    return tried(read, location)


def size(location: str) -> int:
    """Bytes; -1 where a server does not tell. Raises as `open_binary` does."""
    if not is_url(location):
        return os.path.getsize(os.path.expanduser(location))
    system, path = file_system(location)
    told = tried(lambda: system.size(path), location)
    return -1 if told is None else int(told)


def folder_of(location: str) -> str:
    """The folder that a file lies in."""
    return location.rpartition("/")[0] if is_url(location) else os.path.dirname(location)


def name_of(location: str) -> str:
    return location.rpartition("/")[2] if is_url(location) else os.path.basename(location)


def there(location: str) -> bool:
    """Whether there is such a file. Raises ValueError as `find` does."""
    if not is_url(location):
        return os.path.isfile(os.path.expanduser(location))
    system, path = file_system(location)
    system.invalidate_cache()
    return _there(system, path, location)


def inside(folder: str, name: str) -> str:
    """``name`` in ``folder``. Raises ValueError for a name that leads out of it: a set may not name other files."""
    name = normal_name(name)
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def normal_name(name: str) -> str:
    """A relative name without detours. Raises ValueError when it is absolute, a URL or leads upwards."""
    normal = posixpath.normpath(name.replace("\\", "/"))
    leads_out = normal.startswith(("/", "../")) or normal in ("..", ".") or is_url(name) or "\0" in name
    if leads_out or normal[1:2] == ":":
        raise ValueError(f"{name!r} leads out of the folder of the data set")
    return normal


def _there(system: fsspec.AbstractFileSystem, path: str, location: str) -> bool:
    """Unlike ``exists`` of fsspec, for which a server that cannot be reached has nothing."""
    try:
        tried(lambda: system.info(path), location)
    except FileNotFoundError:
        return False
    return True


def _wanted(file: str | Path, suffixes: Sequence[str]) -> bool:
    name = os.path.basename(file)
    return not name.startswith(".") and name.lower().endswith(tuple(suffixes))


def file_system(location: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """What reads and writes ``location``, and its path there. Raises ValueError for a protocol that is not known or not
    installed."""
    protocol, _, path = location.partition("://")
    if protocol == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
        return tried(lambda: _s3(path.partition("/")[0], endpoint, region), location), path.rstrip("/")
    try:
        return url_to_fs(location)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        hint = f"pip install 'palate[{extra}]'" if extra else str(error)
        raise ValueError(f"{location}: reading {protocol}:// needs a package that is not installed; {hint}") from error
    except ValueError as error:
        known = ", ".join(f"{name}://" for name in ("s3", "gs", "hf", "https"))
        raise ValueError(
            f"{location}: {protocol}:// cannot be read ({error}); use a local path or one of {known}"
        ) from error


@lru_cache(maxsize=16)
def _s3(bucket: str, endpoint: str, region: str) -> ArrowFSWrapper:
    """Arrow's own client; what it is not told it finds as every AWS program does: environment, profile, the machine."""
    from pyarrow import fs

    if not region:  # a server of one's own has none
        region = "us-east-1" if endpoint else fs.resolve_s3_region(bucket)
    return ArrowFSWrapper(fs.S3FileSystem(endpoint_override=endpoint or None, region=region))


def tried(action: Any, location: str, done: str = "read") -> Any:
    """What ``action`` returns, tried again after a fault that may pass. Raises FileNotFoundError, ArrowInvalid for what
    is no parquet, and ValueError: ``location`` cannot be ``done``."""
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except pa.ArrowInvalid:  # it would be so again
            raise
        except Exception as raised:  # each file system has exceptions of its own
            error = _behind(raised)
            if isinstance(error, FileNotFoundError):
                raise
            if attempt + 1 == ATTEMPTS:
                raise ValueError(f"{location} cannot be {done}: {type(error).__name__}: {error}") from error
            time.sleep(0.2 * 4**attempt)
    raise AssertionError("unreachable")


def _behind(error: Exception) -> BaseException:
    """Whatever keeps a web server from answering, fsspec says that the file is not there; the cause knows better."""
    cause = error.__cause__
    told_by_server = type(cause).__module__.startswith("aiohttp") and getattr(cause, "status", None) not in (404, 410)
    return cause if cause is not None and told_by_server else error
