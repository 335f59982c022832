"""What a comparison compares: models, prompts, seeds, sampler, scorers."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from eval.dreambench import SCALES, SettingName
from eval.presets import PlannedSampler
from eval.prompts import Prompt, Split, load_prompt_set, set_label
from eval.scorers import AnyScorer
from eval.section import Section


class LoRASection(Section):
    """A LoRA that is laid on a model."""

    path: str
    """A LoRA file, a folder with one, or a hub id."""
    scale: float = 1.0
    """How much of it; 0 is the model without it."""


class AdapterSection(Section):
    """An IP-Adapter that is laid on a model."""

    path: str
    """A file, or a file on the hub as owner/name/path/in/it.safetensors."""
    image_encoder: str
    """The CLIP vision model it reads: a folder, or a folder on the hub as owner/name/path/in/it."""
    scale: float | None = None
    """Weight of the photos; null takes the setting's."""


class PhotosSection(Section):
    """Photos of subjects: what IP-Adapters are shown, and what DINO and CLIP-I compare with."""

    references: str
    """Folder with `<subject>/NN.jpg`, as github.com/google/dreambooth has them. All prompts must have subjects."""
    setting: SettingName = "original"
    """original: all photos of a subject, scale 0.78; kosmosg: one photo, scale 0.65."""

    @property
    def scale(self) -> float:
        return SCALES[self.setting]


class ComparisonPlan(Section):
    """Every model draws the same prompts from the same start noise with the same sampler; then all are scored."""

    models: dict[str, str] = Field(min_length=1)
    """Name in tables -> diffusers folder, LoRA folder, hub id, or a folder of images with a prompts file."""
    baseline: str = "base"
    """The model that the others are measured against, one of the names above."""
    control: str | None = None
    """The control arm, usually SFT on the chosen images: the others are measured against it too."""
    loras: dict[str, LoRASection] = {}
    """Name of a model above -> LoRA laid on it. (A LoRA folder that names its base can be a model itself.)"""
    adapters: dict[str, AdapterSection] = {}
    """Name of a model above -> IP-Adapter laid on it. (An adapter folder that training exported is a model itself.)"""
    photos: PhotosSection | None = None
    """Photos of the prompts' subjects, for `dreambench`; null where there are none."""
    prompts: list[str] = Field(default=["shapes_heldout"], min_length=1)
    """Prompt sets by name, file, folder or hub id; the first one makes the headline."""
    limit: int | None = Field(default=None, ge=1)
    """How many prompts of each set, a fixed random part; null for all."""
    split: Split = "all"
    """``report``: only the two thirds of the prompts that nothing was chosen by; ``dev``: the others, for choosing."""
    images_per_prompt: int = Field(default=1, ge=1)
    """Images of each prompt. More prompts tell more than more images of the same ones."""
    seed: int = Field(default=0, ge=0)
    """Seed of each prompt's first image; the next ones count up."""
    sampler: PlannedSampler = PlannedSampler()
    """How images are drawn."""
    scorers: list[AnyScorer] = Field(min_length=1)
    """Who judges. The first one that is independent of the training makes the headline, by its primary column."""
    partial_scorers: list[str] = []
    """Scorers that labelled training data or picked a checkpoint: shown, but they never make the headline.
    Those that the models' provenance names are added."""
    training_captions: list[str] = []
    """Captions the models were trained on (a folder or file); the prompts are checked against them.
    Those that the models' provenance names are added."""

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.images_per_prompt))

    @property
    def unit(self) -> str:
        """What is resampled: prompts, or with photos their subjects, whose prompts share the photos."""
        return "prompt" if self.photos is None else "subject"

    @property
    def sets(self) -> list[str]:
        """The labels of the prompt sets."""
        return [set_label(name) for name in self.prompts]

    def load_prompts(self) -> list[Prompt]:
        """The prompts of all sets. Raises ValueError as :func:`eval.prompts.load_prompt_set`."""
        return [prompt for name in self.prompts for prompt in load_prompt_set(name, self.limit, self.split)]

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for role, name in (("baseline", self.baseline), ("control", self.control)):
            if name is not None and name not in self.models:
                raise ValueError(f"{role} {name!r} is not one of the models; allowed: {', '.join(self.models)}")
        if self.control == self.baseline:
            raise ValueError(f"control {self.control!r} is the baseline too; give another model or null")
        for name in self.models:
            if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
                raise ValueError(f"model name {name!r} becomes a folder name; allowed: letters, digits, '-', '_', '.'")
        for field, names in (("loras", self.loras.keys()), ("adapters", self.adapters.keys())):
            if strange := sorted(names - self.models.keys()):
                allowed = ", ".join(self.models)
                raise ValueError(f"{field}: {', '.join(strange)} is none of the models; allowed: {allowed}")
        if self.adapters and self.photos is None:
            raise ValueError("adapters: an IP-Adapter is shown photos: set `photos.references`")
        lonely = [scorer.label for scorer in self.scorers if scorer.needs_references]
        if lonely and self.photos is None:
            raise ValueError(f"scorers: {', '.join(lonely)} compare images with photos: set `photos.references`")
        for what, names in (("scorers", [scorer.label for scorer in self.scorers]), ("prompts", self.sets)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: {', '.join(twice)} is there twice; give each a `name` of its own")
        return self


def protocol(plan: ComparisonPlan, prompts: Sequence[Prompt], samplers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All that must be equal for two reports to be about the same measurement, and its hash.

    ``samplers``: model -> resolved settings. Not in it: which models, where, and how fast.
    """
    texts = {
        label: hashlib.sha256(
            json.dumps([(prompt.index, prompt.text) for prompt in prompts if prompt.set == label]).encode()
        ).hexdigest()[:16]
        for label in plan.sets
    }
    drawn = {json.dumps({k: v for k, v in s.items() if k != "batch_size"}, sort_keys=True) for s in samplers.values()}
    facts: dict[str, Any] = {
        "prompts": texts,
        "images_per_prompt": plan.images_per_prompt,
        "seed": plan.seed,
        "samplers": [json.loads(text) for text in sorted(drawn)],
        "scorers": [scorer.model_dump(mode="json") for scorer in plan.scorers],
        "unit": f"{plan.unit}; images of a {plan.unit} are averaged first",
        "noise": "sha256 of seed and prompt, CPU generator of each image",
    }
    if plan.photos is not None:
        facts["photos"] = plan.photos.setting
    whole = json.dumps(facts, sort_keys=True).encode()
    return facts | {"hash": hashlib.sha256(whole).hexdigest()[:16]}
