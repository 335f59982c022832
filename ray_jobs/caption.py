"""palate caption: give each image of a pair its own caption, for DCPO."""

import sys

from pydantic import Field, model_validator
from rich.console import Console

from dpo_core.data.images import ImageLimits
from dpo_core.data.labelled import labelled_by
from dpo_core.data.section import DataSection
from dpo_core.data.writing import OutFolder
from dpo_core.section import Section
from eval.scorers.clip import CLIPScore
from ray_jobs.captioning.endpoint import NOT_IN_RESULT, Endpoint
from ray_jobs.captioning.recipe import CaptionRecipe
from ray_jobs.captioning.section import Describer, GivenCaptions, Perturber, Variant
from ray_jobs.captioning.texts import Strength
from ray_jobs.cluster import ClusterSection
from ray_jobs.config import run_verb
from ray_jobs.shards.job import ShardJob, plan_shards, read_source, rows_to_do, run_shards, settings_of


class CaptionJob(Section):
    """Captions for the images of decided pairs: described, perturbed, and put together as DCPO's variants."""

    data: DataSection = DataSection()
    """The pairs. Their prompts are read from caption, or from caption_0 and caption_1 (data.captions=per_image)."""
    out: OutFolder = "runs/captions"
    """Folder of the new set; train on it with data.captions=per_image."""
    shard_pairs: int = Field(default=32, ge=1)
    """Pairs per shard, rounded up to whole row groups; what a killed job asks for again."""
    describe: Describer
    """Who describes the images."""
    perturb: Perturber | None = None
    """Who perturbs captions; null where only variant c is made."""
    variants: list[Variant] = Field(default=["c"], min_length=1)
    """What is made: c, a generated caption for each image; p, the prompt for the chosen and the perturbed prompt for
    the rejected image; h, the generated caption for the chosen and a perturbed one for the rejected image. The first
    becomes caption_0 and caption_1, each has its own columns as well (caption_h_0, caption_h_1)."""
    strength: Strength = "medium"
    """How much a perturbation changes."""
    perturb_of: str = Field(default="rejected", pattern="^(chosen|rejected)$")
    """Whose generated caption variant h perturbs."""
    scorer: CLIPScore | None = None
    """Scores both images with the captions of the first variant (columns clip_0, clip_1 and clip_gap, which is chosen
    minus rejected); DCPO gets better with the gap up to a point. Null scores nothing."""
    image_side: int = Field(default=1024, ge=16)
    """Longer images are shrunk to this side before they are shown."""
    cluster: ClusterSection = ClusterSection(num_workers=0)
    """num_workers is how many call or hold the models; 0 does the work in this process."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "CaptionJob":
        if len(set(self.variants)) < len(self.variants):
            raise ValueError(f"variants {', '.join(self.variants)}: one is named twice")
        if self.perturb is None and set(self.variants) & {"p", "h"}:
            raise ValueError(f"variants {', '.join(self.variants)} need captions perturbed; say by whom in perturb")
        return self


def shard_job(job: CaptionJob) -> ShardJob:
    """The job with its source. Raises ValueError when the data cannot be used."""
    data = job.data
    recipe = CaptionRecipe(
        job.describe,
        job.perturb,
        job.variants,
        strength=job.strength,
        perturb_of=job.perturb_of,
        scorer=job.scorer,
        limits=ImageLimits(data.min_side, int(data.max_megapixels * 1e6), data.max_aspect),
        image_side=job.image_side,
        per_image=data.captions == "per_image",
        labelled=labelled_by(data.paths),
    )
    same = [f"{part}.{name}" for part in ("describe", "perturb") for name in NOT_IN_RESULT]
    settings = settings_of(job, leave_out=("data", "out", "shard_pairs", "cluster", *same))
    kept = {name: getattr(data, name) for name in ("captions", "min_side", "max_megapixels", "max_aspect")}
    return ShardJob(
        verb="caption",
        folder=job.out,
        source=read_source(data, takes="decided"),
        recipe=recipe,
        settings=settings | {f"data.{name}": value for name, value in kept.items()},
        cluster=job.cluster,
        shard_pairs=job.shard_pairs,
        max_quarantined_share=data.max_quarantined_share,
    )


def plan_rows(job: CaptionJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config; of a job that was stopped, what is left to pay."""
    work = shard_job(job)
    rows = rows_to_do(work)
    both = "c" in job.variants or job.perturb_of == "rejected"
    images = rows * (2 if both else 1) if set(job.variants) & {"c", "h"} else 0
    texts = rows * len(set(job.variants) & {"p", "h"})
    shown = [*plan_shards(work), ("variants", ", ".join(job.variants))]
    if isinstance(job.describe, GivenCaptions):
        shown.append(("describe", f"{' and '.join(job.describe.columns)} of the source, no calls"))
    else:
        shown.append(("describe", _cost_of(job.describe, images, "images")))
    if job.perturb is not None:
        shown.append(("perturb", _cost_of(job.perturb, texts, "captions")))
    return shown


def _cost_of(model: Section, calls: int, what: str) -> str:
    name = getattr(model, "model", "")
    if not isinstance(model, Endpoint):
        return f"{calls:,} {what} by {name} in the workers"
    sent, answered = calls * model.expected_tokens, calls * model.max_tokens
    cost = model.cost(sent, answered)
    return (
        f"{calls:,} calls of {name} at {model.base_url}: about {sent:,} tokens sent (expected_tokens), at most "
        f"{answered:,} answered" + (f", so {cost:,.2f} at the prices given" if cost else "; no prices are given")
    )


def main(argv: list[str] | None = None) -> int:
    def run(job: CaptionJob) -> None:
        run_shards(shard_job(job), Console())

    return run_verb(schema=CaptionJob, run=run, plan=plan_rows, argv=argv, doc=__doc__ or "")


if __name__ == "__main__":
    # Ray finds functions in its workers by the name of their module, which must not be __main__.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["caption", *sys.argv[1:]]))
