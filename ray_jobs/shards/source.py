"""Which rows a job that makes shards takes, and how they are read."""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa

from dpo_core.data import files, latents, locations, schema
from dpo_core.data.quarantine import Quarantined, Reason, RowRejected, check_share
from dpo_core.data.scan import RowGroup, Scan, Verdict, scan_rows
from dpo_core.data.section import DataSection

Takes = Literal["decided", "labelled", "all"]
"""Rows with a winner; those and ties; those and rows whose labels say nothing."""

NO_LABEL = (Reason.LABEL_MISSING, Reason.LABEL_NAN, Reason.LABEL_OUT_OF_RANGE, Reason.LABEL_INCONSISTENT)


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of one row group: ``places[i]`` counts within the group, ``sides[i]`` was chosen (None: neither)."""

    group: RowGroup
    places: list[int]
    ids: list[str]
    sides: list[int | None]
    origins: tuple[tuple[str, int], ...] = ()
    """File and row that quarantine names for each row, where those are not ``group`` and ``places``."""

    given: "list[Row] | None" = None
    """The rows themselves, where they come from no file."""

    def origin(self, index: int) -> tuple[str, int]:
        """File and row (of the file) of a row of this part."""
        return self.origins[index] if self.origins else (self.group.file, self.group.first_row + self.places[index])


@dataclass(frozen=True)
class Source:
    """The rows that a job takes, in stored order."""

    parts: list[Part]
    schema: pa.Schema
    """Columns that are carried over: those of `dpo_core.data.schema` and what else the files have."""
    total: int
    """Rows of the files; ``total = rows + sum(left_out) + len(quarantined)``."""
    left_out: dict[str, int]
    quarantined: list[Quarantined]
    fingerprint: str
    """Hash of file names, file sizes, ids and which rows are taken; the same wherever the set lies."""
    bytes: int

    @property
    def rows(self) -> int:
        return sum(len(part.ids) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Row:
    """One row as a recipe sees it."""

    pair_id: str
    side: int | None
    """The chosen image, 0 or 1; None for a tie or where nobody chose."""
    captions: tuple[tuple[str, ...], ...]
    """Clean captions of image 0 and of image 1; the same where the set has one for both."""
    values: dict[str, Any]
    """The columns that ``Recipe.reads`` names."""
    read: Any
    """The two encoded images (bytes or None), or what ``Recipe.read`` made of the row."""


def read_source(section: DataSection, *, takes: Takes) -> Source:
    """Read labels, captions and ids of every row. Raises ValueError as `Plan.build` does."""
    if any(latents.is_cache(path) for path in section.paths):
        raise ValueError(f"{section.paths[0]} is a latent cache; data.paths must name pairs with images")
    found = files.expand_paths(section.paths)
    scan = scan_rows(found, per_image_captions=section.captions == "per_image")
    parts, quarantined, ties = _sort_out(scan, takes)
    check_share(quarantined, len(scan.pair_ids), section.max_quarantined_share)
    if not parts:
        raise ValueError(
            f"no row of {', '.join(section.paths)} can be used: {len(scan.pair_ids)} rows, {ties} ties, "
            f"{len(quarantined)} unusable"
        )
    return Source(
        parts=parts,
        schema=carried_schema([files.open_parquet(file).schema_arrow for file in found]),
        total=len(scan.pair_ids),
        left_out={"ties left out": ties} if ties else {},
        quarantined=quarantined,
        fingerprint=_fingerprint(found, parts),
        bytes=sum(max(locations.size(file), 0) for file in found),
    )


def given_source(rows: list[Row], *, rows_per_group: int = 32) -> Source:
    """Rows that come from no file: prompts to draw, for example. All columns are null unless the recipe writes them."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.pair_id}\x1f{row.side}\x1f{row.captions}\x1f{row.values}\x1f{row.read}\x1e".encode())
    groups = [rows[first : first + rows_per_group] for first in range(0, len(rows), rows_per_group)]
    parts = [
        Part(
            RowGroup("given", index, index * rows_per_group),
            places=list(range(len(group))),
            ids=[row.pair_id for row in group],
            sides=[row.side for row in group],
            given=group,
        )
        for index, group in enumerate(groups)
    ]
    return Source(parts, schema.SCHEMA, len(rows), {}, [], digest.hexdigest(), 0)


def carried_schema(given: list[pa.Schema]) -> pa.Schema:
    """Our columns first, then the others that the files have. Captions are lists where any file has lists.

    Raises ValueError when files disagree about a column of their own.
    """
    fields = {field.name: field for field in schema.SCHEMA}
    for own in given:
        for field in own:
            text = field.name in ("caption", *schema.CAPTION_PER_IMAGE)
            if text and pa.types.is_nested(field.type):
                fields[field.name] = pa.field(field.name, pa.list_(pa.string()))
            elif text:
                fields.setdefault(field.name, pa.field(field.name, pa.string()))
            elif fields.setdefault(field.name, field).type != field.type and field.name not in schema.SCHEMA.names:
                raise ValueError(f"data.paths: column {field.name} has different types in different files")
    return pa.schema([pa.field(field.name, field.type) for field in fields.values()])


def read_part(
    part: Part, carried: pa.Schema, *, per_image: bool, reads: tuple[str, ...]
) -> tuple[pa.Table, list[Row | RowRejected]]:
    """The rows of ``part`` as a table of ``carried``, and for each a `Row` or why it cannot be used."""
    if part.given is not None:
        nothing = [pa.nulls(len(part.ids), field.type) for field in carried]
        return pa.table(nothing, schema=carried), list(part.given)
    with files.open_parquet(part.group.file) as parquet:
        stored = files.read_row_group(parquet, part.group.file, part.group.index, carried.names).take(part.places)
    table = pa.table([_column(stored, field) for field in carried], schema=carried)
    images = [schema.read_images(table.column(name)) for name in schema.IMAGES]
    names = schema.caption_columns(per_image)
    texts = [schema.read_texts(table.column(name)) for name in names]
    values = [table.column(name).to_pylist() for name in reads]
    rows: list[Row | RowRejected] = []
    for index, pair_id in enumerate(part.ids):
        try:
            captions = [schema.clean_captions(column[index]) for column in texts]
            if images[0][index] and images[0][index] == images[1][index]:
                raise RowRejected(Reason.IMAGES_IDENTICAL)
        except RowRejected as rejected:
            rows.append(rejected)
            continue
        rows.append(
            Row(
                pair_id=pair_id,
                side=part.sides[index],
                captions=(captions[0], captions[-1]),
                values={name: column[index] for name, column in zip(reads, values, strict=True)},
                read=(images[0][index], images[1][index]),
            )
        )
    return table, rows


def with_read(row: Row, read: Any) -> Row:
    return replace(row, read=read)


def _column(stored: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    if field.name not in stored.column_names:
        return pa.nulls(len(stored), field.type)
    column = stored.column(field.name)
    if field.name in schema.IMAGES:
        return pa.array(schema.read_images(column), field.type)
    if field.name in ("caption", *schema.CAPTION_PER_IMAGE):
        rows = schema.read_texts(column)
        nested = pa.types.is_list(field.type)
        return pa.array([row and (list(row) if nested else row[0]) for row in rows], field.type)
    return column if column.type == field.type else column.cast(field.type, safe=False)


def _sort_out(scan: Scan, takes: Takes) -> tuple[list[Part], list[Quarantined], int]:
    parts: list[Part] = []
    quarantined: list[Quarantined] = []
    counts: Counter[str] = Counter()
    position = 0
    for group, verdicts in zip(scan.groups, scan.verdicts, strict=True):
        ids = scan.pair_ids[position : position + len(verdicts)]
        part = Part(group, [], [], [])
        for place, (pair_id, verdict) in enumerate(zip(ids, verdicts, strict=True)):
            if _taken(verdict, takes):
                part.places.append(place)
                part.ids.append(pair_id)
                part.sides.append(verdict if isinstance(verdict, int) else None)
            elif isinstance(verdict, RowRejected):
                row = group.first_row + place
                quarantined.append(Quarantined(pair_id, group.file, row, verdict.reason, verdict.detail))
            else:
                counts["ties"] += 1
        if part.ids:
            parts.append(part)
        position += len(verdicts)
    return parts, quarantined, counts["ties"]


def _taken(verdict: Verdict, takes: Takes) -> bool:
    if isinstance(verdict, RowRejected):
        return takes == "all" and verdict.reason in NO_LABEL
    return isinstance(verdict, int) or takes != "decided"


def _fingerprint(found: list[str], parts: list[Part]) -> str:
    digest = hashlib.sha256()
    for name, file in zip(files.short_names(found), found, strict=True):
        digest.update(f"{name}\x1f{locations.size(file)}\x1e".encode())
    for part in parts:
        for place, pair_id, side in zip(part.places, part.ids, part.sides, strict=True):
            digest.update(f"{place}\x1f{pair_id}\x1f{side}\x1e".encode())
    return digest.hexdigest()
