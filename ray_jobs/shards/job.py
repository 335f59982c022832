"""A job that makes shards from shards: rows of a preference set in, rows of a preference set out.

Such a job is a `Recipe` and a few lines that fill a `ShardJob`. The recipe says how a row becomes rows; everything else
(reading, Ray, resuming, quarantine, totals) is here and in `shards/work.py`. For example::

    class Shout(Recipe):
        columns = (pa.field("caption", pa.string()),)

        def load(self) -> Maker:  # once per worker: a model, a client
            return lambda rows: [Outcome.made({"caption": row.captions[0][0].upper()}) for row in rows]

    source = read_source(job.data, takes="decided")
    work = ShardJob("shout", "runs/shout", source, Shout(), settings_of(job, leave_out=("cluster",)), job.cluster)
    run_shards(work, console)  # and `plan_shards(work)` for --dry-run

The folder then holds ``pairs-*.parquet`` (give the folder to ``data.paths``), ``quarantine.parquet`` and ``job.json``.
Shards get their names only when the last one is done, so a folder with pairs is a whole set.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from dpo_core.data import locations
from dpo_core.data.files import JOB_FILE, QUARANTINE_FILE
from dpo_core.data.quarantine import Quarantine, check_share, counts_by_reason, write_quarantine
from dpo_core.data.scan import REMOTE_FILES_AT_ONCE
from dpo_core.data.writing import files_named, move, names_in, remove_leftovers, settled, write_text
from dpo_core.section import Section
from ray_jobs.cluster import ClusterSection
from ray_jobs.shards.source import Part, Source, given_source, read_source
from ray_jobs.shards.work import Maker, Outcome, Recipe, Row, Summary, Task, read_summary, work_here, work_on_ray

__all__ = [
    "Maker",
    "Outcome",
    "Recipe",
    "Row",
    "ShardJob",
    "Source",
    "given_source",
    "plan_shards",
    "read_record",
    "read_source",
    "rows_to_do",
    "run_shards",
    "settings_of",
    "shard_files",
]

PART = ".part"
"""How the names of shards end until all are there."""
RECORD_LIMIT = 1 << 26
"""Bytes of a ``job.json`` that are read."""

FORMAT = 1
"""Raised whenever shards of before cannot be gone on with any more."""


@dataclass(frozen=True)
class ShardJob:
    """What is made of which rows, where and by how many."""

    verb: str
    folder: str | Path
    """On a disk that every node sees, or in a bucket."""
    source: Source
    recipe: Recipe
    settings: dict[str, Any]
    """All of the config that changes what is made; see `settings_of`."""
    cluster: ClusterSection
    shard_pairs: int = 64
    """Rows per shard, rounded up to whole row groups of the source; a shard is what a killed job repeats."""
    max_quarantined_share: float = 0.05

    def __post_init__(self) -> None:
        if missing := [name for name in self.recipe.reads if name not in self.source.schema.names]:
            raise ValueError(f"data.paths: the column(s) {', '.join(missing)} are missing; {self.verb} reads them")


@dataclass(frozen=True)
class Record:
    """What ``job.json`` says."""

    verb: str
    source: str
    """Fingerprint of the source."""
    settings: dict[str, Any]
    shard_pairs: int
    complete: bool = False
    totals: dict[str, Any] = field(default_factory=dict)
    """Rows in and out, and whatever the recipe counts."""
    report: dict[str, Any] = field(default_factory=dict)
    """What the recipe found out about the whole set."""
    format: int = FORMAT

    def differences(self, other: "Record") -> str:
        """What makes the shards of two jobs different, in words; empty when they are interchangeable."""
        ours, theirs = _decided(self), _decided(other)
        return ", ".join(
            f"{name} {_shown(ours.get(name))} there, {_shown(theirs.get(name))} here"
            for name in dict.fromkeys([*ours, *theirs])
            if ours.get(name) != theirs.get(name)
        )


def settings_of(config: Section, *, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of ``config`` by dotted name, without those named in ``leave_out`` and everything below them."""
    left_out = tuple(leave_out)

    def flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            path = f"{prefix}{name}"
            if path in left_out:
                continue
            if isinstance(value, Mapping) and value:
                yield from flat(value, f"{path}.")
            else:
                yield path, value

    return dict(flat(config.model_dump(mode="json"), ""))


def run_shards(job: ShardJob, console: Console | None = None) -> Record:
    """Fill the folder, or what is missing of it; returns what ``job.json`` then says.

    Raises ValueError when the folder holds another set, when too many rows cannot be used, and as the recipe does.
    """
    console = console or Console()
    wanted = Record(job.verb, job.source.fingerprint, job.settings, job.shard_pairs)
    folder = settled(job.folder)
    there = names_in(folder)
    if JOB_FILE in there:
        found = read_record(folder)
        if differences := found.differences(wanted):
            raise ValueError(f"{folder} holds another set ({differences}); choose another folder or delete it")
        if found.complete:
            console.print(f"nothing to do: {folder} is complete", soft_wrap=True)
            return found
    elif any(not name.startswith(".") for name in there):
        raise ValueError(f"{folder} is not empty and holds no {JOB_FILE}; choose another folder or empty it")
    _write_record(folder, wanted)
    remove_leftovers(folder)
    tasks = make_tasks(job)
    done_before = finished(tasks, there)
    missing = [task for task in tasks if task.index not in done_before]
    if not missing or job.cluster.num_workers == 0:
        done = work_here(missing, job.recipe, job.source.schema)
    else:
        done = work_on_ray(missing, job.recipe, job.source.schema, job.cluster)
    judged = _judge(done, job, tasks)
    _follow(judged, len(tasks), len(tasks) - len(missing), console)
    return _finish(job, folder, wanted, finished(tasks, names_in(folder)), len(tasks), console)


def plan_shards(job: ShardJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells of every such job; a verb adds what its calls or passes cost."""
    folder, tasks, source = settled(job.folder), make_tasks(job), job.source
    there = len(finished(tasks, names_in(folder)))
    left_out = [f"{len(source.quarantined)} in quarantine", *(f"{n} {why}" for why, n in source.left_out.items())]
    return [
        ("folder", folder),
        ("rows", f"{source.rows:,} of {source.total:,} ({', '.join(left_out)})"),
        ("shards", f"{len(tasks):,}, of which {there:,} are there"),
        ("size", f"{source.bytes / 1e6:,.1f} MB of source files; what is made is about as large"),
        ("workers", "in this process" if job.cluster.num_workers == 0 else str(job.cluster.num_workers)),
    ]


def rows_to_do(job: ShardJob) -> int:
    """Rows of the shards that are not there yet: what the job still costs."""
    tasks = make_tasks(job)
    done = finished(tasks, names_in(settled(job.folder)))
    return sum(len(part.ids) for task in tasks if task.index not in done for part in task.parts)


def make_tasks(job: ShardJob) -> list[Task]:
    """One task per shard: consecutive parts of the source with at least ``shard_pairs`` rows together."""
    shards: list[list[Part]] = []
    rows = job.shard_pairs
    for part in job.source.parts:
        if rows >= job.shard_pairs:
            shards.append([])
            rows = 0
        shards[-1].append(part)
        rows += len(part.ids)
    folder = settled(job.folder)
    return [Task(index, f"{folder}/{_unfinished(index)}", parts) for index, parts in enumerate(shards)]


def shard_files(folder: str | Path) -> list[str]:
    """The shards of a complete job, in order."""
    return files_named(folder, "pairs-")


def read_record(folder: str | Path) -> Record:
    """What ``job.json`` says. Raises ValueError when it is damaged or of another format."""
    path = f"{settled(folder)}/{JOB_FILE}"
    try:
        record = Record(**json.loads(locations.read_bytes(path, RECORD_LIMIT)))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as the description of a job: {error}") from error
    if record.format != FORMAT:
        raise ValueError(f"{folder} is of format {record.format}, this version reads and writes {FORMAT}")
    return record


def _finish(job: ShardJob, folder: str, record: Record, done: dict[int, str], tasks: int, console: Console) -> Record:
    """Write and judge the quarantine, then name the shards and declare the set complete."""
    assert len(done) == tasks, "every task has written its shard"
    shards = [f"{folder}/{done[index]}" for index in range(tasks)]
    summaries = [read_summary(file) for file in shards]
    quarantined = [*job.source.quarantined, *(found for summary in summaries for found in summary.quarantined)]
    write_quarantine(f"{folder}/{QUARANTINE_FILE}", quarantined)
    check_share(quarantined, job.source.total, job.max_quarantined_share)
    totals = _totals(job.source, summaries, len(quarantined))
    report = job.recipe.report(shards)
    with ThreadPoolExecutor(REMOTE_FILES_AT_ONCE if locations.is_url(folder) else 1) as pool:
        unnamed = [file for file in shards if file.endswith(PART)]
        list(pool.map(lambda file: move(file, file.removesuffix(PART)), unnamed))
    complete = Record(**{**asdict(record), "complete": True, "totals": totals, "report": report})
    _write_record(folder, complete)
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts_by_reason(quarantined).items()) or "none"
    lines = [(job.verb, folder), ("rows", ", ".join(f"{count:,} {name}" for name, count in totals.items()))]
    for name, value in [*lines, ("quarantine", reasons), *report.items()]:
        console.print(f"{name:<10} {value}", soft_wrap=True, markup=False, highlight=False)
    return complete


def _judge(done: Iterator[int], job: ShardJob, tasks: list[Task]) -> Iterator[int]:
    """Stop early where rows fail so often that chance does not explain it: calls cost money."""
    quarantine = Quarantine([], limit=job.max_quarantined_share)
    for index in done:
        summary = read_summary(tasks[index].path)
        quarantine.add(summary.quarantined, rows_read=summary.rows)
        yield index


def _totals(source: Source, summaries: list[Summary], quarantined: int) -> dict[str, Any]:
    left_out: Counter[str] = Counter(source.left_out)
    counts: Counter[str] = Counter()
    for summary in summaries:
        left_out.update(summary.left_out)
        counts.update(summary.counts)
    made = sum(summary.made for summary in summaries)
    added = {name: round(count, 6) for name, count in counts.items()}
    return {"read": source.total, "made": made, "in quarantine": quarantined, **left_out, **added}


def _follow(done: Iterator[int], total: int, start: int, console: Console) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("shards", total=total, completed=start)
        for _ in done:
            progress.advance(bar)


def _unfinished(index: int) -> str:
    return f"pairs-{index:05d}.parquet{PART}"


def finished(tasks: list[Task], names: Iterable[str]) -> dict[int, str]:
    """The finished shard of each task that has one: under its last name if the job died while it named them."""
    there = set(names)
    last_names = {task.index: _unfinished(task.index).removesuffix(PART) for task in tasks}
    found = {index: next((n for n in (name + PART, name) if n in there), "") for index, name in last_names.items()}
    return {index: name for index, name in found.items() if name}


def _decided(record: Record) -> dict[str, Any]:
    parts = {"verb": record.verb, "source": record.source[:12], "shard_pairs": record.shard_pairs}
    return parts | record.settings


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _write_record(folder: str, record: Record) -> None:
    write_text(f"{folder}/{JOB_FILE}", json.dumps(asdict(record), indent=1) + "\n")
