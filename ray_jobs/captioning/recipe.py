"""Pairs with one prompt to pairs with a caption for each image (DCPO, arXiv 2502.06023, section 3)."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from dpo_core.data.files import read_column
from dpo_core.data.images import ImageLimits, decode
from dpo_core.data.labelled import LABELLED_BY
from dpo_core.data.quarantine import Reason, RowRejected
from eval.scorers.clip import CLIPScore
from eval.stats import mean_interval
from ray_jobs.captioning.endpoint import Answer, Chat, Endpoint, Question
from ray_jobs.captioning.section import (
    DescribeLocally,
    Describer,
    GivenCaptions,
    PerturbByDipper,
    PerturbByEndpoint,
    Perturber,
    Variant,
)
from ray_jobs.captioning.texts import CHANGES, LEXICAL, Strength, caption_of, fill
from ray_jobs.shards.job import Maker, Outcome, Recipe, Row

TEXTS = ("generated_0", "generated_1", "perturbed_prompt", "perturbed_caption")
SCORE_BATCH = 16


class Asks(Protocol):
    """A model that describes images."""

    def ask(self, questions: Sequence[Question]) -> list[Answer]: ...


Perturb = Callable[[Sequence[str], Sequence[str]], list[Answer]]
"""(texts, pair ids) -> one answer for each text."""


@dataclass
class Draft:
    """What is known of a pair so far."""

    row: Row
    side: int
    """The chosen one."""
    texts: dict[str, str]
    counts: Counter[str]
    rejected: RowRejected | None = None


class CaptionRecipe(Recipe):
    """Generated captions for the images, perturbed ones for the loser, and the variants put together of them."""

    def __init__(
        self,
        describe: Describer,
        perturb: Perturber | None,
        variants: Sequence[Variant],
        *,
        strength: Strength,
        perturb_of: str,
        scorer: CLIPScore | None,
        limits: ImageLimits,
        image_side: int,
        per_image: bool,
        labelled: Sequence[str] = (),
    ) -> None:
        self.describe, self.perturb, self.variants = describe, perturb, tuple(variants)
        self.strength: Strength = strength
        self.perturb_of, self.scorer = perturb_of, scorer
        self.limits, self.image_side, self.per_image = limits, image_side, per_image
        self.labelled = list(labelled)
        self.reads = describe.columns if isinstance(describe, GivenCaptions) else ()
        self.uses_gpu = (
            scorer is not None or isinstance(describe, DescribeLocally) or isinstance(perturb, PerturbByDipper)
        )
        captions = [f"caption_{name}" for name in ("0", "1", *(f"{v}_{i}" for v in variants for i in (0, 1)))]
        names = [*captions, *TEXTS, *(("prompt_0", "prompt_1") if per_image else ())]
        scores = ("clip_0", "clip_1", "clip_gap") if scorer is not None else ()
        self.columns = (
            *(pa.field(name, pa.string()) for name in names),
            *(pa.field(name, pa.float64()) for name in scores),
        )

    def read(self, row: Row) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        images = [self._image(row.read[side], side) for side in (0, 1)]
        return images[0], images[1]

    def _image(self, data: bytes | None, side: int) -> NDArray[np.uint8]:
        try:
            image = Image.fromarray(np.asarray(decode(data, self.limits)))
        except RowRejected as rejected:
            raise RowRejected(rejected.reason, f"image {side}: {rejected.detail}".rstrip(": ")) from rejected
        image.thumbnail((self.image_side, self.image_side), Image.Resampling.BICUBIC)
        return np.asarray(image)

    def load(self) -> Maker:
        asker = load_describer(self.describe)
        perturb = load_perturber(self.perturb, self.strength) if self.perturb is not None else None
        score = self.scorer.load("cuda" if torch.cuda.is_available() else "cpu") if self.scorer is not None else None

        def make(rows: list[Row]) -> list[Outcome]:
            drafts = [Draft(row, _decided(row), {}, Counter()) for row in rows]
            self._describe(drafts, asker)
            if perturb is not None:
                self._perturb(drafts, perturb)
            scores = self._scores([draft for draft in drafts if draft.rejected is None], score)
            return [self._outcome(draft, scores) for draft in drafts]

        return make

    def _describe(self, drafts: list[Draft], asker: Asks | None) -> None:
        wanted = [(draft, side) for draft in drafts for side in self._described(draft.side)]
        if asker is None:
            for draft, side in wanted:
                self._take(draft, f"generated_{side}", _given(draft.row.values[self.reads[side]]), 0)
            return
        assert not isinstance(self.describe, GivenCaptions)
        questions = [
            Question(fill(self.describe.instruction, prompt=draft.row.captions[side][0]), draft.row.read[side])
            for draft, side in wanted
        ]
        for (draft, side), answer in zip(wanted, asker.ask(questions), strict=True):
            self._take(draft, f"generated_{side}", answer, self._cost(self.describe, answer))

    def _described(self, chosen: int) -> tuple[int, ...]:
        """The images that need a caption."""
        if "c" in self.variants or ("h" in self.variants and self.perturb_of == "rejected"):
            return (0, 1)
        return (chosen,) if "h" in self.variants else ()

    def _perturb(self, drafts: list[Draft], perturb: Perturb) -> None:
        wanted: list[tuple[Draft, str, str]] = []
        for draft in drafts:
            if draft.rejected is None and "p" in self.variants:
                wanted.append((draft, "perturbed_prompt", draft.row.captions[draft.side][0]))
            if draft.rejected is None and "h" in self.variants:
                of = draft.side if self.perturb_of == "chosen" else 1 - draft.side
                wanted.append((draft, "perturbed_caption", draft.texts[f"generated_{of}"]))
        answers = perturb([text for _, _, text in wanted], [draft.row.pair_id for draft, _, _ in wanted])
        for (draft, name, text), answer in zip(wanted, answers, strict=True):
            self._take(draft, name, answer, self._cost(self.perturb, answer))
            draft.counts["perturbed to the same"] += answer.text.casefold() == text.casefold()

    def _cost(self, model: Any, answer: Answer) -> float:
        return model.cost(answer.sent, answer.answered) if isinstance(model, Endpoint) else 0.0

    def _take(self, draft: Draft, name: str, answer: Answer, cost: float) -> None:
        called = not (name in TEXTS[:2] and self.reads)
        counts = {"calls": called, "tokens sent": answer.sent, "tokens answered": answer.answered, "cost": cost}
        draft.counts.update({**counts, "cut off": answer.cut_off})
        draft.texts[name] = answer.text
        if answer.rejected is not None and draft.rejected is None:
            draft.rejected = RowRejected(answer.rejected.reason, f"{name}: {answer.rejected.detail}")

    def _captions(self, draft: Draft, variant: Variant) -> tuple[str, str]:
        """The captions of image 0 and image 1."""
        texts, side = draft.texts, draft.side
        if variant == "c":
            return texts["generated_0"], texts["generated_1"]
        if variant == "p":
            pair = draft.row.captions[side][0], texts["perturbed_prompt"]
        else:
            pair = texts[f"generated_{side}"], texts["perturbed_caption"]
        return pair if side == 0 else (pair[1], pair[0])

    def _scores(self, drafts: list[Draft], score: Any) -> dict[str, tuple[float, float]]:
        if score is None:
            return {}
        images = [Image.fromarray(image) for draft in drafts for image in draft.row.read]
        texts = [text for draft in drafts for text in self._captions(draft, self.variants[0])]
        values = [
            row["clip"]
            for first in range(0, len(images), SCORE_BATCH)
            for row in score(images[first : first + SCORE_BATCH], texts[first : first + SCORE_BATCH])
        ]
        both = zip(values[::2], values[1::2], strict=True)
        return {draft.row.pair_id: pair for draft, pair in zip(drafts, both, strict=True)}

    def _outcome(self, draft: Draft, scores: dict[str, tuple[float, float]]) -> Outcome:
        counts = {name: count for name, count in draft.counts.items() if count}
        if draft.rejected is not None:
            return Outcome(rejected=draft.rejected, counts=counts)
        values: dict[str, Any] = dict(draft.texts)
        for variant in self.variants:
            values |= {f"caption_{variant}_{i}": text for i, text in enumerate(self._captions(draft, variant))}
        values |= {f"caption_{i}": text for i, text in enumerate(self._captions(draft, self.variants[0]))}
        values |= {f"prompt_{i}": texts[0] for i, texts in enumerate(draft.row.captions)}
        if draft.row.pair_id in scores:
            pair = scores[draft.row.pair_id]
            gap = pair[draft.side] - pair[1 - draft.side]
            values |= {"clip_0": pair[0], "clip_1": pair[1], "clip_gap": gap}
        return Outcome(rows=(values,), counts=counts)

    def report(self, files: list[str]) -> dict[str, Any]:
        """Who labelled the set; the mean gap of the CLIPScores of chosen and rejected image with their captions."""
        report: dict[str, Any] = {LABELLED_BY: self.labelled}
        if self.scorer is None:
            return report
        gaps = np.concatenate([read_column(file, "clip_gap").to_numpy() for file in files])
        if not len(gaps):
            return report
        low, high = mean_interval(gaps)
        return report | {
            "CLIPScore gap": round(float(gaps.mean()), 4),
            "95 % interval": [round(low, 4), round(high, 4)],
        }


def load_describer(describe: Describer) -> Asks | None:
    """None where the captions are there already. Raises ValueError as the models do."""
    if isinstance(describe, GivenCaptions):
        return None
    if isinstance(describe, DescribeLocally):
        from ray_jobs.captioning.local import VisionModel

        return VisionModel(describe, describe.max_tokens)
    return Chat(describe)


def load_perturber(section: Perturber, strength: Strength) -> Perturb:
    """Raises ValueError as the models do."""
    if isinstance(section, PerturbByEndpoint):
        chat = Chat(section)
        ask = section.instruction
        return lambda texts, ids: chat.ask([Question(fill(ask, caption=t, change=CHANGES[strength])) for t in texts])
    from ray_jobs.captioning.local import Dipper

    dipper = Dipper(
        section,
        section.tokenizer,
        lexical=LEXICAL[strength],
        top_p=section.top_p,
        max_length=section.max_length,
        seed=section.seed,
    )
    return dipper.perturb


def _given(text: str | None) -> Answer:
    try:
        return Answer(caption_of(text))
    except RowRejected as rejected:
        return Answer(rejected=RowRejected(Reason.CAPTION_EMPTY, rejected.detail))


def _decided(row: Row) -> int:
    assert row.side is not None, "only decided pairs have a loser whose caption is perturbed"
    return row.side
