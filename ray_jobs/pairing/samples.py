"""Pairs of a model's own samples, ranked by scorers: a round of on-policy preference training."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from dpo_core import randomness
from dpo_core.data.labelled import LABELLED_BY
from dpo_core.data.quarantine import Reason, RowRejected
from dpo_core.data.schema import SCHEMA
from dpo_core.data.sources.drawings import jpeg, preference_row
from dpo_core.data.sources.shapes import captions
from dpo_core.embedded import EMBEDDED
from dpo_core.section import Section
from eval.generate import SamplerSection
from eval.prompts import load_prompt_set, prompt_sets
from eval.scorers import AnyScorer
from eval.scorers.shapes import Shapes
from ray_jobs.pairing.base import PairRecipe
from ray_jobs.pairing.painter import Painter, as_read, drawing_cost, judge_id, judge_problem, weights_of
from ray_jobs.shards.job import Maker, Outcome, Recipe, Row, Source, given_source

ROWS_PER_GROUP = 32


class Judge(Section):
    """A scorer that has a say."""

    scorer: AnyScorer = Shapes()
    """Who judges."""
    column: str | None = None
    """The scorer's column that counts; null for its primary one."""
    weight: float = Field(default=1.0, gt=0)
    """Factor of its scores in the sum that ranks. Scorers have scales of their own: 1 is much for a share, little for a
    rating from 1 to 10."""

    @property
    def counts(self) -> str:
        """The column that counts."""
        return self.column or self.scorer.primary

    @property
    def name(self) -> str:
        return f"{self.scorer.label}/{self.counts}"

    def scores(self, rows: list[dict[str, float]]) -> list[float]:
        """What it gives each image; more is better."""
        return [row[self.counts] if self.scorer.higher_is_better else -row[self.counts] for row in rows]


class Samples(PairRecipe):
    """Several images of each prompt by one model, ranked by one or several scorers."""

    kind: Literal["samples"] = "samples"
    model: str = EMBEDDED
    """The model that draws: a diffusers folder, an exported LoRA folder, a hub id, or ``embedded``."""
    prompts: str = EMBEDDED
    """A prompt set by name, a .txt, .jsonl, .tsv or .parquet file, or ``embedded`` for the training captions of the
    embedded world. What is trained on the prompts of an evaluation can no longer be judged by it."""
    limit: int | None = Field(default=None, ge=1)
    """How many prompts of the set, a fixed random part; null for all."""
    images_per_prompt: int = Field(default=4, ge=2)
    """Images of each prompt that are ranked against one another."""
    judges: list[Judge] = Field(default=[Judge()], min_length=1)
    """Who ranks: by the weighted sum of their scores."""
    take: Literal["best_worst", "all"] = "best_worst"
    """Of each prompt the best image against the worst, or every two images."""
    margin: float = Field(default=0.0, ge=0)
    """Two images whose weighted sums differ by less are a tie; equal ones always are."""
    unanimous: bool = False
    """Two images on which the judges do not all agree are a tie."""
    sampler: SamplerSection = SamplerSection()
    """How the images are drawn."""

    @model_validator(mode="after")
    def _judges_can_judge(self) -> "Samples":
        for judge in self.judges:
            if problem := judge_problem(judge.scorer, judge.counts):
                raise ValueError(f"judges: {problem}")
        return self

    @property
    def pairs_per_prompt(self) -> int:
        return 1 if self.take == "best_worst" else math.comb(self.images_per_prompt, 2)

    def source(self, seed: int, shard_pairs: int) -> Source:
        del seed
        rows = [Row(str(index), None, ((text,), (text,)), {}, None) for index, text in self.texts()]
        return given_source(rows, rows_per_group=min(ROWS_PER_GROUP, shard_pairs))

    def texts(self) -> list[tuple[int, str]]:
        """Every prompt once, with its place in the set. Raises ValueError for a set that is not there."""
        if self.prompts == EMBEDDED:
            return list(enumerate(captions("train", singles=False)[: self.limit]))
        first: dict[str, int] = {}
        for prompt in load_prompt_set(self.prompts, self.limit):
            first.setdefault(prompt.text, prompt.index)
        return [(index, text) for text, index in first.items()]

    def work(self, source: Source, seed: int) -> Recipe:
        del source
        return MakeSamples(self, seed)

    def identity(self) -> dict[str, Any]:
        judges = {f"recipe.judges.{judge.name}": judge_id(judge.scorer) for judge in self.judges}
        return {"recipe.model.weights": weights_of(self.model)} | judges

    def plan(self, source: Source) -> list[tuple[str, str]]:
        images = source.rows * self.images_per_prompt
        note = "; an evaluation set, which cannot judge what is trained on it" if self.prompts in prompt_sets() else ""
        return [
            ("model", self.model),
            ("prompts", f"{source.rows:,} of {self.prompts}{note}"),
            ("images", drawing_cost(images, self.sampler)),
            *(("judge", f"{judge.name}, {images:,} images, weight {judge.weight:g}") for judge in self.judges),
            ("pairs", f"at most {source.rows * self.pairs_per_prompt:,}, ties among them"),
        ]


@dataclass(frozen=True)
class Sample:
    """One image of a prompt, and what each judge gave it."""

    data: bytes
    scores: tuple[float, ...]
    total: float
    """Their weighted sum."""


@dataclass(frozen=True)
class MakeSamples(Recipe):
    """The pairs of a prompt depend on the section, the seed and the prompt alone."""

    section: Samples
    seed: int

    columns = (*SCHEMA, pa.field("score_0", pa.float64()), pa.field("score_1", pa.float64()))

    def load(self) -> Maker:
        section = self.section
        painter = Painter(section.model, section.sampler)
        judges = [(judge.scorer.load(painter.device), judge) for judge in section.judges]

        def make(rows: list[Row]) -> list[Outcome]:
            each = section.images_per_prompt
            wanted = [(row.captions[0][0], self.seed + number) for row in rows for number in range(each)]
            samples: list[Sample] = []
            # Batch by batch, so that only one batch of images is held decoded.
            for first in range(0, len(wanted), section.sampler.batch_size):
                batch = wanted[first : first + section.sampler.batch_size]
                data = [jpeg(image) for image in painter.draw(batch)]
                seen, texts = [as_read(image) for image in data], [text for text, _ in batch]
                scores = [judge.scores(score(seen, texts)) for score, judge in judges]
                samples += [
                    Sample(image, given, sum(judge.weight * one for one, (_, judge) in zip(given, judges, strict=True)))
                    for image, given in zip(data, zip(*scores, strict=True), strict=True)
                ]
            return [
                pairs_of(section, self.seed, row, samples[place * each : (place + 1) * each])
                for place, row in enumerate(rows)
            ]

        return make

    def report(self, files: list[str]) -> dict[str, Any]:
        del files
        return {LABELLED_BY: [judge.name for judge in self.section.judges]}


def pairs_of(section: Samples, seed: int, row: Row, samples: list[Sample]) -> Outcome:
    """The pairs of a prompt's images; one whose score is not a number takes no part."""
    scored = [sample for sample in samples if not math.isnan(sample.total)]
    counts = {"images": len(samples), "images without a score": len(samples) - len(scored)}
    if len(scored) < 2:
        names = ", ".join(judge.name for judge in section.judges)
        detail = f"{len(scored)} of {len(samples)} images have a score by {names}"
        return Outcome(rejected=RowRejected(Reason.LABEL_NAN, detail), counts=counts)
    made = []
    for number, (better, worse) in enumerate(ranked(scored, section.take)):
        tie = is_tie(section, better, worse)
        index = int(row.pair_id) * section.pairs_per_prompt + number
        halves = [(better, 1.0), (worse, 0.0)]
        if randomness.uniform(seed, 0, str(index), "side") < 0.5:
            halves.reverse()
        (first, label), (second, _) = halves
        names = (section.model, section.model)
        pair = preference_row(index, row.captions[0][0], (first.data, second.data), 0.5 if tie else label, names)
        made.append(pair | {"score_0": first.total, "score_1": second.total})
        counts["ties" if tie else "decided"] = counts.get("ties" if tie else "decided", 0) + 1
    return Outcome.made(*made, **{name: count for name, count in counts.items() if count})


def ranked(samples: list[Sample], take: Literal["best_worst", "all"]) -> Iterator[tuple[Sample, Sample]]:
    """Pairs with the higher sum first; of equal ones the image that was drawn first."""
    order = sorted(samples, key=lambda sample: -sample.total)
    return iter([(order[0], order[-1])]) if take == "best_worst" else itertools.combinations(order, 2)


def is_tie(section: Samples, better: Sample, worse: Sample) -> bool:
    """Whether nobody won."""
    difference = better.total - worse.total
    agreed = all(a > b for a, b in zip(better.scores, worse.scores, strict=True))
    return difference <= 0 or difference < section.margin or (section.unanimous and not agreed)
