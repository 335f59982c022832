"""Asking a model behind any OpenAI-compatible endpoint about images: retries, cost, the key from the environment."""

import base64
import io
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image
from pydantic import Field

from eval.scorers.base import rgb
from eval.section import Section

log = logging.getLogger(__name__)


class EndpointSection(Section):
    """Where the model answers, and what it costs."""

    url: str = "http://localhost:8000/v1"
    """Base URL of the endpoint: a local server such as vLLM or SGLang, or a provider."""
    model: str
    """The model's name there."""
    key_variable: str | None = None
    """Environment variable that holds the key, e.g. OPENAI_API_KEY; null sends none, for local servers. The key itself
    never enters a config, and none is sent to a url that was not meant for it."""
    retries: int = Field(default=6, ge=0)
    """Repetitions of a request that failed in transit or was refused for its rate, with growing pauses."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds until a request counts as failed."""
    concurrency: int = Field(default=8, ge=1)
    """Requests under way at once."""
    longest_side: int = Field(default=1024, ge=32)
    """Pixels; larger images are made smaller before they are sent, as PNG."""
    dollars_per_million_input: float = Field(default=0.0, ge=0)
    """Price of a million tokens sent."""
    dollars_per_million_output: float = Field(default=0.0, ge=0)
    """Price of a million tokens received."""
    most_dollars: float | None = Field(default=None, gt=0)
    """Stop with an error when a worker process has spent this much; null for no limit."""


class Asker:
    """Sends one image and one question per request and keeps count of tokens and cost. Usable from many threads."""

    def __init__(self, section: EndpointSection) -> None:
        from openai import OpenAI

        self.section = section
        # The client insists on a key, and would take one from the environment that is not for this url.
        key = os.environ.get(section.key_variable) if section.key_variable else "none"
        if not key:
            raise ValueError(f"endpoint: the environment variable {section.key_variable} for the key is not set")
        self.client = OpenAI(base_url=section.url, api_key=key, max_retries=section.retries, timeout=section.timeout_s)
        self.requests = self.sent = self.received = 0
        self.lock = threading.Lock()

    @property
    def dollars(self) -> float:
        prices = self.section.dollars_per_million_input, self.section.dollars_per_million_output
        return (self.sent * prices[0] + self.received * prices[1]) / 1e6

    def ask(self, image: Image.Image, question: str, **options: Any) -> Any:
        """The first choice of the answer. Raises ValueError if the endpoint refuses, stays unreachable after all
        retries, or the budget is spent."""
        from openai import OpenAIError

        if self.section.most_dollars is not None and self.dollars >= self.section.most_dollars:
            raise ValueError(f"endpoint: {self.dollars:.2f} dollars are spent, of at most {self.section.most_dollars}")
        content: Any = [
            {"type": "image_url", "image_url": {"url": data_url(image, self.section.longest_side)}},
            {"type": "text", "text": question},
        ]
        try:
            answer = self.client.chat.completions.create(
                model=self.section.model, messages=[{"role": "user", "content": content}], **options
            )
        except OpenAIError as error:
            raise ValueError(f"endpoint {self.section.url}, model {self.section.model!r}: {error}") from error
        with self.lock:
            self.requests += 1
            if answer.usage is not None:
                self.sent += answer.usage.prompt_tokens
                self.received += answer.usage.completion_tokens
        if not answer.choices:
            raise ValueError(f"endpoint {self.section.url}, model {self.section.model!r}: an answer without choices")
        return answer.choices[0]

    def all(
        self, images: Sequence[Image.Image], prompts: Sequence[str], rate: Callable[[Image.Image, str], float]
    ) -> list[float]:
        """``rate`` of every image and prompt, several at once, in their order; logs what it has cost so far."""
        with ThreadPoolExecutor(self.section.concurrency) as pool:
            values = list(pool.map(rate, images, prompts))
        log.info(
            "%s: %d requests, %d tokens sent, %d received, %.4f dollars",
            self.section.model,
            self.requests,
            self.sent,
            self.received,
            self.dollars,
        )
        return values


def data_url(image: Image.Image, longest: int) -> str:
    """The image as a PNG in a ``data:`` URL, its longest side at most ``longest`` pixels."""
    picture = rgb(image)
    if max(picture.size) > longest:
        wide, high = (max(1, round(side * longest / max(picture.size))) for side in picture.size)
        picture = picture.resize((wide, high), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
