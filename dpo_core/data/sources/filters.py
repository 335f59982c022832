"""Which pairs of a source are taken: decided from labels, names and ids alone, before any image is read."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator

from dpo_core.data.schema import clean_text
from dpo_core.section import Section

TOO_MANY = "more than max_samples"


class SplitSection(Section):
    """A part of the prompts kept for evaluation. All pairs of a prompt are on the same side, in every data set."""

    held_out: float = Field(default=0.0, ge=0, lt=1)
    """Share of the prompts that is held out."""
    take: Literal["train", "held_out"] = "train"
    """Which side is taken."""


class FilterSection(Section):
    """Which pairs are taken. What is left out is counted by reason."""

    ties: Literal["keep", "drop"] = "keep"
    """Ties are never trained on; kept ones can be labelled by `palate label`."""
    unlabelled: Literal["quarantine", "keep", "drop"] = "quarantine"
    """Pairs that nobody judged (has_label is false, or a label is missing): unusable, kept so that `palate label` can
    judge them, or left out."""
    users: list[int | str] = []
    """Only pairs judged by these; empty for everybody."""
    not_users: list[int | str] = []
    """No pairs judged by these."""
    min_votes: int = Field(default=1, ge=1)
    """Only pairs judged by somebody who judged at least this many of the source."""
    models: str = ""
    """A regular expression that the names of both models must contain, such as ``dream``; capitals play no part."""
    min_side: int = Field(default=1, ge=1)
    """Smallest side of an image in pixels; the one filter that looks at images, as they are copied."""
    max_samples: int | None = Field(default=None, ge=1)
    """At most this many pairs of those that the other filters leave: the same ones in whatever order they come."""
    seed: int = 0
    """Another seed takes others where max_samples leaves some out."""
    split: SplitSection = SplitSection()

    @field_validator("models")
    @classmethod
    def _is_an_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return value

    def needs_survey(self) -> bool:
        """Whether a pair can only be judged when all are known."""
        return self.min_votes > 1 or self.max_samples is not None


@dataclass(frozen=True, slots=True)
class Traits:
    """What filters look at. ``key`` names the pair, whatever file it is in."""

    tie: bool
    user: str | None
    models: tuple[str | None, str | None]
    prompt: str
    key: str


@dataclass
class Survey:
    """What has to be known of the whole source first."""

    votes: Counter[str | None] = field(default_factory=Counter)
    """Of everybody who has a name."""
    last: int | None = None
    """Pairs with a larger `sample_key` are more than max_samples; None where all are taken."""

    def has_votes(self, user: str | None, least: int) -> bool:
        """Whether ``user`` is known to have judged so many; of one without a name nothing is known."""
        return least <= 1 or self.votes[user] >= least


class Sieve:
    """The filters, ready to judge one pair after another."""

    def __init__(self, section: FilterSection, survey: Survey) -> None:
        self._section, self._survey = section, survey
        self.unlabelled = section.unlabelled
        self._users, self._not_users = set(map(str, section.users)), set(map(str, section.not_users))
        self._models = re.compile(section.models, re.IGNORECASE)

    def why_left_out(self, pair: Traits) -> str:
        """The first filter that leaves ``pair`` out, in words; empty when it is taken."""
        section = self._section
        if pair.tie and section.ties == "drop":
            return "ties dropped"
        if (self._users and pair.user not in self._users) or pair.user in self._not_users:
            return "by other users"
        if section.models and not all(name and self._models.search(name) for name in pair.models):
            return "by other models"
        if section.split.held_out and is_held_out(pair.prompt, section.split.held_out) != (
            section.split.take == "held_out"
        ):
            return "on the other side of the split"
        if not self._survey.has_votes(pair.user, section.min_votes):
            return "by users with few votes"
        if self._survey.last is not None and sample_key(section.seed, pair.key) > self._survey.last:
            return TOO_MANY
        return ""


def is_held_out(prompt: str, share: float) -> bool:
    """Whether a prompt is held out: a function of its words alone, so no data set and no order changes it."""
    return _hash("held out", normal_prompt(prompt)) < share * 2**64


def normal_prompt(prompt: str) -> str:
    """A prompt without what people do not mean by it: capitals, repeated blanks, forms of the same character."""
    return " ".join(unicodedata.normalize("NFKC", clean_text(prompt)).casefold().split())


def sample_key(seed: int, key: str) -> int:
    """64 bits; pairs with the smallest ones are taken."""
    return _hash(f"sample {seed}", key)


def stable_id(*parts: Any) -> int:
    """63 bits that name a thing, the same in every process."""
    return _hash("id", "\x1f".join(map(str, parts))) >> 1


def traits_of(values: Mapping[str, Any], user: str | None, key: str) -> Traits:
    """The traits of a pair with clean labels, or none; a prompt that is a list counts by its first text."""
    texts = values.get("caption") or values.get("caption_0") or [""]
    models = values.get("model_0"), values.get("model_1")
    labels = values["label_0"], values["label_1"]
    return Traits(labels[0] is not None and labels[0] == labels[1], user, models, texts[0], key)


def _hash(purpose: str, text: str) -> int:
    data = f"{purpose}\x1f{text}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
