"""A scorer for tests of labelling; in a module of its own, so that Ray's workers find it."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image

from eval.scorers.base import ScoreFunction, Scorer


class Redness(Scorer):
    """Mean red and blue of an image in [0, 1], and how long the prompt was that came with it."""

    kind: Literal["redness"] = "redness"
    nan_below: float = 0.0
    infinite: bool = False

    columns: ClassVar[dict[str, str]] = {"redness": "mean red", "blue": "mean blue", "prompt_length": "characters"}
    primary: ClassVar[str] = "redness"

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        del device

        def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, float]]:
            means = [np.asarray(image, dtype=np.float64).mean(axis=(0, 1)) / 255 for image in images]
            return [
                {"redness": self.red(mean[0]), "blue": float(mean[2]), "prompt_length": float(len(prompt))}
                for mean, prompt in zip(means, prompts, strict=True)
            ]

        return score

    def red(self, value: float) -> float:
        return math.inf if self.infinite else float(value) if value >= self.nan_below else math.nan


class Paleness(Redness):
    """The same numbers, but less is better."""

    higher_is_better: ClassVar[bool] = False
