"""VQAScore: how probable is "yes" when a vision-language model is asked whether the image shows the prompt?"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from PIL import Image

from eval.scorers.base import ScoreFunction, Scorer
from eval.scorers.endpoint import Asker, EndpointSection


class VQAScore(Scorer):
    """P("Yes" | image, question) (Lin et al., arXiv 2404.01291, equation 1) by any model behind an OpenAI-compatible
    endpoint. Published VQAScores are CLIP-FlanT5's; another model's numbers do not compare with them."""

    kind: Literal["vqascore"] = "vqascore"
    endpoint: EndpointSection
    """The model that is asked."""
    question: str = 'Does this figure show "{prompt}"? Please answer yes or no.'
    """The question; {prompt} is the prompt. The default is the paper's."""
    logprobs: bool = True
    """Read the probability of "yes" from the first token; false for endpoints without probabilities, where the score is
    1 for an answer that begins with yes and 0 else."""

    columns: ClassVar[dict[str, str]] = {"yes": "probability of yes, 0 to 1; without logprobs 0 or 1"}
    primary: ClassVar[str] = "yes"
    preprocessing: ClassVar[str] = "PNG, the endpoint's own"
    caveat: ClassVar[str] = "published VQAScores are another model's, CLIP-FlanT5's, and no measure for these"

    @property
    def variant_id(self) -> str:
        return f"vqascore by {self.endpoint.model}"

    def places(self) -> list[str | None]:
        return [f"{self.endpoint.url}#{self.endpoint.model}"]

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Nothing is sent yet. Raises ValueError for a question that does not hold the prompt."""
        del device
        if "{prompt}" not in self.question:
            raise ValueError(f"{self.kind} scorer: the question {self.question!r} has no place for {{prompt}}")
        asker = Asker(self.endpoint)
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 4}
        if self.logprobs:
            options = {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}

        def rate(image: Image.Image, prompt: str) -> float:
            choice = asker.ask(image, self.question.replace("{prompt}", prompt), **options)
            if not self.logprobs:
                return float(plain(choice.message.content or "").startswith("yes"))
            if choice.logprobs is None or not choice.logprobs.content:
                raise ValueError(
                    f"endpoint {self.endpoint.url}, model {self.endpoint.model!r} gives no token probabilities; "
                    "set logprobs: false to score its bare answers"
                )
            return yes_probability(choice.logprobs.content[0].top_logprobs)

        def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, float]]:
            return [{"yes": value} for value in asker.all(images, prompts, rate)]

        return score


def yes_probability(tokens: Sequence[Any]) -> float:
    """The probability mass of all tokens that say yes, however written; ``tokens`` have ``token`` and ``logprob``."""
    return min(1.0, sum(math.exp(each.logprob) for each in tokens if plain(each.token) == "yes"))


def plain(text: str) -> str:
    """Lower case, without spaces, quotes and punctuation around."""
    return text.strip(" \t\n\"'`*.,!:_▁Ġ").lower()
