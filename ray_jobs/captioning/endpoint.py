"""Any server that speaks OpenAI's chat completions: vLLM and the like, or a hosted model."""

import asyncio
import base64
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from dpo_core.data.quarantine import Reason, RowRejected
from dpo_core.section import Section
from ray_jobs.captioning.texts import caption_of

GIVE_UP_AFTER = 8
"""Calls in a row that fail for good; then it is the server, not the rows."""


class Endpoint(Section):
    """A model behind an OpenAI-compatible address."""

    base_url: str = "http://localhost:8000/v1"
    """Address of the API, up to and with its version."""
    model: str
    """The model's name there."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key, on every machine that calls; null where none is needed.
    The key itself must not stand in a config."""
    concurrency: int = Field(default=16, ge=1)
    """Calls that a worker has under way at once."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds until an attempt is given up."""
    max_retries: int = Field(default=6, ge=0)
    """Attempts after the first for a call that meets 408, 409, 429, a server error or a timeout; ``Retry-After`` is
    heeded, else the waiting doubles from half a second to eight."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest words, as far as the server is deterministic."""
    prompt_price: float = Field(default=0.0, ge=0)
    """Price of a million tokens sent."""
    answer_price: float = Field(default=0.0, ge=0)
    """Price of a million tokens answered."""
    expected_tokens: int = Field(default=1000, ge=1)
    """Tokens sent with one call, for the estimate of --dry-run; an image makes some 250 to 3,000."""

    @model_validator(mode="after")
    def _hold_no_secret(self) -> "Endpoint":
        # On the section, not on the field: the sentence about a wrong field would show what was written there.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env must be the name of an environment variable, such as OPENAI_API_KEY")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc or parts.query:
            raise ValueError("base_url must be http(s)://host[:port]/path, without user, password or query")
        return self

    def cost(self, sent: float, answered: float) -> float:
        return (sent * self.prompt_price + answered * self.answer_price) / 1e6


NOT_IN_RESULT = (
    "base_url", "api_key_env", "concurrency", "timeout", "max_retries", "prompt_price", "answer_price",
    "expected_tokens",
)  # fmt: skip
"""Fields of an endpoint that change no caption."""


@dataclass(frozen=True)
class Answer:
    """A caption, or why there is none, and what it took."""

    text: str = ""
    rejected: RowRejected | None = None
    sent: int = 0
    answered: int = 0
    cut_off: bool = False
    """Whether the model met ``max_tokens``."""


@dataclass(frozen=True)
class Question:
    """A text and, before it, at most one image, uint8 ``[height, width, 3]``."""

    text: str
    image: NDArray[np.uint8] | None = None


class Chat:
    """Asks an endpoint; made once in each worker. Raises ValueError without the client or the key."""

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ValueError("asking an endpoint needs the package openai: pip install 'palate[caption]'") from error
        key = os.environ.get(endpoint.api_key_env) if endpoint.api_key_env else "none"
        if not key:
            raise ValueError(f"the environment variable {endpoint.api_key_env} (api_key_env) is not set in the worker")
        self._api = openai
        self._endpoint = endpoint
        self._key = key
        self._failed_in_a_row = 0

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order.

        Raises ValueError when the server cannot be reached, knows no such model or key, lets nobody in any more, or
        fails call after call: rows must not pay for that.
        """
        return asyncio.run(self._all(questions))

    async def _all(self, questions: Sequence[Question]) -> list[Answer]:
        endpoint = self._endpoint
        places = asyncio.Semaphore(endpoint.concurrency)
        async with self._api.AsyncOpenAI(
            base_url=endpoint.base_url, api_key=self._key, timeout=endpoint.timeout, max_retries=endpoint.max_retries
        ) as client:
            calls = [asyncio.create_task(self._one(client, places, question)) for question in questions]
            try:
                return list(await asyncio.gather(*calls))
            finally:
                # Nobody waits for what is under way when one call ends the job, or the user does.
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)

    async def _one(self, client: Any, places: asyncio.Semaphore, question: Question) -> Answer:
        api, endpoint = self._api, self._endpoint
        async with places:
            content = await asyncio.to_thread(_content, question)
            try:
                answer = await self._answer(client, content)
            except (api.AuthenticationError, api.PermissionDeniedError, api.NotFoundError, api.RateLimitError) as error:
                raise ValueError(f"{endpoint.base_url} refuses {endpoint.model!r}: {self._said(error)}") from error
            except (api.APITimeoutError, api.APIStatusError, api.APIResponseValidationError) as error:
                return self._failure(self._said(error))
            except api.APIConnectionError as error:
                raise ValueError(f"{endpoint.base_url} cannot be reached: {error.__cause__ or error}") from error
            except _NoCompletion as error:
                return self._failure(str(error))
        self._failed_in_a_row = 0
        return answer

    async def _answer(self, client: Any, content: Any) -> Answer:
        """Asks again while what comes with status 200 is no chat completion, which the client takes as it is."""
        endpoint = self._endpoint
        for attempt in range(endpoint.max_retries + 1):
            try:
                reply = await client.chat.completions.create(
                    model=endpoint.model,
                    messages=[{"role": "user", "content": content}],
                    max_tokens=endpoint.max_tokens,
                    temperature=endpoint.temperature,
                )
                return _read(reply)
            except (json.JSONDecodeError, UnicodeDecodeError, _NoCompletion) as error:
                if attempt == endpoint.max_retries:
                    raise _NoCompletion(f"the answer is no chat completion: {error}") from error
                await asyncio.sleep(min(0.5 * 2**attempt, 8))
        raise AssertionError("unreachable")

    def _said(self, error: Exception) -> str:
        """What the server said; some servers repeat the key that they refuse."""
        text = " ".join(str(error).split())
        return (text.replace(self._key, "[key]") if self._endpoint.api_key_env else text)[:300]

    def _failure(self, what: str) -> Answer:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= GIVE_UP_AFTER:
            raise ValueError(
                f"{self._endpoint.base_url} failed {self._failed_in_a_row} calls in a row, each after "
                f"{self._endpoint.max_retries} retries, the last with: {what}; run the same job again to go on with "
                "the shards that are missing"
            )
        return Answer(rejected=RowRejected(Reason.ANSWER_MISSING, what))


class _NoCompletion(Exception):
    """What a server, or a proxy before it, answered has another form."""


def _read(reply: Any) -> Answer:
    """Raises _NoCompletion: the client checks no types."""
    choices = getattr(reply, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    if message is None:
        raise _NoCompletion(f"it has no choices with a message: {str(reply)[:100]}")
    usage = getattr(reply, "usage", None)
    sent, answered = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    spent: dict[str, Any] = {"sent": _count(sent), "answered": _count(answered)}
    if refusal := getattr(message, "refusal", None):
        return Answer(rejected=RowRejected(Reason.CAPTION_REFUSED, str(refusal)[:200]), **spent)
    finish = getattr(choice, "finish_reason", None)
    if finish == "content_filter":
        return Answer(rejected=RowRejected(Reason.CAPTION_REFUSED, "content filter"), **spent)
    try:
        return Answer(caption_of(_text(getattr(message, "content", None))), cut_off=finish == "length", **spent)
    except RowRejected as rejected:
        return Answer(rejected=rejected, **spent)


def _text(content: Any) -> str | None:
    """Some servers answer in parts, as questions may be asked."""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return " ".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str | None):
        raise _NoCompletion(f"its content is {str(content)[:100]}")
    return content


def _count(tokens: Any) -> int:
    return tokens if isinstance(tokens, int) else 0


def _content(question: Question) -> Any:
    text = {"type": "text", "text": question.text}
    if question.image is None:
        return question.text
    buffer = io.BytesIO()
    Image.fromarray(question.image).save(buffer, format="JPEG", quality=95)
    data = base64.b64encode(buffer.getvalue()).decode()
    return [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}, text]
