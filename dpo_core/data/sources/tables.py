"""Rows of parquet, JSON, JSON lines and CSV files, of which only the columns asked for are read, and never an image."""

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dpo_core.data import locations, schema
from dpo_core.data.quarantine import Quarantined, Reason
from dpo_core.data.sources.base import Pointer, malformed

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
CHUNK = 1 << 16
BATCH_ROWS = 1024
CSV_FIELD_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: ``values`` of the columns asked for (None where a cell is empty), ``images`` as pointers."""

    file: str
    row: int
    values: dict[str, Any]
    images: dict[str, Any]
    """`Pointer`, a list of them where the cell holds a list of names, or None."""


@dataclass(frozen=True)
class Columns:
    """What is read of a file. A file without a ``required`` or an ``images`` column is refused."""

    required: tuple[str, ...]
    images: tuple[str, ...] = ()
    """Encoded images, structs with a field ``bytes`` (neither is read), or names of files below ``folder``."""
    optional: tuple[str, ...] = ()
    folder: str = ""
    """Folder or archive that names of images belong to; the file's own folder when empty."""


def read_table(file: str, columns: Columns) -> Iterator[TableRow | Quarantined]:
    """The rows of ``file`` in order. Raises ValueError when it cannot be read or lacks a column."""
    if columns.folder.lower().endswith(COMPRESSED):
        raise ValueError(
            f"source.images: {columns.folder} cannot be read out of order; unpack it, or give a .zip or .tar"
        )
    name = locations.name_of(file).partition("?")[0].lower()
    if name.endswith(".parquet"):
        yield from _parquet(file, columns)
        return
    if not name.endswith(SUFFIXES):
        raise ValueError(f"{file} must end in one of {', '.join(SUFFIXES)}")
    try:
        with locations.open_binary(file) as stream:
            records = _csv(stream, name) if name.endswith((".csv", ".tsv")) else _json(stream, name)
            for row, record in enumerate(records):
                yield _row(file, row, record, columns)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    except _NotATable as error:
        raise ValueError(f"{file} {error}") from error


class _NotATable(Exception):
    """The file as a whole has another form."""


def _row(file: str, row: int, record: Any, columns: Columns) -> TableRow | Quarantined:
    if isinstance(record, Exception):
        return malformed(file, row, str(record))
    if not isinstance(record, dict):
        return malformed(file, row, f"is {type(record).__name__}, not a set of named values")
    for name in (*columns.required, *columns.images):
        if name not in record:
            return malformed(file, row, f"has no {name!r}; it has {', '.join(map(str, record)) or 'nothing'}"[:300])
    values = {name: record.get(name) for name in (*columns.required, *columns.optional)}
    return _with_images(file, row, values, {name: record[name] for name in columns.images}, columns)


def _with_images(file: str, row: int, values: dict, names: dict[str, Any], columns: Columns) -> TableRow | Quarantined:
    folder = columns.folder or locations.folder_of(file)
    try:
        images = {name: _pointer(folder, value) for name, value in names.items()}
    except ValueError as error:
        return malformed(file, row, str(error), Reason.IMAGE_MISSING)
    return TableRow(file, row, values, images)


def _pointer(folder: str, value: Any) -> Any:
    """A pointer for each name in ``value``. Raises ValueError for what is no name of a file below ``folder``."""
    if isinstance(value, Pointer):
        return value
    if isinstance(value, list | tuple):
        return [_pointer(folder, name) for name in value]
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:60]!r} is no name of an image file")
    if locations.is_archive(folder):
        return Pointer(folder, locations.normal_name(value))
    return Pointer(locations.inside(folder, value))


def _parquet(file: str, columns: Columns) -> Iterator[TableRow | Quarantined]:
    with locations.open_parquet(file) as parquet:
        fields = {field.name: field.type for field in parquet.schema_arrow}
        missing = [name for name in (*columns.required, *columns.images) if name not in fields]
        if missing:
            raise ValueError(
                f"{file}: the column(s) {', '.join(missing)} are missing; the file has {', '.join(fields) or 'none'}"
            )
        cells = [name for name in columns.images if schema.is_image(fields[name])]
        names = [name for name in columns.images if name not in cells]
        for name in names:
            if not schema.is_text(fields[name]):
                raise ValueError(
                    f"{file}: column {name} has type {fields[name]}; it must be binary, a struct with a binary field "
                    "'bytes', or the name of a file"
                )
        wanted = [name for name in (*columns.required, *columns.optional) if name in fields]
        first = 0
        try:
            read = list(dict.fromkeys([*wanted, *names]))
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=read, use_threads=False):
                lists = {name: _values(pa.chunked_array([batch.column(name)])) for name in read}
                for place in range(len(batch)):
                    values = {name: lists[name][place] for name in wanted}
                    images = {name: Pointer(file, name, first + place) for name in cells}
                    images |= {name: lists[name][place] for name in names}
                    yield _with_images(file, first + place, values, images, columns)
                first += len(batch)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python values; text survives bytes that are not UTF-8, times keep their nanoseconds."""
    kind = column.type
    if schema.is_text(kind):
        rows = schema.read_texts(column)
        return rows if pa.types.is_nested(kind) else [row and row[0] for row in rows]
    if pa.types.is_timestamp(kind):
        return list(column.cast(pa.timestamp("ns"), safe=False).to_numpy())
    return column.to_pylist()


def _csv(stream: Any, name: str) -> Iterator[Any]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
    csv.field_size_limit(CSV_FIELD_LIMIT)
    rows = csv.DictReader(text, delimiter="\t" if name.endswith(".tsv") else ",", strict=True)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield ValueError(f"is no CSV: {error}")
            continue
        if None in row or None in row.values():
            yield ValueError(f"has another number of cells than the header ({len(rows.fieldnames or ())})")
        else:
            yield {key: value if value != "" else None for key, value in row.items()}


def _json(stream: Any, name: str) -> Iterator[Any]:
    if not name.endswith(".json"):
        for line in stream:
            if line.strip():
                yield _parsed(line)
        return
    start = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    stream.seek(0)
    if start[:1] == b"{":
        # One object: lines of objects under the wrong name, or columns as lists.
        lines = stream.readline(), stream.readline()
        stream.seek(0)
        if isinstance(_parsed(lines[0]), dict) and (not lines[1].strip() or isinstance(_parsed(lines[1]), dict)):
            yield from _json(stream, "lines.jsonl")
            return
    if start[:1] != b"[":
        raise _NotATable("must hold a JSON list of objects, or one object per line")
    yield from _json_list(stream)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        return ValueError(f"is no JSON: {error}"[:200])


def _json_list(stream: Any) -> Iterator[Any]:
    """The items of a JSON list, one in memory at a time; what is read of a broken one cannot be gone on from."""
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    text, ended, opened, wait = "", False, False, 0
    while True:
        text = text.lstrip(" \t\r\n" if not opened else " \t\r\n,")
        if not opened and text:
            text, opened = text[1:], True
            continue
        if opened and text.startswith("]"):
            return
        if text and (ended or len(text) >= wait):
            try:
                item, end = decoder.raw_decode(text)
                # A number may go on in the next chunk.
                if end < len(text) or ended:
                    yield item
                    text, wait = text[end:], 0
                    continue
            except (ValueError, RecursionError) as error:
                if ended or isinstance(error, RecursionError):
                    raise _NotATable(f"is no JSON list of objects: {error}") from error
                wait = 2 * len(text)
        if ended:
            raise _NotATable("is no JSON list of objects: it ends before its last bracket")
        chunk = stream.read(CHUNK)
        ended = not chunk
        text += utf8.decode(chunk, final=ended)


def text_of(value: Any) -> str | None:
    """A cell as text: numbers that are whole have no point, booleans are written small, nothing stays nothing."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else str(value)


def number_of(value: Any) -> float | None:
    """A cell as a number, None where it is empty. Raises ValueError for what is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, int | float | str):
        return float(value)
    raise ValueError(f"{value!r} is no number")


def texts_of(value: Any) -> list[str] | None:
    """A caption cell: a text or a list of texts, None where it is empty."""
    if value is None:
        return None
    items: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    return [str(text) for text in (text_of(item) for item in items) if text is not None]
