"""palate pairs: make preference pairs from a model's own images, judged by a scorer."""

import itertools
import shutil
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import track

from dpo_core import randomness
from dpo_core.data.sources.drawings import jpeg, near_miss, preference_row, write_rows
from dpo_core.data.sources.shapes import captions, draw
from dpo_core.embedded import resolve_model
from dpo_core.section import Section
from eval.generate import SamplerSection, generate, use_scheduler
from eval.models import load_pipeline
from eval.scorers import AnyScorer
from eval.scorers.shapes import Shapes
from ray_jobs.cluster import start_ray
from ray_jobs.config import run_verb

PAIRS_PER_TASK = 32


class MixSection(Section):
    """What meets what; the shares need not add up to one."""

    samples: float = Field(default=1.0, ge=0)
    """Two samples of the model."""
    drawing: float = Field(default=1.0, ge=0)
    """A sample and a drawing of the caption."""
    near_miss: float = Field(default=1.0, ge=0)
    """A drawing of the caption and one of a caption that differs in one thing, alike in all else."""

    spoiled: float = Field(default=1.0, ge=0)
    """A drawing of the caption and a spoiled one, with a bite taken out or a thing too many, alike in all else."""

    def kind(self, draw_number: float) -> str:
        """The kind of pair for a number drawn in [0, 1)."""
        shares: dict[str, float] = self.model_dump()
        bounds = itertools.accumulate(share / sum(shares.values()) for share in shares.values())
        reached = [name for name, bound in zip(shares, bounds, strict=True) if draw_number < bound]
        return reached[0] if reached else list(shares)[-1]

    @model_validator(mode="after")
    def _something(self) -> "MixSection":
        if not any(self.model_dump().values()):
            raise ValueError("all shares are 0; at least one must be above")
        return self


class PairsJob(Section):
    """A preference set from the embedded world: samples of the model and drawings, judged by a scorer."""

    out: str = "runs/pairs"
    """Folder for the parquet shards; what was in it is replaced."""
    model: str = "embedded"
    """The model whose images are judged: a diffusers folder, a hub id, or ``embedded``."""
    count: int = Field(default=512, ge=1)
    """Pairs to make."""
    mix: MixSection = MixSection()
    scorer: AnyScorer = Shapes()
    """Who judges."""
    column: str = "score"
    """The scorer's column that decides; equal values make a tie."""
    label_noise: float = Field(default=0.05, ge=0, le=0.5)
    """Share of decided labels that are turned round, as human labels are now and then."""
    seed: int = 0
    """Seed of captions, images, sides and label noise."""
    sampler: SamplerSection = SamplerSection()
    """How the model's images are drawn."""
    rows_per_file: int = Field(default=256, ge=1)
    """Rows of a parquet shard."""


def make_pairs(job: PairsJob, console: Console | None = None) -> dict[str, int]:
    """Write the set; returns how many pairs were decided, tied and turned round by label noise."""
    import ray

    console = console or Console()
    if job.column not in job.scorer.columns:
        raise ValueError(f"column: {job.column!r} is not one of {', '.join(job.scorer.columns)}")
    start_ray()
    task = ray.remote(num_cpus=1)(make_rows)
    starts = range(0, job.count, PAIRS_PER_TASK)
    pending = [task.remote(job, range(i, min(i + PAIRS_PER_TASK, job.count))) for i in starts]
    rows: list[dict[str, Any]] = []
    for reference in track(pending, "making pairs", console=console, transient=True):
        rows += ray.get(reference)
    shutil.rmtree(job.out, ignore_errors=True)
    write_rows(job.out, rows, rows_per_file=job.rows_per_file)
    ties = sum(row["label_0"] == 0.5 for row in rows)
    noisy = sum(is_turned(job, index) and row["label_0"] != 0.5 for index, row in enumerate(rows))
    return {"pairs": len(rows), "decided": len(rows) - ties, "ties": ties, "turned round": noisy}


def make_rows(job: PairsJob, indices: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of some pairs; a pair depends on the job and its index alone."""
    texts = {index: caption_of(job, index) for index in indices}
    kinds = {index: job.mix.kind(uniform(job, index, "kind")) for index in indices}
    wanted = [(index, side) for index in indices for side in (0, 1) if is_sample(kinds[index], side)]
    samples = dict(zip(wanted, sample(job, [(texts[i], 2 * i + side) for i, side in wanted]), strict=True))
    judge = job.scorer.load("cpu")
    rows = []
    for index, text in texts.items():
        drawn = {0: text, 1: text}
        if kinds[index] == "near_miss":
            drawn[1] = near_miss(text, uniform(job, index, "near miss"))
        spoiled = {0: False, 1: kinds[index] == "spoiled"}
        images = [
            samples[index, side]
            if is_sample(kinds[index], side)
            else draw(drawn[side], index, like=text, spoiled=spoiled[side])
            for side in (0, 1)
        ]
        data = [jpeg(image) for image in images]
        models = [Path(job.model).name if is_sample(kinds[index], side) else "world" for side in (0, 1)]
        if uniform(job, index, "side") < 0.5:
            data, models = data[::-1], models[::-1]
        scores = [row[job.column] for row in judge([decode(image) for image in data], [text, text])]
        label = 0.5 if scores[0] == scores[1] else float(scores[0] > scores[1])
        label = 1 - label if is_turned(job, index) else label
        rows.append(preference_row(index, text, (data[0], data[1]), label, (models[0], models[1])))
    return rows


def is_sample(kind: str, side: int) -> bool:
    """Whether the model drew this side of a pair; the other source is the world."""
    return kind == "samples" or (kind == "drawing" and side == 1)


def sample(job: PairsJob, wanted: list[tuple[str, int]]) -> list[Any]:
    """One image of the model for each (caption, seed)."""
    pipeline = pipeline_of(resolve_model(job.model), job.sampler.dtype)
    use_scheduler(pipeline, job.sampler.scheduler)
    images = []
    for start in range(0, len(wanted), job.sampler.batch_size):
        batch = wanted[start : start + job.sampler.batch_size]
        images += generate(
            pipeline,
            [text for text, _ in batch],
            [job.seed * 1_000_003 + number for _, number in batch],
            num_inference_steps=job.sampler.num_inference_steps,
            guidance_scale=job.sampler.guidance_scale,
            negative_prompt=job.sampler.negative_prompt,
            height=job.sampler.height,
            width=job.sampler.width,
        )
    return images


@lru_cache(maxsize=1)
def pipeline_of(folder: str, dtype: str) -> Any:
    """The pipeline of a Ray worker process, loaded once."""
    import torch

    return load_pipeline(folder, "cuda" if torch.cuda.is_available() else "cpu", dtype)


def decode(data: bytes) -> Any:
    """What a reader of the set will see: the image after JPEG."""
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def caption_of(job: PairsJob, index: int) -> str:
    texts = captions("train", singles=False)
    return texts[int(uniform(job, index, "caption") * len(texts))]


def is_turned(job: PairsJob, index: int) -> bool:
    return uniform(job, index, "label noise") < job.label_noise


def uniform(job: PairsJob, index: int, purpose: str) -> float:
    return randomness.uniform(job.seed, 0, str(index), purpose)


def plan_rows(job: PairsJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config."""
    return [
        ("folder", str(Path(job.out).resolve())),
        ("pairs", f"{job.count:,}"),
        ("model", resolve_model(job.model)),
        ("judge", f"{job.scorer.label}, column {job.column}: {job.scorer.columns[job.column]}"),
    ]


def main(argv: list[str] | None = None) -> int:
    def run(job: PairsJob) -> None:
        counts = make_pairs(job)
        Console().print(f"{job.out}: " + ", ".join(f"{number} {what}" for what, number in counts.items()))

    return run_verb(schema=PairsJob, run=run, plan=plan_rows, argv=argv, doc=__doc__ or "")


if __name__ == "__main__":
    # Ray finds functions in its workers by the name of their module, which must not be __main__.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["pairs", *sys.argv[1:]]))
