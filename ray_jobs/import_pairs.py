"""palate import: turn a public preference set, or any files with pairs, into shards to train on."""

import hashlib
import math
import sys
from functools import lru_cache
from typing import Any

from pydantic import Field, model_validator
from rich.console import Console

from dpo_core.data import images, schema
from dpo_core.data.files import JOB_FILE, open_parquet, read_columns
from dpo_core.data.labelled import LABELLED_BY, labelled_by
from dpo_core.data.locations import name_of, there
from dpo_core.data.quarantine import Reason, RowRejected, counts_by_reason, told_counts
from dpo_core.data.scan import RowGroup
from dpo_core.data.sources import AnySource, PickAPic, Pointer
from dpo_core.data.sources.fetch import ImageReader
from dpo_core.data.sources.filters import FilterSection
from dpo_core.data.sources.index import (
    ORIGIN,
    Facts,
    index_files,
    index_key,
    read_facts,
    shard_schema,
    taken_rows,
    write_index,
)
from dpo_core.data.sources.table import Unlabelled
from dpo_core.data.writing import OutFolder, settled
from dpo_core.section import Section
from ray_jobs.cluster import ClusterSection
from ray_jobs.config import run_verb
from ray_jobs.shards.job import (
    Maker,
    Outcome,
    Recipe,
    Record,
    Row,
    ShardJob,
    read_record,
    run_shards,
    settings_of,
)
from ray_jobs.shards.source import Part, Source

INDEX = ".index"
"""Folder of the index, in the folder of the set; the dot keeps it out of ``data.paths``."""


class ImportJob(Section):
    """A preference set in our own schema: which source, which of its pairs, into which folder."""

    out: OutFolder = "runs/import"
    """Folder for the parquet shards; data.paths of other jobs may name it."""
    source: AnySource = PickAPic()
    filters: FilterSection = FilterSection()
    check: bool = True
    """Decode every image, so that broken ones are found now and not in training; false looks at headers alone."""
    max_megapixels: float = Field(default=16.0, gt=0)
    """Largest usable image, in millions of pixels; checked before decoding."""
    shard_pairs: int = Field(default=1000, ge=1)
    """Pairs per shard, rounded up to whole row groups of 50; a shard is what a killed job repeats."""
    max_quarantined_share: float = Field(default=0.05, ge=0, le=1)
    """Stop when more than this share of the pairs cannot be used."""
    cluster: ClusterSection = ClusterSection(num_workers=0)

    @model_validator(mode="after")
    def _labels_fit(self) -> "ImportJob":
        if isinstance(getattr(self.source, "label", None), Unlabelled) and self.filters.unlabelled != "keep":
            raise ValueError(
                f"source.label.kind=none says that nobody has judged the pairs, but filters.unlabelled="
                f"{self.filters.unlabelled} takes none of them; use filters.unlabelled=keep"
            )
        return self


class ImportRecipe(Recipe):
    """Fetches the images of a row of the index."""

    columns = (
        *(schema.SCHEMA.field(name) for name in schema.IMAGES),
        *(schema.SCHEMA.field(name) for name in ("are_different", "best_image_uid", "image_0_uid", "image_1_uid")),
    )
    reads = ("best_image_uid", "image_0_uid", "image_1_uid", "has_label")
    uses_gpu = False

    def __init__(self, job: ImportJob, *, per_image: bool, labelled: list[str]) -> None:
        """``labelled`` are the scorers that labelled the source, where it is a set of ours."""
        self.per_image, self._labelled = per_image, labelled
        self._limits = images.ImageLimits(1, int(job.max_megapixels * 1e6), math.inf)
        self._check, self._min_side = job.check, job.filters.min_side

    def read(self, row: Row) -> tuple[bytes, bytes, int]:
        """Both images and the smallest of their sides."""
        pointers = [data and Pointer.decode(data) for data in row.read]
        found, side = list[bytes](), sys.maxsize
        for name, pointer in zip(schema.IMAGES, pointers, strict=True):
            try:
                found.append(_reader().read(pointer))
                side = min(side, *self._size(found[-1]))
            except RowRejected as rejected:
                raise RowRejected(rejected.reason, f"{name}: {rejected.detail}".rstrip(": ")) from rejected
        if found[0] == found[1]:
            raise RowRejected(Reason.IMAGES_IDENTICAL)
        return found[0], found[1], side

    def load(self) -> Maker:
        return lambda rows: [self._made(row) for row in rows]

    def _size(self, data: bytes) -> tuple[int, int]:
        if self._check:
            height, width, _ = images.decode(data, self._limits).shape
            return height, width
        return images.header_size(data, self._limits)

    def _made(self, row: Row) -> Outcome:
        *found, side = row.read
        if side < self._min_side:
            return Outcome(left_out="smaller than min_side")
        uids = [row.values[f"image_{i}_uid"] or uid_of(data) for i, data in enumerate(found)]
        best = row.values["best_image_uid"] or ("none" if row.side is None else uids[row.side])
        best = None if row.values["has_label"] is False else best
        values = dict(zip(schema.IMAGES, found, strict=True)) | {"are_different": True, "best_image_uid": best}
        return Outcome.made(values | {"image_0_uid": uids[0], "image_1_uid": uids[1]})

    def report(self, files: list[str]) -> dict[str, Any]:
        """The scorers that labelled the set, where any did."""
        del files
        return {LABELLED_BY: self._labelled} if self._labelled else {}


def uid_of(data: bytes) -> str:
    """The name of an image that has none: what its bytes are."""
    return hashlib.sha256(data).hexdigest()[:32]


@lru_cache(maxsize=1)
def _reader() -> ImageReader:
    """The reader of this process; kept between shards for the files it has open."""
    return ImageReader()


def import_pairs(job: ImportJob, console: Console | None = None) -> Record:
    """Fill the folder, or what is missing of it; returns what its job.json then says.

    Raises ValueError when the source cannot be read, when too many pairs cannot be used, and when the folder holds
    another set.
    """
    console = console or Console()
    _refuse_another_job(job)
    return run_shards(shard_job(job, indexed(job, console)), console)


def indexed(job: ImportJob, console: Console) -> Facts:
    """The index of the source, written now unless it is there."""
    folder, key = index_folder(job), index_key(job.source, job.filters)
    found = read_facts(folder)
    if found is not None and found.key == key:
        return found
    with console.status("reading labels and captions") as status:
        return write_index(
            folder, job.source, job.filters, key, lambda rows: status.update(f"reading labels and captions: {rows:,}")
        )


def shard_job(job: ImportJob, facts: Facts) -> ShardJob:
    """The index as the source of a job that makes shards. Raises ValueError when no pair is taken."""
    if not facts.taken:
        reasons = [f"{count} {why}" for why, count in facts.left_out.items()]
        lost = facts.quarantined
        if lost:
            first = f"{lost[0].reason} {lost[0].detail}".rstrip()
            reasons.append(
                f"{len(lost)} in quarantine ({told_counts(counts_by_reason(lost))}; the first is row {lost[0].row} of "
                f"{lost[0].file}: {first})"
            )
        raise ValueError(f"no pair is left of {facts.total}: {', '.join(reasons) or 'the source tells of none'}")
    files = index_files(index_folder(job))
    source = Source(
        parts=[part for file in files for part in _parts(file)],
        schema=shard_schema(job.source, facts),
        total=facts.total,
        left_out=facts.left_out,
        quarantined=facts.quarantined,
        fingerprint=facts.key,
        bytes=0,
    )
    per_image = "caption_0" in job.source.extra_columns()
    recipe = ImportRecipe(job, per_image=per_image, labelled=labelled_by(getattr(job.source, "paths", [])))
    folder, share = job.out, job.max_quarantined_share
    return ShardJob("import", folder, source, recipe, _settings(job), job.cluster, job.shard_pairs, share)


def _parts(file: str) -> list[Part]:
    """The row groups of a file of the index."""
    parts, first = list[Part](), 0
    with open_parquet(file) as parquet:
        told = read_columns(parquet, file, [ORIGIN, *schema.LABELS]).to_pylist()
        for group in range(parquet.num_row_groups):
            rows = told[first : first + parquet.metadata.row_group(group).num_rows]
            sides = [
                None if row["label_0"] is None else schema.chosen_side(row["label_0"], row["label_1"]) for row in rows
            ]
            origins = [row[ORIGIN].rpartition("#") for row in rows]
            ids = [f"{name_of(origin)}#{row}" for origin, _, row in origins]
            # Millions of pairs share a few names of files.
            places, named = list(range(len(rows))), tuple((sys.intern(origin), int(row)) for origin, _, row in origins)
            parts.append(Part(RowGroup(file, group, first), places, ids, sides, named))
            first += len(rows)
    return parts


def index_folder(job: ImportJob) -> str:
    return f"{settled(job.out)}/{INDEX}"


def _settings(job: ImportJob) -> dict[str, Any]:
    return settings_of(job, leave_out=("out", "cluster", "max_quarantined_share", "shard_pairs"))


def _refuse_another_job(job: ImportJob) -> None:
    """Before a source is read that may be large."""
    folder = settled(job.out)
    if there(f"{folder}/{JOB_FILE}"):
        found = read_record(folder)
        wanted = Record("import", found.source, _settings(job), job.shard_pairs)
        if differences := found.differences(wanted):
            raise ValueError(f"{folder} holds another set ({differences}); choose another out or delete it")


def plan_rows(job: ImportJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config: the labels of the whole source are read, no image is."""
    facts = Facts(index_key(job.source, job.filters))
    for _ in taken_rows(job.source, job.filters, facts):
        pass
    shards = math.ceil(facts.taken / job.shard_pairs)
    return [
        ("folder", settled(job.out)),
        ("source", f"{job.source.kind}: {job.source.expects}"),
        ("pairs", f"{facts.taken:,} of {facts.total:,}"),
        ("left out", ", ".join(f"{count:,} {why}" for why, count in facts.left_out.items()) or "none"),
        ("quarantine", f"{len(facts.quarantined):,} before any image is read"),
        ("images", f"{2 * facts.taken:,} to read" + (" and decode" if job.check else "")),
        ("shards", f"{shards:,}"),
        ("workers", "in this process" if job.cluster.num_workers == 0 else str(job.cluster.num_workers)),
    ]


def main(argv: list[str] | None = None) -> int:
    def run(job: ImportJob) -> None:
        import_pairs(job)

    return run_verb(schema=ImportJob, run=run, plan=plan_rows, argv=argv, doc=__doc__ or "", verb="import")


if __name__ == "__main__":
    # Ray finds functions in its workers by the name of their module, which must not be __main__.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["import", *sys.argv[1:]]))
