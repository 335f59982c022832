"""palate pairs: make preference pairs: from a model's own images, from chosen images made worse or exchanged."""

import sys

from pydantic import Field
from rich.console import Console

from dpo_core.data.writing import OutFolder
from dpo_core.section import Section
from ray_jobs.cluster import ClusterSection
from ray_jobs.config import run_verb
from ray_jobs.pairing import AnyRecipe
from ray_jobs.pairing.world import World
from ray_jobs.shards.job import Record, ShardJob, Source, plan_shards, run_shards, settings_of

NOT_DECISIVE = ["out", "cluster", "shard_pairs"]
NOT_DECISIVE += [f"recipe.data.{name}" for name in ("paths", "lanes", "window", "max_quarantined_share")]


class PairsJob(Section):
    """A preference set, made. The same command again goes on where it stopped.

    Scorers that label are named in the set's ``job.json``: what is trained on their choice is not for them to judge.
    """

    out: OutFolder = "runs/pairs"
    """Folder for the parquet shards: on a disk that every node sees, or in a bucket (s3://, gs://)."""
    recipe: AnyRecipe = World()
    """How pairs are made."""
    seed: int = Field(default=0, ge=0)
    """Seed of all that is drawn by chance; of samples also the seed of each prompt's first image."""
    shard_pairs: int = Field(default=256, ge=1)
    """Rows or prompts of a parquet shard, rounded up to whole row groups; a shard is what a killed job repeats."""
    cluster: ClusterSection = ClusterSection()


def make_pairs(job: PairsJob, console: Console | None = None) -> Record:
    """Fill the folder, or what is missing of it; returns what its ``job.json`` then says.

    Raises ValueError when model, scorer, prompts or data cannot be read, and when the folder holds another set.
    """
    source = job.recipe.source(job.seed, job.shard_pairs)
    return run_shards(shard_job(job, source, job.recipe.identity()), console)


def shard_job(job: PairsJob, source: Source, identity: dict[str, str]) -> ShardJob:
    return ShardJob(
        verb="pairs",
        folder=job.out,
        source=source,
        recipe=job.recipe.work(source, job.seed),
        settings=settings_of(job, leave_out=NOT_DECISIVE) | identity,
        cluster=job.cluster,
        shard_pairs=job.shard_pairs,
        max_quarantined_share=job.recipe.max_quarantined_share,
    )


def plan_rows(job: PairsJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config."""
    source = job.recipe.source(job.seed, job.shard_pairs)
    # The weights are hashed when the job runs; the plan is the same for all.
    return [*plan_shards(shard_job(job, source, {})), *job.recipe.plan(source)]


def main(argv: list[str] | None = None) -> int:
    def run(job: PairsJob) -> None:
        make_pairs(job)

    return run_verb(schema=PairsJob, run=run, plan=plan_rows, argv=argv, doc=__doc__ or "")


if __name__ == "__main__":
    # Ray finds functions in its workers by the name of their module, which must not be __main__.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["pairs", *sys.argv[1:]]))
