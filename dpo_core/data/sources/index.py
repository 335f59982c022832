"""The pairs of a source that are taken, written down before any image is read: our columns, and in place of the images
where they lie (an encoded `Pointer`)."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpo_core.data import locations, schema
from dpo_core.data.quarantine import Quarantined, Reason, RowRejected
from dpo_core.data.sources.base import LeftOut, Record, Source
from dpo_core.data.sources.filters import TOO_MANY, FilterSection, Sieve, Survey, sample_key, stable_id, traits_of
from dpo_core.data.writing import names_in, remove, write_text, writing

ROWS_PER_GROUP = 50
"""Of the index and so of the shards made from it."""
GROUPS_PER_FILE = 20
"""A footer of many row groups takes longer to read than one of them."""

TEXTS = pa.list_(pa.string())
CAPTIONS = ("caption", *schema.CAPTION_PER_IMAGE)
ORIGIN = "origin"
MAP = pa.list_(pa.list_(pa.float32()))
INDEX_SCHEMA = pa.schema(
    [
        *(pa.field(f.name, TEXTS if f.name == "caption" else f.type) for f in schema.SCHEMA),
        *(pa.field(name, TEXTS) for name in schema.CAPTION_PER_IMAGE),
        *(pa.field(name, MAP) for name in schema.QUALITY),
        pa.field(ORIGIN, pa.string()),
    ]
)
FACTS = "facts.json"
FACTS_LIMIT = 1 << 30
"""Bytes of it that are read."""
VERSION = 1


@dataclass
class Facts:
    """What became of the pairs of a source: ``total = taken + sum(left_out) + len(quarantined)``."""

    key: str
    """Hash of the source, its files and the filters."""
    total: int = 0
    taken: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    quarantined: list[Quarantined] = field(default_factory=list)
    lists: bool = False
    """Whether any caption is a list of texts."""


def index_key(source: Source, filters: FilterSection) -> str:
    """Names and sizes of the files, and the config. Raises ValueError as ``source.files`` does."""
    digest = hashlib.sha256(f"{VERSION} {source.model_dump_json()} {filters.model_dump_json()}".encode())
    files = source.files()
    remote = any(map(locations.is_url, files))
    for file in files:
        # Asking a server for the size of every image would take longer than reading them.
        try:
            size = 0 if remote and len(files) > 1000 else locations.size(file)
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        digest.update(f"{file}\x1f{size}\x1e".encode())
    return digest.hexdigest()


def survey(source: Source, filters: FilterSection) -> Survey:
    """One pass over the labels and ids of the source, where the filters need one."""
    found = Survey()
    if not filters.needs_survey():
        return found
    keys, users = list[int](), list[str | None]()
    sieve = Sieve(filters.model_copy(update={"min_votes": 1, "max_samples": None}), Survey())
    for told in source.told():
        if isinstance(told, Record):
            if told.user is not None:
                found.votes[told.user] += 1
            pair = _taken_pair(told, sieve)
            if isinstance(pair, dict):
                keys.append(sample_key(filters.seed, pair["key"]))
                users.append(told.user)
    if filters.max_samples is not None:
        left = [key for key, user in zip(keys, users, strict=True) if found.has_votes(user, filters.min_votes)]
        if len(left) > filters.max_samples:
            left.sort()
            found.last = left[filters.max_samples - 1]
    return found


def taken_rows(source: Source, filters: FilterSection, facts: Facts) -> Iterator[dict[str, Any]]:
    """Rows of the index, in the order of the source; ``facts`` counts along. Raises ValueError as the source does."""
    sieve = Sieve(filters, survey(source, filters))
    for told in source.told():
        facts.total += 1
        pair = _taken_pair(told, sieve) if isinstance(told, Record) else told
        if isinstance(pair, dict) and facts.taken == filters.max_samples:
            pair = LeftOut(TOO_MANY)
        if isinstance(pair, Quarantined):
            facts.quarantined.append(pair)
        elif isinstance(pair, LeftOut):
            facts.left_out[pair.why] = facts.left_out.get(pair.why, 0) + 1
        else:
            facts.taken += 1
            facts.lists |= any(len(pair["row"].get(name) or ()) > 1 for name in CAPTIONS)
            yield pair["row"]


def write_index(
    folder: str, source: Source, filters: FilterSection, key: str, progress: Callable[[int], None] = lambda _: None
) -> Facts:
    """Fill ``folder``, here or in a bucket; what was there goes. Returns what `read_facts` then reads, which is written
    last."""
    remove(f"{folder}/{FACTS}")
    for name in names_in(folder):
        remove(f"{folder}/{name}")
    facts, rows, number = Facts(key), list[dict[str, Any]](), 0
    for row in taken_rows(source, filters, facts):
        rows.append(row)
        if len(rows) == ROWS_PER_GROUP * GROUPS_PER_FILE:
            _write(f"{folder}/{number:06d}", rows)
            rows, number = [], number + 1
            progress(facts.total)
    if rows:
        _write(f"{folder}/{number:06d}", rows)
    write_text(f"{folder}/{FACTS}", json.dumps(asdict(facts)))
    return facts


def read_facts(folder: str) -> Facts | None:
    """What the index in ``folder`` says of itself; None where there is none."""
    if not locations.there(f"{folder}/{FACTS}"):
        return None
    values = json.loads(locations.read_bytes(f"{folder}/{FACTS}", FACTS_LIMIT))
    records = [Quarantined(**{**record, "reason": Reason(record["reason"])}) for record in values["quarantined"]]
    return Facts(**{**values, "quarantined": records})


def index_files(folder: str) -> list[str]:
    """The files of the index in ``folder``, in order."""
    return [f"{folder}/{name}" for name in names_in(folder) if name.isdecimal()]


def shard_schema(source: Source, facts: Facts) -> pa.Schema:
    """The columns of the shards: those of our schema, and what else the source gives."""
    text = TEXTS if facts.lists else pa.string()
    fields = [pa.field(f.name, text if f.name == "caption" else f.type) for f in schema.SCHEMA]
    return pa.schema([*fields, *(pa.field(n, MAP if n in schema.QUALITY else text) for n in source.extra_columns())])


def _write(path: str, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, INDEX_SCHEMA)
    with writing(path) as local:
        pq.write_table(table, local, row_group_size=ROWS_PER_GROUP, compression="zstd")


def _taken_pair(record: Record, sieve: Sieve) -> dict[str, Any] | Quarantined | LeftOut:
    """The row of the index and the key of a pair, or why there is none."""
    origin = f"{locations.name_of(record.file)}#{record.row}"
    try:
        row = _row(record, origin)
        if not _is_judged(row, sieve.unlabelled):
            if sieve.unlabelled == "drop":
                return LeftOut("without a label")
            row |= {"label_0": None, "label_1": None, "has_label": False}
        captions = [row[name] for name in schema.CAPTION_PER_IMAGE if name in record.values] or [row["caption"]]
        for texts in captions:
            schema.clean_captions(None if texts is None else tuple(texts))
    except RowRejected as rejected:
        return Quarantined(origin, record.file, record.row, rejected.reason, rejected.detail)
    key = str(row["ranking_id"])
    if why := sieve.why_left_out(traits_of(row, record.user, key)):
        return LeftOut(why)
    return {"row": row, "key": key}


def _is_judged(row: dict[str, Any], unlabelled: str) -> bool:
    """Whether somebody said which image is better. Raises RowRejected for wrong labels, and for none where they count
    as unusable."""
    try:
        schema.chosen_side(row["label_0"], row["label_1"], row["has_label"])
    except RowRejected as rejected:
        if rejected.reason is not Reason.LABEL_MISSING or unlabelled == "quarantine":
            raise
        return False
    return True


def _row(record: Record, origin: str) -> dict[str, Any]:
    """Values in the types of the index. Raises RowRejected for a value that cannot be had in its type."""
    row: dict[str, Any] = dict.fromkeys(INDEX_SCHEMA.names)
    for column in INDEX_SCHEMA:
        value = record.values.get(column.name)
        if value is None:
            continue
        try:
            row[column.name] = _typed(value, column.type)
        except (ValueError, TypeError, OverflowError) as error:
            raise RowRejected(Reason.RECORD_MALFORMED, f"{column.name}: {error}"[:200]) from error
    if row["has_label"] is None:
        row["has_label"] = row["label_0"] is not None and row["label_1"] is not None
    row |= {name: p and p.encode() for name, p in zip(schema.IMAGES, record.images, strict=True)}
    if row["ranking_id"] is None:
        # The names of files without their folder: the same wherever the set lies.
        parts = [p and (locations.name_of(p.location), p.member, p.row) for p in record.images]
        row["ranking_id"] = stable_id(origin, *parts)
    row[ORIGIN] = f"{record.file}#{record.row}"
    return row


def _typed(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_string(kind):
        return str(value)
    if pa.types.is_integer(kind):
        return _integer(value)
    if pa.types.is_floating(kind):
        return float(value)
    if pa.types.is_boolean(kind):
        return _boolean(value)
    if pa.types.is_timestamp(kind):
        return _nanoseconds(value)
    return value


def _integer(value: Any) -> int:
    """Whole numbers as they are, anything else (names of people, hashes) by its own number."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    if text.removeprefix("-").isdecimal() and -(2**63) <= int(text) < 2**63:
        return int(text)
    return stable_id(text)


def _boolean(value: Any) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    text = str(value).strip().lower()
    if text not in words:
        raise ValueError(f"{text[:20]!r} is neither true nor false")
    return words[text]


def _nanoseconds(value: Any) -> int | None:
    """Since 1970: a time of parquet, ISO 8601 text (UTC where it names no zone), or seconds."""
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else int(value.astype("datetime64[ns]").astype(np.int64))
    if isinstance(value, int | float) and math.isfinite(value):
        return int(value * 1e9)
    time = datetime.fromisoformat(str(value).strip())
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return int(time.timestamp()) * 10**9 + time.microsecond * 1000
