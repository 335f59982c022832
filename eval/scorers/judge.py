"""A vision-language model as judge: it looks at the image and gives the prompt's image a rating."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Self

import torch
from PIL import Image
from pydantic import Field, model_validator

from eval.scorers.base import Identity, ScoreFunction, Scorer
from eval.scorers.endpoint import Asker, EndpointSection

log = logging.getLogger(__name__)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
QUESTION = """This image was generated for the prompt: "{prompt}"

Judge two things: does it show everything the prompt asks for, and is it free of distortions and pleasing to look at?
Explain in at most three sentences. Then end with one line of this form, where the number lies between {least} (it
fails at both) and {most} (it cannot be improved), decimals allowed:
Final Score: <number>"""


class Judge(Scorer):
    """The rating that a model behind an OpenAI-compatible endpoint gives: UnifiedReward (arXiv 2503.05236) by a local
    server, or any other that can see. Ratings of different models, questions or versions of a model do not compare."""

    kind: Literal["judge"] = "judge"
    endpoint: EndpointSection
    """The model that judges."""
    question: str = QUESTION
    """What it is asked; {prompt}, {least} and {most} are filled in. The rating is the first number after `marker`. For
    published scores of UnifiedReward, give its own question."""
    marker: str = "Final Score:"
    """What precedes the rating; the last occurrence counts."""
    least: float = 1.0
    """Lowest rating."""
    most: float = 5.0
    """Highest rating."""
    attempts: int = Field(default=3, ge=1)
    """Times an image is shown again if an answer holds no rating; then its score is NaN, and a warning says so."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest answer."""
    temperature: float = Field(default=0.0, ge=0)
    """Randomness of the first answer; a repeated question is asked at 0.7 at least, for else it fails again."""

    columns: ClassVar[dict[str, str]] = {"rating": "the judge's rating, on the scale it was asked for"}
    primary: ClassVar[str] = "rating"
    preprocessing: ClassVar[str] = "PNG, the endpoint's own"

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if "{prompt}" not in self.question:
            raise ValueError("question has no place for {prompt}")
        if self.least >= self.most:
            raise ValueError(f"least {self.least} is not below most {self.most}")
        return self

    @property
    def variant_id(self) -> str:
        return f"judge {self.endpoint.model}"

    def places(self) -> list[str | None]:
        return [f"{self.endpoint.url}#{self.endpoint.model}"]

    def identity(self) -> Identity:
        scale = f"{self.least:g} to {self.most:g}"
        return replace(super().identity(), scale=scale)

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Nothing is sent yet."""
        del device
        asker = Asker(self.endpoint)

        def rate(image: Image.Image, prompt: str) -> float:
            question = self.question.replace("{least}", f"{self.least:g}").replace("{most}", f"{self.most:g}")
            question, answer = question.replace("{prompt}", prompt), ""
            for attempt in range(self.attempts):
                temperature = self.temperature if attempt == 0 else max(0.7, self.temperature)
                choice = asker.ask(image, question, temperature=temperature, max_tokens=self.max_tokens)
                answer = choice.message.content or ""
                rating = self.rating(answer)
                if rating is not None:
                    return rating
            log.warning("%s: no rating for %r after %d answers: %r", self.label, prompt, self.attempts, answer[-200:])
            return math.nan

        def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, float]]:
            return [{"rating": value} for value in asker.all(images, prompts, rate)]

        return score

    def rating(self, answer: str) -> float | None:
        """The number after the last marker, None if there is none or it lies outside the scale."""
        _, marker, rest = answer.rpartition(self.marker)
        number = NUMBER.search(rest) if marker else None
        value = float(number[0]) if number else math.nan
        return value if self.least <= value <= self.most else None
