"""palate prepare: check preference data and cache its latents."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from rich.console import Console

from dpo_core.data.labelled import labelled_by
from dpo_core.data.latents import (
    LatentCache,
    cached_captions,
    is_cache,
    quarantine_file,
    read_cache,
    read_shape,
    shard_files,
    shard_name,
    shard_quarantine,
    write_cache,
)
from dpo_core.data.plan import Plan, Slot
from dpo_core.data.quarantine import check_share, counts_by_reason, write_quarantine
from dpo_core.data.section import DataSection
from dpo_core.data.writing import OutFolder, names_in, remove_leftovers, settled
from dpo_core.families import SD15, AnyFamily, Precision
from dpo_core.section import Section
from ray_jobs.cluster import ClusterSection
from ray_jobs.config import run_verb

if TYPE_CHECKING:
    from ray_jobs import encoding

CAPTIONS_PER_SHARD = 512
"""Captions of a shard of text states."""


class CacheSection(Section):
    """What is written, and how it is computed."""

    folder: OutFolder = "latents"
    """Folder of the cache, on a disk that every node sees or in a bucket (s3://, gs://); data.paths of a training job
    may name it."""
    dtype: Literal["float32", "float16"] = "float32"
    """How posteriors and text states are stored; float16 halves the space and rounds at the fourth digit."""
    shard_pairs: int = Field(default=256, ge=1)
    """Pairs per shard, rounded up to whole row groups of the source; a shard is what a killed job repeats."""
    precision: Precision = "fp32"
    """Precision of the encoders."""
    flips: bool = False
    """Also encode the mirrored crops, so that data.flip works on the cache; doubles its size."""
    text: bool = False
    """Also store what the text encoders say of every caption, each caption once; training then loads none of them."""


class PrepareJob(Section):
    """A latent cache: which pairs, encoded by which model, into which folder."""

    family: AnyFamily = SD15()
    data: DataSection = DataSection()
    cache: CacheSection = CacheSection()
    cluster: ClusterSection = ClusterSection()


def make_shards(plan: Plan, shard_pairs: int) -> list[range]:
    """Ranges of ``plan.groups``, each with at least ``shard_pairs`` usable rows (the last may have fewer)."""
    shards, first = list[range](), 0
    for group in range(len(plan.groups)):
        if plan.starts[group + 1] - plan.starts[first] >= shard_pairs or group + 1 == len(plan.groups):
            shards.append(range(first, group + 1))
            first = group + 1
    return shards


def wanted_cache(job: PrepareJob, plan: Plan) -> LatentCache:
    """The description of the cache that ``job`` makes. Raises ValueError when the model has no autoencoder."""
    from dpo_core.data.encoder import encoder_hash, text_hash

    data = job.data
    return LatentCache(
        encoder=encoder_hash(job.family),
        model=job.family.model,
        precision=job.cache.precision,
        resolution=data.resolution,
        captions=data.captions,
        dtype=job.cache.dtype,
        source=plan.fingerprint,
        shard_pairs=job.cache.shard_pairs,
        flips=job.cache.flips,
        text=text_hash(job.family) if job.cache.text else "",
        limits={"min_side": data.min_side, "max_megapixels": data.max_megapixels, "max_aspect": data.max_aspect},
        total=plan.total,
        ties=plan.ties,
        labelled_by=tuple(labelled_by(data.paths)),
    )


def image_plan(job: PrepareJob) -> Plan:
    """The plan of the images to encode. Raises ValueError as `Plan.build`, and for settings a cache cannot hold."""
    data = job.data
    if needs_images := data.needs_images(flips=job.cache.flips):
        raise ValueError(
            f"a cache holds latents of one centre crop of each image, which cannot serve {needs_images}; leave that at "
            "its default, or train on the images"
        )
    plan = Plan.build(data)
    if plan.cache is not None:
        raise ValueError(f"{data.paths[0]} is a latent cache already; data.paths must name pairs with images")
    return plan


def plan_rows(job: PrepareJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config."""
    from dpo_core.data.encoder import latent_shape

    plan = image_plan(job)
    shape = latent_shape(job.family, job.data.resolution)
    values = plan.rows * 2 * 2 * math.prod(shape) * (2 if job.cache.flips else 1)
    size = values * (4 if job.cache.dtype == "float32" else 2)
    extra = (", mirrored too" if job.cache.flips else "") + ("; and text states" if job.cache.text else "")
    shards = make_shards(plan, job.cache.shard_pairs)
    return [
        ("cache folder", settled(job.cache.folder)),
        ("usable pairs", f"{plan.rows:,} ({len(plan.quarantined)} in quarantine, {plan.ties} ties left out)"),
        ("shards", f"{len(shards):,}, of which {len(done_shards(job.cache.folder, len(shards))):,} are there"),
        ("size", f"{size / 1e6:,.1f} MB (latents of {' x '.join(map(str, shape))}{extra})"),
        ("workers", "in this process" if job.cluster.num_workers == 0 else str(job.cluster.num_workers)),
    ]


def done_shards(folder: str, count: int) -> set[int]:
    names = set(names_in(settled(folder)))
    return {index for index in range(count) if shard_name(index) in names}


def prepare(job: PrepareJob, console: Console | None = None) -> str:
    """Fill the cache folder, or what is missing of it; returns the folder.

    Raises ValueError when the data or the model cannot be read, when too many images cannot be used, and when the
    folder holds another cache.
    """
    console = console or Console()
    folder = settled(job.cache.folder)
    plan = image_plan(job)
    cache = wanted_cache(job, plan)
    if is_cache(folder):
        found = read_cache(folder)
        if differences := found.differences(cache):
            raise ValueError(f"{folder} holds another cache ({differences}); choose another cache.folder or delete it")
        if found.complete:
            console.print(f"nothing to do: {folder} is complete")
            return folder
    write_cache(folder, cache)
    remove_leftovers(folder)
    shards = make_shards(plan, job.cache.shard_pairs)
    done = done_shards(folder, len(shards))
    missing = [index for index in range(len(shards)) if index not in done]
    follow("shards", encode(job, folder, plan, shards, missing), len(shards), len(done), console)
    if job.cache.text:
        prepare_texts(job, folder, console)
    return finish(job, folder, plan, cache, console)


def encode(job: PrepareJob, folder: str, plan: Plan, shards: list[range], missing: list[int]) -> Iterator[None]:
    """Write the ``missing`` shards; yields after each one."""
    from ray_jobs import encoding

    tasks = [encoding.ShardTask(f"{folder}/{shard_name(index)}", slots_of(plan, shards[index])) for index in missing]
    if job.cluster.num_workers == 0 or not tasks:
        return encoding.encode_here(tasks, recipe_of(job))
    return encoding.encode_on_ray(tasks, recipe_of(job), job.cluster)


def prepare_texts(job: PrepareJob, folder: str, console: Console) -> None:
    """Write the states of every caption in the shards, and of the empty one that dropout needs, once each."""
    from dpo_core.data.texts import text_shard_name
    from ray_jobs import encoding

    captions = sorted({"", *cached_captions(shard_files(folder))})
    starts = range(0, len(captions), CAPTIONS_PER_SHARD)
    names, done = [text_shard_name(index) for index in range(len(starts))], set(names_in(folder))
    tasks = [
        encoding.TextTask(f"{folder}/{name}", captions[start : start + CAPTIONS_PER_SHARD])
        for name, start in zip(names, starts, strict=True)
        if name not in done
    ]
    if job.cluster.num_workers == 0 or not tasks:
        written = encoding.encode_texts_here(tasks, recipe_of(job))
    else:
        written = encoding.encode_texts_on_ray(tasks, recipe_of(job), job.cluster)
    follow("captions", written, len(names), len(names) - len(tasks), console)


def recipe_of(job: PrepareJob) -> "encoding.Recipe":
    from ray_jobs import encoding

    return encoding.Recipe(job.family, job.data, job.cache.dtype, job.cache.precision, job.cache.flips)


def slots_of(plan: Plan, groups: range) -> list[list[Slot]]:
    """The usable rows of some row groups."""
    return [
        [plan.slot(row, 0) for row in range(int(plan.starts[group]), int(plan.starts[group + 1]))] for group in groups
    ]


def follow(what: str, done: Iterator[None], total: int, start: int, console: Console) -> None:
    """Show how many shards are done."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(what, total=total, completed=start)
        for _ in done:
            progress.advance(bar)


def finish(job: PrepareJob, folder: str, plan: Plan, cache: LatentCache, console: Console) -> str:
    """Write the quarantine, judge it, and declare the cache complete."""
    files = shard_files(folder)
    quarantined = [*plan.quarantined, *shard_quarantine(files)]
    write_quarantine(quarantine_file(folder), quarantined)
    check_share(quarantined, plan.total, job.data.max_quarantined_share)
    write_cache(folder, replace(cache, shape=read_shape(files), complete=True))
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts_by_reason(quarantined).items()) or "none"
    console.print(f"latents    {folder}\nquarantine {reasons}")
    return folder


def main(argv: list[str] | None = None) -> int:
    def run(job: PrepareJob) -> None:
        prepare(job)

    return run_verb(schema=PrepareJob, run=run, plan=plan_rows, argv=argv, doc=__doc__ or "")


if __name__ == "__main__":
    # Ray finds functions in its workers by the name of their module, which must not be __main__.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["prepare", *sys.argv[1:]]))
