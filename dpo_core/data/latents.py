"""The latent cache: posteriors of the autoencoder as parquet shards, with everything needed to refuse a wrong one.

A cache mirrors its source: row group i of the cache is row group i of the source, without the rows that were left out
when the source was planned. So training on the cache takes the same order as training on the images. Numbers lie in
plain binary columns, which are read without being touched (``tests/benchmarks/cache_reading.py``).
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dpo_core.data import locations
from dpo_core.data.files import QUARANTINE_FILE, open_parquet, read_columns
from dpo_core.data.quarantine import Quarantined, Reason, RowRejected
from dpo_core.data.scan import REMOTE_FILES_AT_ONCE, RowGroup
from dpo_core.data.writing import files_named, settled, write_text, writing

CACHE_FILE = "cache.json"
DESCRIPTION_LIMIT = 1 << 20
"""Bytes of it that are read."""
FORMAT = 3
"""Raised whenever shards of before cannot be read any more."""
SHARD_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("chosen_captions", pa.list_(pa.string())),
        ("rejected_captions", pa.list_(pa.string())),
        ("posterior", pa.binary()),
        ("mirrored", pa.binary()),
        ("shape", pa.list_(pa.int32())),
        ("geometry", pa.list_(pa.int32())),
        ("digest", pa.binary()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
    ]
)
"""``posterior`` is ``[2, 2, C, h, w]`` (chosen, rejected; mean, deviation), ``mirrored`` the same of the mirrored
crops where the cache has them, ``shape`` is (C, h, w), ``geometry``
``[2, 6]`` as in `PairBatch`, ``digest`` that of the chosen image's bytes. ``reason`` says why an image could not be
used: if the chosen one, all of these are null; if the rejected one, its half is that of a black image."""


@dataclass(frozen=True)
class LatentCache:
    """What ``cache.json`` says."""

    encoder: str
    """Hash of the autoencoder's weights."""
    model: str
    precision: str
    """Precision the autoencoder ran in."""
    resolution: int
    captions: str
    dtype: str
    """float32 or float16, as stored."""
    source: str
    """Fingerprint of the source's plan."""
    shard_pairs: int
    """Pairs asked for per shard: with the source it decides which rows a shard holds."""
    limits: dict[str, float]
    """Image limits that decided what was encoded."""
    flips: bool = False
    """Whether the mirrored crops are there as well."""
    text: str = ""
    """Hash of the text encoders whose states of every caption are there as well; empty where they are not."""
    shape: tuple[int, ...] = ()
    """(C, h, w), known once the first shard is written."""
    complete: bool = False
    total: int = 0
    """Rows of the source, of which ``ties`` were left out."""
    ties: int = 0
    labelled_by: tuple[str, ...] = ()
    """The scorers that decided who won, as far as the source says."""
    format: int = FORMAT

    def differences(self, other: "LatentCache") -> str:
        """What makes the shards of two caches different, in words; empty when they are interchangeable."""
        ours, theirs = asdict(self), asdict(other)
        aside = ("model", "shape", "complete", "total", "ties", "labelled_by")
        decided = [name for name in ours if name not in aside]
        return ", ".join(
            f"{name} {ours[name]} there, {theirs[name]} here" for name in decided if ours[name] != theirs[name]
        )


def is_cache(path: str | Path) -> bool:
    """Whether ``path`` is a folder, here or at a URL, that `palate prepare` has begun to fill."""
    place = str(path)
    if locations.is_url(place) and (place.startswith("http") or any(sign in place for sign in "*[?")):
        return False  # a web server may answer anything to a question for a file that is not there
    if place.endswith(".parquet"):
        return False
    return locations.there(_file(path, CACHE_FILE))


def read_cache(folder: str | Path) -> LatentCache:
    """What ``folder`` holds. Raises ValueError when its cache.json is damaged or of another format."""
    path = _file(folder, CACHE_FILE)
    try:
        fields = json.loads(locations.read_bytes(path, DESCRIPTION_LIMIT))
        given = {name: tuple(fields.get(name, ())) for name in ("shape", "labelled_by")}
        cache = LatentCache(**{"format": 1, **fields, **given})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as the description of a latent cache: {error}") from error
    if cache.format != FORMAT:
        raise ValueError(
            f"{folder} is a latent cache of format {cache.format}, but this version reads and writes format {FORMAT}; "
            "run `palate prepare` into a new folder"
        )
    return cache


def open_cache(folder: str, *, resolution: int, captions: str) -> tuple[LatentCache, list[tuple[RowGroup, list[str]]]]:
    """A complete cache with its row groups and their pair ids, in order.

    Raises ValueError when the cache is incomplete or damaged, or was made for another resolution or kind of captions.
    """
    cache = read_cache(folder)
    if not cache.complete:
        raise ValueError(f"{folder} is an unfinished latent cache; run the same `palate prepare` again to complete it")
    for name, made, wanted in (("resolution", cache.resolution, resolution), ("captions", cache.captions, captions)):
        if made != wanted:
            raise ValueError(f"{folder} was prepared with data.{name}={made}, but data.{name}={wanted} is asked for")
    files = shard_files(folder)
    with ThreadPoolExecutor(REMOTE_FILES_AT_ONCE if locations.is_url(folder) else 1) as pool:
        return cache, [part for parts in pool.map(_parts, files) for part in parts]


def _parts(file: str) -> list[tuple[RowGroup, list[str]]]:
    with open_parquet(file) as parquet:
        ids = read_columns(parquet, file, ["pair_id"]).column("pair_id").to_pylist()
        counts = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
    starts = [0, *accumulate(counts)]
    return [
        (RowGroup(file, index, start), ids[start : start + count])
        for index, (start, count) in enumerate(zip(starts, counts, strict=False))
    ]


def write_cache(folder: str | Path, cache: LatentCache) -> None:
    """Write cache.json in one piece."""
    write_text(_file(folder, CACHE_FILE), json.dumps(asdict(cache), indent=1) + "\n")


def quarantine_file(folder: str | Path) -> str:
    return _file(folder, QUARANTINE_FILE)


def _file(folder: str | Path, name: str) -> str:
    return f"{settled(folder)}/{name}"


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


def shard_files(folder: str | Path) -> list[str]:
    return files_named(folder, "shard-")


def write_shard(path: str | Path, groups: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Write rows of SHARD_SCHEMA, one parquet row group per element of ``groups``; the file is whole or absent."""
    write_parquet(path, SHARD_SCHEMA, groups)


def write_parquet(path: str | Path, schema: pa.Schema, groups: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Write rows of ``schema``, uncompressed, one row group per element of ``groups``; the file is whole or absent."""
    # Posteriors and states are noise to a compressor, and the ids and captions beside them are small. Statistics would
    # repeat the largest and smallest of them in the footer.
    options: Any = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": True}
    with writing(path) as local, pq.ParquetWriter(local, schema, **options) as writer:
        for rows in groups:
            writer.write_table(pa.Table.from_pylist(list(rows), schema=schema), row_group_size=max(len(rows), 1))


def read_posterior(row: pa.Table, cache: LatentCache, side: int, *, mirrored: bool = False) -> NDArray[np.float32]:
    """float32 ``[2, C, h, w]`` (mean, deviation) of one image of a shard's row: chosen (0) or rejected (1).

    Raises RowRejected when the chosen image of the row could not be used.
    """
    packed = row.column("mirrored" if mirrored else "posterior")[0]
    if not packed.is_valid:
        raise RowRejected(Reason(row.column("reason")[0].as_py()), row.column("detail")[0].as_py())
    values = np.frombuffer(packed.as_buffer(), dtype=np.dtype(cache.dtype).newbyteorder("<"))
    return values.reshape(2, 2, *cache.shape)[side].astype(np.float32)


def why_unusable(row: pa.Table) -> RowRejected | None:
    """Why the images of a shard's row cannot be used as a pair, None where they can."""
    reason, detail = (row.column(name)[0].as_py() for name in ("reason", "detail"))
    return RowRejected(Reason(reason), detail) if reason is not None else None


def _read(file: str, columns: Sequence[str]) -> pa.Table:
    with open_parquet(file) as parquet:
        return read_columns(parquet, file, columns)


def shard_quarantine(files: Sequence[str]) -> list[Quarantined]:
    """The rows of these shards whose images could not be used, as they stand in the source."""
    columns = ["pair_id", "reason", "detail", "source_file", "source_row"]
    rows = [row for file in files for row in _read(file, columns).to_pylist() if row["reason"]]
    return [
        Quarantined(row["pair_id"], row["source_file"], row["source_row"], Reason(row["reason"]), row["detail"])
        for row in rows
    ]


def cached_captions(files: Sequence[str]) -> set[str]:
    """Every caption in these shards."""
    columns = ["chosen_captions", "rejected_captions"]
    lists = [table.column(name) for file in files for table in [_read(file, columns)] for name in columns]
    return {caption for rows in lists for captions in rows.to_pylist() for caption in captions or ()}


def read_shape(files: Sequence[str]) -> tuple[int, ...]:
    """(C, h, w) of the latents in these shards. Raises ValueError when not one pair could be encoded."""
    for file in files:
        for shape in _read(file, ["shape"]).column("shape").to_pylist():
            if shape is not None:
                return tuple(shape)
    raise ValueError("not one pair of images could be encoded")
