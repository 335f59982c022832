"""palate patches: write how well each patch of an image is found again in the other image of its pair."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator
from rich.console import Console

from dpo_core.data import images, schema
from dpo_core.data.files import read_column
from dpo_core.data.labelled import LABELLED_BY, labelled_by
from dpo_core.data.patch_features import VisionSection, image_side, load_vision_config, patch_size
from dpo_core.data.quarantine import Reason, RowRejected
from dpo_core.data.section import DataSection
from dpo_core.data.writing import OutFolder
from dpo_core.families import AnyFamily
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
    Source,
    plan_shards,
    read_source,
    rows_to_do,
    run_shards,
    settings_of,
)

MAP = pa.list_(pa.list_(pa.float32()))
NOT_DECISIVE = ["out", "cluster", "shard_pairs"]
NOT_DECISIVE += [f"data.{name}" for name in ("paths", "lanes", "window", "max_quarantined_share")]


class QualitySection(Section):
    """How cosines become maps. The authors' rule is not known; this one is linear, and it says where it ends."""

    low: float = Field(default=0.0, ge=-1, lt=1)
    """Cosine of the best match that means quality 0, as does any below."""
    high: float = Field(default=1.0, gt=-1, le=1)
    """Cosine of the best match that means quality 1, as does any above."""
    latent_factor: int = Field(default=8, ge=1)
    """Pixels per latent along a side, where `family` is null."""

    @model_validator(mode="after")
    def _a_range(self) -> "QualitySection":
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self


class PatchesJob(Section):
    """Patch quality maps for PatchDPO (arXiv 2412.03177), our reading of the paper: its code was never released."""

    out: OutFolder = "runs/patches"
    """Folder for the pairs with their maps; give it to `data.paths` of a training job with `data.quality=true`."""
    data: DataSection = DataSection()
    """The pairs. Images are cropped as in training, at the centre, so `resolution` must be that of the training."""
    vision: VisionSection = VisionSection()
    quality: QualitySection = QualitySection()
    family: AnyFamily | None = None
    """The family that will be trained: its autoencoder says how large the maps are. Null: `quality.latent_factor`."""
    batch_size: int = Field(default=4, ge=1)
    """Pairs that the vision model sees at once."""
    shard_pairs: int = Field(default=64, ge=1)
    """Pairs per shard, rounded up to whole row groups of the source; a shard is what a killed job repeats."""
    cluster: ClusterSection = ClusterSection()


@dataclass(frozen=True)
class PatchRecipe(Recipe):
    """Two crops in, two maps out."""

    data: DataSection
    vision: VisionSection
    quality: QualitySection
    grid: tuple[int, int]
    batch_size: int
    labelled: tuple[str, ...]
    per_image: bool

    columns = tuple(pa.field(name, MAP) for name in schema.QUALITY)

    def read(self, row: Row) -> Any:
        """uint8 ``[2, 3, resolution, resolution]``: the centre crops that training cuts."""
        if row.read[0] is not None and row.read[0] == row.read[1]:
            raise RowRejected(Reason.IMAGES_IDENTICAL)
        limits = images.ImageLimits(self.data.min_side, int(self.data.max_megapixels * 1e6), self.data.max_aspect)
        crops = [
            images.training_crop(images.decode(data, limits), self.data.resolution, x=0.5, y=0.5, flip=False)
            for data in row.read
        ]
        return np.stack(crops).transpose(0, 3, 1, 2)

    def load(self) -> Maker:
        import torch

        from dpo_core.data.patch_features import PatchFeatures
        from dpo_core.data.patch_quality import pair_quality

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        see = PatchFeatures(self.vision, self.data.resolution, device)

        def make(rows: list[Row]) -> list[Outcome]:
            made = []
            for first in range(0, len(rows), self.batch_size):
                pixels = torch.from_numpy(np.stack([row.read for row in rows[first : first + self.batch_size]]))
                seen = see(pixels.flatten(0, 1)).unflatten(0, (len(pixels), 2))
                maps = pair_quality(
                    seen[:, 0], seen[:, 1], size=self.grid, low=self.quality.low, high=self.quality.high
                )
                made += [Outcome.made(dict(zip(schema.QUALITY, both, strict=True))) for both in maps.cpu().tolist()]
            return made

        return make

    def report(self, files: list[str]) -> dict[str, Any]:
        """Mean quality, and the shares of values at 0 and at 1: far from zero, `quality.low` and `high` lose detail."""
        means: dict[str, Any] = {}
        for name in schema.QUALITY:
            columns = (read_column(file, name).combine_chunks() for file in files)
            values = np.concatenate([column.flatten().flatten().to_numpy() for column in columns])
            shown = {"mean": values.mean(), "at 0": (values <= 0).mean(), "at 1": (values >= 1).mean()}
            means[name] = {what: round(float(value), 4) for what, value in shown.items()} if len(values) else {}
        return means | {LABELLED_BY: list(self.labelled)}


def make_patches(job: PatchesJob, console: Console | None = None) -> Record:
    """Fill the folder, or what is missing of it.

    Raises ValueError when the data or the model cannot be read, when too many images cannot be used, and when the
    folder holds another set.
    """
    return run_shards(shard_job(job, read_pairs(job)), console)


def read_pairs(job: PatchesJob) -> Source:
    """All rows, whatever their label: the maps of a pair depend on its images alone.

    Raises ValueError for settings under which a stored map would not lie on the training crops.
    """
    if needs_images := job.data.needs_images():
        raise ValueError(
            f"a patch quality map belongs to the centre crop of an image, which cannot serve {needs_images}; leave "
            "that at its default"
        )
    return read_source(job.data, takes="all")


def shard_job(job: PatchesJob, source: Source) -> ShardJob:
    # Only what changes the maps; the revision that a branch stands for is part of it.
    settings = settings_of(job, leave_out=NOT_DECISIVE)
    return ShardJob(
        verb="patches",
        folder=job.out,
        source=source,
        recipe=PatchRecipe(
            job.data,
            job.vision,
            job.quality,
            grid(job),
            job.batch_size,
            labelled=tuple(labelled_by(job.data.paths)),
            per_image=job.data.captions == "per_image",
        ),
        settings=settings | {"vision.weights": weights_of(job.vision)},
        cluster=job.cluster,
        shard_pairs=job.shard_pairs,
        max_quarantined_share=job.data.max_quarantined_share,
    )


def grid(job: PatchesJob) -> tuple[int, int]:
    """Height and width of the maps. Raises ValueError when the crops are no whole number of latents."""
    if job.family is not None:
        from dpo_core.data.encoder import latent_shape

        _, height, width = latent_shape(job.family, job.data.resolution)
        return height, width
    if job.data.resolution % job.quality.latent_factor:
        raise ValueError(
            f"data.resolution: {job.data.resolution} is not a multiple of quality.latent_factor="
            f"{job.quality.latent_factor}"
        )
    side = job.data.resolution // job.quality.latent_factor
    return side, side


def weights_of(vision: VisionSection) -> str:
    """Names the exact weights: a hash of a folder's files, the commit of the local copy of a hub id."""
    from huggingface_hub import try_to_load_from_cache

    from eval.models import model_hash

    if Path(vision.model).is_dir():
        return model_hash(vision.model)
    load_vision_config(vision)
    cached = try_to_load_from_cache(vision.model, "config.json", revision=vision.revision)
    return f"{vision.model}@{Path(cached).parent.name if isinstance(cached, str) else 'unknown'}"


def plan_rows(job: PatchesJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config."""
    source = read_pairs(job)
    config = load_vision_config(job.vision)
    patch = patch_size(job.vision, config)
    side = image_side(job.vision, job.data.resolution, patch)
    patches, (height, width) = (side // patch) ** 2, grid(job)
    work = shard_job(job, source)
    images = 2 * rows_to_do(work)
    return [
        *plan_shards(work),
        ("model", f"{job.vision.model}, {side} x {side} pixels, {patches:,} patches of {patch}"),
        ("work", f"{images:,} images, {operations(config, patches) * images / 1e12:,.1f} TFLOP"),
        ("maps", f"{height} x {width}, {2 * 4 * width * height * source.rows / 1e6:,.1f} MB before compression"),
    ]


def operations(config: Any, patches: int) -> float:
    """Floating point operations of one image: the matrix products of a vision transformer."""
    wide = config.hidden_size
    ratio = getattr(config, "mlp_ratio", None) or config.intermediate_size / wide
    return config.num_hidden_layers * patches * ((8 + 4 * ratio) * wide**2 + 4 * patches * wide)


def main(argv: list[str] | None = None) -> int:
    def run(job: PatchesJob) -> None:
        make_patches(job)

    return run_verb(schema=PatchesJob, run=run, plan=plan_rows, argv=argv, doc=__doc__ or "")


if __name__ == "__main__":
    # Ray finds functions in its workers by the name of their module, which must not be __main__.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["patches", *sys.argv[1:]]))
