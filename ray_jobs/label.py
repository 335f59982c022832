"""palate label: let a scorer label preference pairs, filter them, or score them."""

import sys

from pydantic import Field
from rich.console import Console

from dpo_core.data.images import ImageLimits
from dpo_core.data.labelled import labelled_by
from dpo_core.data.section import DataSection
from dpo_core.data.writing import OutFolder
from dpo_core.section import Section
from eval.scorers import AnyScorer
from ray_jobs.cluster import ClusterSection
from ray_jobs.config import run_verb
from ray_jobs.labelling import LabelRecipe, Mode
from ray_jobs.shards.job import ShardJob, plan_shards, read_source, rows_to_do, run_shards, settings_of


class LabelJob(Section):
    """AI feedback: both images of a pair are scored for the prompt of the pair, and the scores decide."""

    data: DataSection = DataSection()
    """The pairs, labelled or not."""
    out: OutFolder = "runs/labels"
    """Folder of the new set."""
    shard_pairs: int = Field(default=32, ge=1)
    """Pairs per shard, rounded up to whole row groups; what a killed job scores again."""
    scorer: AnyScorer
    """Who judges."""
    column: str | None = None
    """The scorer's column that decides; null for its primary one. All its columns are written."""
    mode: Mode = "relabel"
    """relabel: the scorer's winner wins, the old labels go to given_label_0 and given_label_1; filter_agreeing: only
    pairs whose winner the scorer names as well are kept; add_scores: labels stay as they are."""
    tie_threshold: float = Field(default=0.0, ge=0)
    """Scores that differ by no more than this make a tie."""
    batch_size: int = Field(default=16, ge=1)
    """Images that are scored at once."""
    cluster: ClusterSection = ClusterSection(num_workers=0)
    """num_workers is how many hold the scorer; 0 does the work in this process."""


def shard_job(job: LabelJob) -> ShardJob:
    """The job with its source. Raises ValueError for a scorer that cannot judge pairs and data that cannot be used."""
    data, scorer = job.data, job.scorer
    column = job.column or scorer.primary
    if column not in scorer.columns:
        raise ValueError(f"column: {column!r} is not one of {', '.join(scorer.columns)}")
    if scorer.needs_references:
        raise ValueError(f"scorer {scorer.label!r} compares with reference images, which preference pairs do not have")
    source = read_source(data, takes="decided" if job.mode == "filter_agreeing" else "all")
    recipe = LabelRecipe(
        scorer,
        column,
        job.mode,
        tie_threshold=job.tie_threshold,
        batch_size=job.batch_size,
        limits=ImageLimits(data.min_side, int(data.max_megapixels * 1e6), data.max_aspect),
        per_image=data.captions == "per_image",
        given=source.schema.names,
        labelled=labelled_by(data.paths),
    )
    settings = settings_of(job, leave_out=("data", "out", "shard_pairs", "batch_size", "cluster"))
    kept = {name: getattr(data, name) for name in ("captions", "min_side", "max_megapixels", "max_aspect")}
    return ShardJob(
        verb="label",
        folder=job.out,
        source=source,
        recipe=recipe,
        settings=settings | {f"data.{name}": value for name, value in kept.items()},
        cluster=job.cluster,
        shard_pairs=job.shard_pairs,
        max_quarantined_share=data.max_quarantined_share,
    )


def plan_rows(job: LabelJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config."""
    work = shard_job(job)
    images = 2 * rows_to_do(work)
    column = job.column or job.scorer.primary
    return [
        *plan_shards(work),
        ("scorer", f"{job.scorer.label}, column {column}: {job.scorer.columns[column]}"),
        ("images", f"{images:,} to score, {job.batch_size} at once"),
    ]


def main(argv: list[str] | None = None) -> int:
    def run(job: LabelJob) -> None:
        run_shards(shard_job(job), Console())

    return run_verb(schema=LabelJob, run=run, plan=plan_rows, argv=argv, doc=__doc__ or "")


if __name__ == "__main__":
    # Ray finds functions in its workers by the name of their module, which must not be __main__.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["label", *sys.argv[1:]]))
