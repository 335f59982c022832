"""Pairs of the embedded world: samples of a model and drawings, judged by a scorer."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field, model_validator

from dpo_core import randomness
from dpo_core.data.labelled import LABELLED_BY
from dpo_core.data.schema import SCHEMA
from dpo_core.data.sources.drawings import jpeg, near_miss, preference_row
from dpo_core.data.sources.shapes import captions, draw
from dpo_core.section import Section
from eval.generate import SamplerSection
from eval.scorers import AnyScorer
from eval.scorers.base import ScoreFunction
from eval.scorers.shapes import Shapes
from ray_jobs.pairing.base import PairRecipe
from ray_jobs.pairing.painter import Painter, as_read, drawing_cost, judge_id, judge_problem, weights_of
from ray_jobs.shards.job import Maker, Outcome, Recipe, Row, Source, given_source

ROWS_PER_GROUP = 128
AT_ONCE = 32
"""Pairs whose samples are drawn together: images agree to the last bit only in batches of the same size."""


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


class World(PairRecipe):
    """A preference set from the embedded world: samples of the model and drawings, judged by a scorer."""

    kind: Literal["world"] = "world"
    model: str = "embedded"
    """The model whose images are judged: a diffusers or LoRA folder, a hub id, or ``embedded``."""
    count: int = Field(default=512, ge=1)
    """Pairs to make."""
    mix: MixSection = MixSection()
    scorer: AnyScorer = Shapes()
    """Who judges."""
    column: str = "score"
    """The scorer's column that decides; equal values make a tie."""
    label_noise: float = Field(default=0.05, ge=0, le=0.5)
    """Share of decided labels that are turned round, as human labels are now and then."""
    sampler: SamplerSection = SamplerSection()
    """How the model's images are drawn."""

    def source(self, seed: int, shard_pairs: int) -> Source:
        if problem := judge_problem(self.scorer, self.column):
            raise ValueError(f"recipe.column: {problem}")
        texts = captions("train", singles=False)
        drawn = [texts[int(uniform(seed, index, "caption") * len(texts))] for index in range(self.count)]
        rows = [Row(str(index), None, ((text,), (text,)), {}, None) for index, text in enumerate(drawn)]
        return given_source(rows, rows_per_group=min(ROWS_PER_GROUP, shard_pairs))

    def work(self, source: Source, seed: int) -> Recipe:
        del source
        return MakeWorld(self, seed)

    def identity(self) -> dict[str, Any]:
        return {"recipe.model.weights": weights_of(self.model), "recipe.scorer.weights": judge_id(self.scorer)}

    def plan(self, source: Source) -> list[tuple[str, str]]:
        shares = self.mix.model_dump()
        each = (2 * shares["samples"] + shares["drawing"]) / sum(shares.values())
        meaning = self.scorer.columns[self.column]
        return [
            ("model", self.model),
            ("images", f"about {drawing_cost(round(each * source.rows), self.sampler)}"),
            ("judge", f"{self.scorer.label}, {2 * source.rows:,} images; {self.column}: {meaning}"),
        ]


@dataclass(frozen=True)
class MakeWorld(Recipe):
    """A pair depends on the section, the seed and its index alone."""

    section: World
    seed: int

    columns = tuple(SCHEMA)

    def load(self) -> Maker:
        painter = Painter(self.section.model, self.section.sampler)
        judge = self.section.scorer.load(painter.device)

        def make(rows: list[Row]) -> list[Outcome]:
            made = []
            for first in range(0, len(rows), AT_ONCE):
                texts = {int(row.pair_id): row.captions[0][0] for row in rows[first : first + AT_ONCE]}
                made += make_pairs(self.section, self.seed, texts, painter.draw, judge)
            return made

        return make

    def report(self, files: list[str]) -> dict[str, Any]:
        del files
        return {LABELLED_BY: [f"{self.section.scorer.label}/{self.section.column}"]}


def make_pairs(
    section: World,
    seed: int,
    texts: dict[int, str],
    paint: Callable[[Sequence[tuple[str, int]]], list[Image.Image]],
    judge: ScoreFunction,
) -> list[Outcome]:
    """The pairs with these indices and captions."""
    kinds = {index: section.mix.kind(uniform(seed, index, "kind")) for index in texts}
    wanted = [(index, side) for index in texts for side in (0, 1) if is_sample(kinds[index], side)]
    painted = paint([(texts[index], seed * 1_000_003 + 2 * index + side) for index, side in wanted])
    samples = dict(zip(wanted, painted, strict=True))
    made = []
    for index, text in texts.items():
        drawn = {0: text, 1: text}
        if kinds[index] == "near_miss":
            drawn[1] = near_miss(text, uniform(seed, index, "near miss"))
        spoiled = {0: False, 1: kinds[index] == "spoiled"}
        images = [
            samples[index, side]
            if is_sample(kinds[index], side)
            else draw(drawn[side], index, like=text, spoiled=spoiled[side])
            for side in (0, 1)
        ]
        data = [jpeg(image) for image in images]
        models = [Path(section.model).name if is_sample(kinds[index], side) else "world" for side in (0, 1)]
        if uniform(seed, index, "side") < 0.5:
            data, models = data[::-1], models[::-1]
        scores = [row[section.column] for row in judge([as_read(image) for image in data], [text, text])]
        tie = scores[0] == scores[1]
        turned = uniform(seed, index, "label noise") < section.label_noise
        label = 0.5 if tie else float(scores[0] > scores[1])
        label = 1 - label if turned else label
        row = preference_row(index, text, (data[0], data[1]), label, (models[0], models[1]))
        counts = {"decided": not tie, "ties": tie, "turned round": turned and not tie}
        made.append(Outcome.made(row, **{name: int(true) for name, true in counts.items()}))
    return made


def is_sample(kind: str, side: int) -> bool:
    """Whether the model drew this side of a pair; the other source is the world."""
    return kind == "samples" or (kind == "drawing" and side == 1)


def uniform(seed: int, index: int, purpose: str) -> float:
    return randomness.uniform(seed, 0, str(index), purpose)
