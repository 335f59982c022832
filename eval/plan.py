"""What a comparison compares: models, prompts, seeds, sampler, scorers."""

from typing import Self

from pydantic import Field, model_validator

from eval.generate import SamplerSection
from eval.scorers import AnyScorer
from eval.section import Section


class ComparisonPlan(Section):
    """Every model draws the same prompts from the same start noise with the same sampler; then all are scored."""

    models: dict[str, str] = Field(min_length=1)
    """Name in tables -> diffusers folder, LoRA folder or hub id."""
    baseline: str = "base"
    """The model that the others are measured against, one of the names above."""
    prompts: str = "shapes_heldout"
    """A prompt set by name, or a .txt, .jsonl, .tsv or .parquet file."""
    limit: int | None = Field(default=None, ge=1)
    """How many prompts of the set, a fixed random part; null for all."""
    images_per_prompt: int = Field(default=1, ge=1)
    """Images of each prompt. More prompts tell more than more images of the same ones."""
    seed: int = Field(default=0, ge=0)
    """Seed of each prompt's first image; the next ones count up."""
    sampler: SamplerSection = SamplerSection()
    """How images are drawn."""
    scorers: list[AnyScorer] = Field(min_length=1)
    """Who judges. The first one's primary column is the headline."""

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.images_per_prompt))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.baseline not in self.models:
            raise ValueError(f"baseline {self.baseline!r} is not one of the models; allowed: {', '.join(self.models)}")
        for name in self.models:
            if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
                raise ValueError(f"model name {name!r} becomes a folder name; allowed: letters, digits, '-', '_', '.'")
        labels = [scorer.label for scorer in self.scorers]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"scorers: {', '.join(twice)} is there twice; give each a `name` of its own")
        return self
