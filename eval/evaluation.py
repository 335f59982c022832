"""One comparison from a plan to its numbers: what is to be drawn, by whom, and what comes of the scores.

``evaluate`` does it on this machine, one model after the other; a cluster runs :func:`draw_and_score` on pieces.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from eval.adapters import shown
from eval.comparison import Comparison, compare_scores
from eval.dreambench import reference_files
from eval.generate import SamplerSection, make_missing, plan_images
from eval.manifest import write_manifest
from eval.parts import part_file, score_missing
from eval.plan import ComparisonPlan, protocol
from eval.prompts import Prompt
from eval.prompts.overlap import find_overlap
from eval.provenance import training_of
from eval.score import write_scores
from eval.scorers.base import ScoreFunction, Scorer
from eval.sources import Adapter, Source, find_source, image_rows


@dataclass(frozen=True)
class Work:
    """A plan looked up: which model lies where, its settings, and every image it needs."""

    plan: ComparisonPlan
    prompts: list[Prompt]
    sources: dict[str, Source]
    samplers: dict[str, SamplerSection]
    """Models whose images were made elsewhere have none."""
    rows: dict[str, list[dict[str, Any]]]
    """Model -> its part of the manifest."""
    weights: dict[str, str]

    def pieces(self, images: int) -> list["Piece"]:
        """The work in pieces of at most so many images, model by model."""
        return [
            Piece(self.sources[name], self.samplers.get(name), mine[start : start + images])
            for name, mine in self.rows.items()
            for start in range(0, len(mine), images)
        ]


@dataclass(frozen=True)
class Piece:
    """Images of one model that are drawn and scored together; no sampler if they exist already."""

    source: Source
    sampler: SamplerSection | None
    rows: list[dict[str, Any]]


def plan_work(plan: ComparisonPlan, resolve: Callable[[str], str] = str) -> Work:
    """Look up models, prompts and settings; nothing is drawn. ``resolve`` knows model names that are no paths.

    Raises ValueError for a model or prompt set that is not there or does not fit, or that a scorer cannot judge.
    """
    if len(plan.models) < 2:
        raise ValueError(f"models: a comparison needs two, given {', '.join(plan.models)}")
    prompts = plan.load_prompts()
    for scorer in plan.scorers:
        for prompt in prompts:
            try:
                scorer.tags(prompt.text)
            except ValueError as error:
                raise ValueError(f"scorer {scorer.label} is not for the prompts of {prompt.set}: {error}") from error
    sources = {
        name: find_source(
            model,
            lora=plan.loras[name].path if name in plan.loras else None,
            scale=plan.loras[name].scale if name in plan.loras else 1.0,
            adapter=_adapter(plan, name),
            photos_scale=plan.photos.scale if plan.photos else None,
            resolve=resolve,
        )
        for name, model in plan.models.items()
    }
    photos = photos_of(plan, prompts)
    samplers: dict[str, SamplerSection] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    weights = {name: source.weights for name, source in sources.items()}
    for name, source in sources.items():
        if source.is_images:
            rows[name] = image_rows(name, source, prompts, plan.seeds)
            continue
        samplers[name] = plan.sampler.for_model(source.pipeline_folder)
        rows[name] = []
        for label in plan.sets:
            mine = [prompt for prompt in prompts if prompt.set == label]
            names = [prompt.text for prompt in mine]
            seen = [_contents(photos[label, prompt.index]) for prompt in mine] if source.adapter else None
            rows[name] += plan_images(
                name,
                weights[name],
                names,
                plan.seeds,
                samplers[name],
                indices=[prompt.index for prompt in mine],
                prompt_set=label,
                photos=seen,
            )
    for row in (row for mine in rows.values() for row in mine):
        if photos:
            row["references"] = photos[row["prompt_set"], row["prompt_index"]]
    return Work(plan, prompts, sources, samplers, rows, weights)


def photos_of(plan: ComparisonPlan, prompts: Sequence[Prompt]) -> dict[tuple[str, int], list[str]]:
    """(Prompt set, index) -> the photos of the prompt's subject, empty if the plan names none.

    Raises ValueError for a prompt without a subject, or a subject without photos.
    """
    if plan.photos is None:
        return {}
    if without := [prompt for prompt in prompts if "subject" not in prompt.tags]:
        raise ValueError(
            f"photos: {without[0].text!r} of {without[0].set} has no subject; allowed: sets like dreambench"
        )
    subjects = dict.fromkeys(prompt.tags["subject"] for prompt in prompts)
    files = reference_files(plan.photos.references, plan.photos.setting, subjects)
    return {
        (prompt.set, prompt.index): [str(file.resolve()) for file in files[prompt.tags["subject"]]]
        for prompt in prompts
    }


def _adapter(plan: ComparisonPlan, name: str) -> Adapter | None:
    laid = plan.adapters.get(name)
    if laid is None or plan.photos is None:
        return None
    return Adapter(laid.path, laid.image_encoder, plan.photos.scale if laid.scale is None else laid.scale)


def _contents(files: Sequence[str]) -> list[str]:
    return [_content(file) for file in files]


@lru_cache(maxsize=1024)
def _content(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def draw_and_score(piece: Piece, scorers: Sequence[Scorer], out: str | Path, device: str) -> list[dict[str, Any]]:
    """Draw the images of ``piece`` that are missing, score what has no scores yet; the score rows of all of it.

    Scorers are loaded before anything is drawn: weights that are not there should not be told after an hour.
    """
    for scorer in scorers:
        if not part_file(piece.rows, out, scorer).is_file():
            loaded(scorer, device)
    missing = [row for row in piece.rows if not (Path(out) / row["file"]).is_file()]
    if missing:
        if piece.sampler is None:
            raise ValueError(f"image {missing[0]['file']} is gone")
        pipeline = pipeline_of(piece.source, piece.sampler.dtype, device)
        if piece.source.adapter is None:
            make_missing(pipeline, missing, piece.sampler, out)
        else:
            photos = [tuple(row["references"]) for row in missing]
            with shown(pipeline, photos, piece.sampler.guidance_scale > 1) as more:
                make_missing(pipeline, missing, piece.sampler, out, more)
    return [
        row
        for scorer in scorers
        for row in score_missing(piece.rows, out, scorer, lambda scorer=scorer: loaded(scorer, device))
    ]


def finished(piece: Piece, scorers: Sequence[Scorer], out: str | Path) -> bool:
    """Is there nothing left to draw or to score?"""
    images = all((Path(out) / row["file"]).is_file() for row in piece.rows)
    return images and all(part_file(piece.rows, out, scorer).is_file() for scorer in scorers)


@lru_cache(maxsize=1)
def pipeline_of(source: Source, dtype: str, device: str) -> Any:
    """The pipeline of this process; one at a time, since a GPU may not hold two."""
    return source.load(device, dtype)


def loaded(scorer: Scorer, device: str) -> ScoreFunction:
    """The loaded scorer of this process. Raises ValueError that names it if it cannot be loaded."""
    try:
        return _load(type(scorer), scorer.model_dump_json(), device)
    except ValueError as error:
        raise ValueError(f"scorer {scorer.label}: {str(error).removeprefix(f'{scorer.kind} scorer: ')}") from error


@lru_cache(maxsize=16)
def _load(kind: type[Scorer], config: str, device: str) -> ScoreFunction:
    return kind.model_validate_json(config).load(device)


def finish(work: Work, scores: list[dict[str, Any]], out: str | Path) -> Comparison:
    """Write manifest.parquet and scores.parquet, compute every number."""
    order = {name: i for i, name in enumerate(work.plan.models)}
    sets = {label: i for i, label in enumerate(work.plan.sets)}
    scores.sort(key=lambda row: (order[row["model"]], sets[row["prompt_set"]], row["prompt_index"], row["seed"]))
    rows = [row for mine in work.rows.values() for row in mine]
    write_manifest(rows, out, {row["file"]: row["blank"] for row in scores})
    write_scores(scores, out)
    training = {name: training_of(*source.parts) for name, source in work.sources.items()}
    partial = {
        scorer: f"{what} of {name}"
        for name, facts in training.items()
        for what, scorers in (
            ("labelled the training data", facts.labelled_by),
            ("picked the checkpoint", facts.picked_by),
        )
        for scorer in scorers
    }
    captions = [*work.plan.training_captions, *(path for facts in training.values() for path in facts.data)]
    settings = {name: sampler.model_dump(mode="json") for name, sampler in work.samplers.items()}
    return compare_scores(
        work.plan,
        scores,
        work.prompts,
        work.weights,
        partial=partial,
        overlaps=find_overlap(work.prompts, captions),
        protocol=protocol(work.plan, work.prompts, settings),
        bases={name: source.base or source.folder for name, source in work.sources.items()},
        training=training,
    )


def evaluate(
    plan: ComparisonPlan, out: str | Path, *, device: str = "cpu", resolve: Callable[[str], str] = str
) -> Comparison:
    """The whole comparison in this process. What lies in ``out`` from an interrupted one is not made again."""
    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    work = plan_work(plan, resolve)
    scores = [row for piece in work.pieces(64) for row in draw_and_score(piece, plan.scorers, out, device)]
    return finish(work, scores, out)
