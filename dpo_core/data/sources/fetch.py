"""The bytes behind pointers: files, members of archives, cells of parquet files."""

import tarfile
import zipfile
from bisect import bisect_right
from collections import OrderedDict
from functools import lru_cache
from itertools import accumulate
from typing import Any, Protocol

import pyarrow as pa

from dpo_core.data import locations, schema
from dpo_core.data.quarantine import Reason, RowRejected
from dpo_core.data.sources.base import Pointer

LIMIT = 64 << 20
"""Bytes of the largest encoded image."""
KEPT_BYTES = 64 << 20
"""Images that are remembered, since rankings use each several times."""
BATCH_ROWS = 16


class ImageReader:
    """Reads images; cheapest in the order of the source."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Pointer, bytes] = OrderedDict()
        self._bytes = 0
        self._cells = lru_cache(maxsize=8)(_Cells)
        self._archives = lru_cache(maxsize=8)(_open_archive)

    def read(self, pointer: Pointer | None) -> bytes:
        """The encoded image.

        Raises RowRejected for one that is null, missing or too large, ValueError when a file cannot be read.
        """
        if pointer is None:
            raise RowRejected(Reason.IMAGE_NULL)
        if pointer not in self._kept:
            data = self._read(pointer)
            if data is None:
                raise RowRejected(Reason.IMAGE_NULL)
            if len(data) > LIMIT:
                raise RowRejected(Reason.IMAGE_TOO_LARGE, f"more than {LIMIT} encoded bytes")
            self._kept[pointer] = data
            self._bytes += len(data)
            while self._bytes > KEPT_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(pointer)
        return self._kept[pointer]

    def _read(self, pointer: Pointer) -> bytes | None:
        if pointer.row is not None:
            return self._cells(pointer.location, pointer.member or "").read(pointer.row)
        try:
            if pointer.member is not None:
                return self._archives(pointer.location).read(pointer.member)
            return locations.read_bytes(pointer.location, LIMIT + 1)
        except (FileNotFoundError, IsADirectoryError, KeyError) as error:
            name = pointer.member or pointer.location
            raise RowRejected(Reason.IMAGE_MISSING, f"there is no {name}") from error
        except OSError as error:
            raise ValueError(f"{pointer.location} cannot be read: {error}") from error


class _Cells:
    """One column of images of one parquet file, read forwards in small batches: row groups may be huge."""

    def __init__(self, file: str, column: str) -> None:
        self._file, self._column = file, column
        self._parquet = locations.open_parquet(file)
        metadata = self._parquet.metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = [0, *accumulate(counts)]
        self._group, self._next = -1, 0
        self._batches: Any = iter(())
        self._held: list[tuple[int, list[bytes | None]]] = []

    def read(self, row: int) -> bytes | None:
        held = self._find(row)
        if held is not None:
            return held[0]
        group = bisect_right(self._starts, row) - 1
        if group != self._group or row < self._next:
            self._batches = self._parquet.iter_batches(
                batch_size=BATCH_ROWS, row_groups=[group], columns=[self._column], use_threads=False
            )
            self._group, self._next, self._held = group, self._starts[group], []
        try:
            while row >= self._next:
                batch = next(self._batches)
                images = schema.read_images(pa.chunked_array([batch.column(0)]))
                self._held = [*self._held[-1:], (self._next, images)]
                self._next += len(images)
        except (OSError, pa.ArrowException, StopIteration) as error:
            raise ValueError(f"column {self._column} of {self._file} cannot be read: {error}") from error
        found = self._find(row)
        assert found is not None, "the batch with this row was read last"
        return found[0]

    def _find(self, row: int) -> tuple[bytes | None] | None:
        for start, images in self._held:
            if start <= row < start + len(images):
                return (images[row - start],)
        return None


class _Archive(Protocol):
    def read(self, member: str) -> bytes:
        """Raises KeyError where there is no such member."""
        ...


class _Zip:
    def __init__(self, location: str) -> None:
        self._archive = zipfile.ZipFile(locations.open_binary(location))

    def read(self, member: str) -> bytes:
        with self._archive.open(member) as file:
            return file.read(LIMIT + 1)


class _Tar:
    def __init__(self, location: str) -> None:
        self._archive = tarfile.open(fileobj=locations.open_binary(location), mode="r:")  # noqa: SIM115
        self._members = {name.name.removeprefix("./"): name for name in self._archive if name.isfile()}

    def read(self, member: str) -> bytes:
        file = self._archive.extractfile(self._members[member])
        assert file is not None, "only files are listed"
        return file.read(LIMIT + 1)


def _open_archive(location: str) -> _Archive:
    try:
        return _Zip(location) if location.lower().endswith(".zip") else _Tar(location)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ValueError(f"{location} cannot be read as an archive: {error}") from error
