"""Captioning models in the worker itself: image-text-to-text models and the DIPPER paraphraser, by transformers."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import Field

from dpo_core import randomness
from dpo_core.data.quarantine import RowRejected
from dpo_core.section import Section
from ray_jobs.captioning.endpoint import Answer, Question
from ray_jobs.captioning.texts import DIPPER_PREFIX, caption_of, dipper_input, windows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LocalModel(Section):
    """A model of transformers; only safetensors are read, and no code of a model is run."""

    model: str
    """A folder or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Precision of the weights."""
    batch_size: int = Field(default=4, ge=1)
    """Texts that are written at once."""

    def parts(self, model_class: Any, processor_class: Any, processor: str) -> tuple[Any, Any]:
        """The model on its device and its processor. Raises ValueError when they cannot be read."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        # A model that one GPU does not hold is laid over all that the worker has.
        many = torch.cuda.device_count() > 1
        place = {"device_map": "auto"} if many else {}
        try:
            reader = processor_class.from_pretrained(
                processor, revision=self.revision if processor == self.model else None
            )
            model = model_class.from_pretrained(
                self.model, revision=self.revision, dtype=DTYPES[self.dtype], use_safetensors=True, **place
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot load the captioning model {self.model!r}: {error}") from error
        if not many and torch.cuda.is_available():
            model = model.to("cuda")
        return model.eval(), reader


class VisionModel:
    """Describes images; the likeliest words, so an answer depends on the image and the text alone."""

    def __init__(self, section: LocalModel, max_new_tokens: int) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._model, self._processor = section.parts(AutoModelForImageTextToText, AutoProcessor, section.model)
        self._batch_size, self._max_new_tokens = section.batch_size, max_new_tokens
        # Answers begin where the batch ends, so what is shorter must be filled up in front.
        self._processor.tokenizer.padding_side = "left"

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order."""
        size = self._batch_size
        return [
            answer
            for first in range(0, len(questions), size)
            for answer in self._batch(questions[first : first + size])
        ]

    @torch.inference_mode()
    def _batch(self, questions: Sequence[Question]) -> list[Answer]:
        texts = [self._chat(question.text) for question in questions]
        images = [Image.fromarray(question.image) for question in questions if question.image is not None]
        inputs = self._processor(images=images, text=texts, padding=True, return_tensors="pt").to(self._model.device)
        inputs = {name: _as(value, self._model.dtype) for name, value in inputs.items()}
        written = self._model.generate(**inputs, do_sample=False, max_new_tokens=self._max_new_tokens)
        length = inputs["input_ids"].shape[1]
        sent = inputs["attention_mask"].sum(dim=1).tolist()
        return [self._answer(tokens[length:], int(count)) for tokens, count in zip(written, sent, strict=True)]

    def _chat(self, text: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _answer(self, tokens: torch.Tensor, sent: int) -> Answer:
        tokenizer = self._processor.tokenizer
        answered = int((tokens != tokenizer.pad_token_id).sum())
        cut_off = answered == self._max_new_tokens and int(tokens[-1]) != tokenizer.eos_token_id
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        return _checked(text, sent=sent, answered=answered, cut_off=cut_off)


class Dipper:
    """The T5 paraphraser of Krishna et al. (arXiv 2303.13408) as DCPO uses it: nucleus sampling with p = 0.75, three
    sentences at a time, each after all that was paraphrased before.

    What is drawn for a text depends on the seed and the pair alone, not on the texts beside it in the batch.
    """

    def __init__(
        self, section: LocalModel, tokenizer: str, *, lexical: int, top_p: float, max_length: int, seed: int
    ) -> None:
        from transformers import AutoTokenizer, T5ForConditionalGeneration

        self._model, self._tokenizer = section.parts(T5ForConditionalGeneration, AutoTokenizer, tokenizer)
        self._batch_size, self._lexical, self._seed = section.batch_size, lexical, seed
        self._top_p, self._max_length = top_p, max_length

    def perturb(self, texts: Sequence[str], pair_ids: Sequence[str]) -> list[Answer]:
        """One answer per text, in order."""
        size = self._batch_size
        return [
            answer
            for first in range(0, len(texts), size)
            for answer in self._batch(texts[first : first + size], pair_ids[first : first + size])
        ]

    def _batch(self, texts: Sequence[str], pair_ids: Sequence[str]) -> list[Answer]:
        parts = [windows(text) for text in texts]
        outputs: list[list[str]] = [[] for _ in texts]
        sent, answered = [0] * len(texts), [0] * len(texts)
        cut_off = [False] * len(texts)
        for turn in range(max(map(len, parts))):
            rows = [row for row, windows_of in enumerate(parts) if turn < len(windows_of)]
            inputs = [
                dipper_input(parts[row][turn], " ".join([DIPPER_PREFIX, *outputs[row]]), self._lexical) for row in rows
            ]
            draws = [
                randomness.generator(self._seed, 0, pair_ids[row], f"paraphrase {turn} of {texts[row]}") for row in rows
            ]
            for row, (text, read, wrote, full) in zip(rows, self._generate(inputs, draws), strict=True):
                outputs[row].append(text)
                sent[row] += read
                answered[row] += wrote
                cut_off[row] |= full
        return [
            _checked(" ".join(output), sent=sent[row], answered=answered[row], cut_off=cut_off[row])
            for row, output in enumerate(outputs)
        ]

    @torch.inference_mode()
    def _generate(self, inputs: list[str], draws: list[torch.Generator]) -> list[tuple[str, int, int, bool]]:
        """Text, tokens read, tokens written and whether the longest length was met, for each input."""
        from transformers import LogitsProcessorList, TopPLogitsWarper

        tokens = self._tokenizer(inputs, padding=True, return_tensors="pt").to(self._model.device)
        sampling = LogitsProcessorList([TopPLogitsWarper(self._top_p), Draw(draws)])
        written = self._model.generate(
            **tokens, do_sample=False, num_beams=1, max_length=self._max_length, logits_processor=sampling
        )
        pad, end = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        results = []
        for row, output in enumerate(written):
            text = self._tokenizer.decode(output, skip_special_tokens=True)
            wrote = int((output != pad).sum())
            results.append((text, int(tokens["attention_mask"][row].sum()), wrote, not bool((output == end).any())))
        return results


class Draw:
    """Turns the greedy choice into a draw from the distribution: the largest of logit + Gumbel noise (Gumbel, 1954).

    Each row has its own generator, which `generate` has no place for.
    """

    def __init__(self, generators: list[torch.Generator]) -> None:
        self._generators = generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [rows, words] plus noise."""
        del input_ids
        uniform = torch.stack([torch.rand(scores.shape[1], generator=own) for own in self._generators])
        tiny = torch.finfo(torch.float32).tiny
        noise = -torch.log((-torch.log(uniform.clamp(min=tiny))).clamp(min=tiny))
        return scores.float() + noise.to(scores.device)


def _checked(text: str, *, sent: int, answered: int, cut_off: bool) -> Answer:
    try:
        return Answer(caption_of(text), sent=sent, answered=answered, cut_off=cut_off)
    except RowRejected as rejected:
        return Answer(rejected=rejected, sent=sent, answered=answered)


def _as(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to(dtype) if value.is_floating_point() else value
