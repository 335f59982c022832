"""What captioning models are asked, and what is made of their answers."""

import re
from typing import Literal

from dpo_core.data.quarantine import Reason, RowRejected
from dpo_core.data.schema import clean_text

Strength = Literal["weak", "medium", "strong"]

LEXICAL = {"weak": 40, "medium": 60, "strong": 80}
"""How much of the wording changes, in percent, as DCPO calls the levels (arXiv 2502.06023)."""

DIPPER_PREFIX = "Paraphrase and perturb the following image caption."

DESCRIBE = (
    "This image was generated for the prompt: {prompt}\n"
    "Write a caption that says in one or two sentences what the image really shows: what is there, how many, which "
    "colours, where, in which style. Mention nothing of the prompt that the image does not show. Answer with the "
    "caption alone."
)
PERTURB = (
    "Here is a caption of an image: {caption}\n"
    "Rewrite it so that it {change}. It must stay one fluent caption of about the same length. Answer with the new "
    "caption alone."
)
CHANGES = {
    "weak": "describes nearly the same image with one detail changed, about four words in ten being different",
    "medium": "describes a similar image with several details changed, about six words in ten being different",
    "strong": "describes an image on the same theme with most details changed, about eight words in ten being new",
}

_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_LABEL = re.compile(
    r"^(\*\*)?(the )?(new |rewritten |image )?(caption|description)(\*\*)?\s*:\s*(\*\*)?\s*", re.IGNORECASE
)
_REFUSAL = re.compile(
    r"^(i['\u2019]?m (very |really )?sorry|sorry\b|i apologi[sz]e|as an ai\b|unfortunately, i "
    r"|i (can ?not|can['\u2019]t|am (not able|unable)|won['\u2019]t))",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "\u201c": "\u201d", "'": "'", "\u2018": "\u2019", "`": "`"}
_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"'\u201d\u2019)]))\s+(?=[\"'\u201c\u2018(]*[A-Z0-9])")
_ABBREVIATION = re.compile(r"(?:\b(?:mr|mrs|ms|dr|st|vs|prof|jr|sr|e\.g|i\.e)|\b[A-Za-z])\.$", re.IGNORECASE)


def caption_of(answer: str | None) -> str:
    """The caption in a model's answer, on one line, without labels and quotes around it.

    Raises RowRejected when there is none or the model declines.
    """
    text = " ".join(clean_text(_THINKING.sub("", answer or "")).split())
    text = _LABEL.sub("", text)
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    if not text:
        raise RowRejected(Reason.CAPTION_EMPTY, "the model answered nothing")
    if _REFUSAL.match(text):
        raise RowRejected(Reason.CAPTION_REFUSED, text[:200])
    return text


def fill(template: str, **values: str) -> str:
    """``template`` with ``{name}`` replaced; other braces stay, since prompts are full of them."""
    return re.sub("|".join(rf"\{{{name}\}}" for name in values), lambda found: values[found[0][1:-1]], template)


def sentences(text: str) -> list[str]:
    """The sentences of ``text``; an initial or a common abbreviation ends none."""
    parts = _SENTENCE_END.split(" ".join(text.split()))
    joined = parts[:1]
    for part in parts[1:]:
        if _ABBREVIATION.search(joined[-1]):
            joined[-1] += f" {part}"
        else:
            joined.append(part)
    return joined


def windows(text: str, size: int = 3) -> list[str]:
    """Runs of ``size`` sentences, the last may have fewer."""
    found = sentences(text)
    return [" ".join(found[first : first + size]) for first in range(0, len(found), size)]


def dipper_input(window: str, so_far: str, lexical: int, order: int = 0) -> str:
    """What DIPPER (arXiv 2303.13408) reads for one window: codes say how much is kept, not how much changes.

    ``so_far`` is the prefix with all that was paraphrased before. ``lexical`` and ``order`` in 0, 20, ..., 100.
    """
    before = " ".join(so_far.split())
    return f"lexical = {100 - lexical}, order = {100 - order} {before} <sent> {window} </sent>"
