"""A scorer's word on preference pairs: scores, labels, and how far it agrees with the labels that are there."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from dpo_core.data.images import ImageLimits, decode
from dpo_core.data.labelled import LABELLED_BY
from dpo_core.data.quarantine import Reason, RowRejected
from dpo_core.data.schema import chosen_side, clean_text
from eval.scorers.base import Scorer
from eval.stats import win_rate_interval
from ray_jobs.shards.job import Maker, Outcome, Recipe, Row
from ray_jobs.shards.work import read_summary

Mode = Literal["relabel", "filter_agreeing", "add_scores"]

AGREE, DISAGREE, ONE_TIE = "agree", "disagree", "tie for one of the two"
KEPT_LABELS = ("given_label_0", "given_label_1")
NO_LABEL = "none"
Verdict = int | None | Literal["none"]
"""The better side, None for a tie, or "none" where nobody said."""


class LabelRecipe(Recipe):
    """Scores both images of a pair for its prompt; then writes labels, filters, or leaves it at the scores."""

    def __init__(
        self,
        scorer: Scorer,
        column: str,
        mode: Mode,
        *,
        tie_threshold: float,
        batch_size: int,
        limits: ImageLimits,
        per_image: bool,
        given: Sequence[str],
        labelled: Sequence[str] = (),
    ) -> None:
        """``given`` are the columns of the source, ``labelled`` the scorers that labelled it."""
        self.scorer, self.column, self.mode = scorer, column, mode
        self.tie_threshold, self.batch_size, self.limits = tie_threshold, batch_size, limits
        self.per_image, self.labelled = per_image, list(labelled)
        self.judged_before = KEPT_LABELS[0] in given
        labels = KEPT_LABELS if self.judged_before else ("label_0", "label_1")
        self.labels = labels
        self.reads = ("label_0", "label_1", *(KEPT_LABELS if self.judged_before else ()), "has_label", "image_0_uid",
                      "image_1_uid", "caption")  # fmt: skip
        scores = [pa.field(f"{name}_{side}", pa.float64()) for name in self._names().values() for side in (0, 1)]
        self.columns = (*scores, *(_label_columns(kept=not self.judged_before) if mode == "relabel" else ()))

    def read(self, row: Row) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        images = []
        for side in (0, 1):
            try:
                images.append(np.asarray(decode(row.read[side], self.limits)))
            except RowRejected as rejected:
                raise RowRejected(rejected.reason, f"image {side}: {rejected.detail}".rstrip(": ")) from rejected
        return images[0], images[1]

    def load(self) -> Maker:
        score = self.scorer.load("cuda" if torch.cuda.is_available() else "cpu")

        def make(rows: list[Row]) -> list[Outcome]:
            images = [Image.fromarray(image) for row in rows for image in row.read]
            prompts = [prompt_of(row, side) for row in rows for side in (0, 1)]
            results: list[dict[str, float]] = []
            for first in range(0, len(images), self.batch_size):
                part = slice(first, first + self.batch_size)
                results += self._checked(score(images[part], prompts[part]))
            pairs = zip(results[::2], results[1::2], strict=True)
            return [self._outcome(row, pair) for row, pair in zip(rows, pairs, strict=True)]

        return make

    def _checked(self, results: list[dict[str, float]]) -> list[dict[str, float]]:
        for result in results:
            if set(result) != set(self.scorer.columns) or any(math.isinf(value) for value in result.values()):
                raise ValueError(
                    f"scorer {self.scorer.label!r} gave {result}; allowed: finite numbers or NaN for "
                    f"{', '.join(self.scorer.columns)}"
                )
        return results

    def _names(self) -> dict[str, str]:
        """What a column of the scorer is called in the set."""
        label = self.scorer.label
        return {name: label if name == label else f"{label}_{name}" for name in self.scorer.columns}

    def _outcome(self, row: Row, pair: tuple[dict[str, float], dict[str, float]]) -> Outcome:
        values: dict[str, Any] = {
            f"{name}_{side}": None if math.isnan(pair[side][column]) else pair[side][column]
            for column, name in self._names().items()
            for side in (0, 1)
        }
        numbers = [result[self.column] for result in pair]
        if any(map(math.isnan, numbers)):
            if self.mode == "add_scores":
                return Outcome.made(values, **{"not scored": 1})
            said = f"{self.scorer.label}/{self.column} does not apply"
            return Outcome(rejected=RowRejected(Reason.SCORE_MISSING, said))
        verdict, given = self._verdict(numbers), self._given(row)
        counts = {} if given == NO_LABEL else {_agreement(verdict, given): 1}
        if self.mode == "filter_agreeing" and (verdict is None or verdict != given):
            why = "the scorer sees a tie" if verdict is None else "the scorer disagrees"
            return Outcome(left_out=why, counts=counts)
        if self.mode == "relabel":
            values |= _labels(verdict, row, kept=None if self.judged_before else given)
            counts |= {"ties of the scorer": int(verdict is None)}
        return Outcome(rows=(values,), counts={name: count for name, count in counts.items() if count})

    def _verdict(self, numbers: list[float]) -> int | None:
        ahead = (numbers[0] - numbers[1]) * (1 if self.scorer.higher_is_better else -1)
        return None if abs(ahead) <= self.tie_threshold else int(ahead < 0)

    def _given(self, row: Row) -> Verdict:
        has_label = True if self.judged_before else row.values["has_label"] is not False
        try:
            return chosen_side(row.values[self.labels[0]], row.values[self.labels[1]], has_label)
        except RowRejected:
            return NO_LABEL

    def report(self, files: list[str]) -> dict[str, Any]:
        """Agreement with the labels that were given, a tie on one of the two sides counting one half."""
        own = f"{self.scorer.label}/{self.column}"
        by = {"relabel": [own], "filter_agreeing": [*self.labelled, own], "add_scores": self.labelled}[self.mode]
        counts: Counter[str] = Counter()
        for file in files:
            counts.update(read_summary(file).counts)
        return {LABELLED_BY: list(dict.fromkeys(by)), **agreement(counts, own)}


def agreement(counts: Counter[str], name: str) -> dict[str, Any]:
    """Share of pairs on which a scorer and the given labels agree, with a 95 % interval.

    Pairs are taken as independent; where many have the same prompt, the interval is somewhat too narrow.
    """
    numbers = [int(counts[key]) for key in (DISAGREE, ONE_TIE, AGREE)]
    shares = np.repeat([0.0, 0.5, 1.0], numbers)
    if not len(shares):
        return {"agreement": f"{name} and nobody: no pair had a label"}
    low, high = win_rate_interval(shares)
    return {
        "agreement": round(float(shares.mean()), 4),
        "95 % interval": [round(low, 4), round(high, 4)],
        "labelled pairs": len(shares),
        **dict(zip((DISAGREE, ONE_TIE, AGREE), numbers, strict=True)),
    }


def prompt_of(row: Row, side: int) -> str:
    """What the image was asked to show: the pair's prompt, even where each image has a caption of its own for training.

    The caption of the image itself where the set has no prompt.
    """
    given = row.values["caption"]
    prompt = clean_text((given[0] if given else "") if isinstance(given, list) else given or "")
    return prompt or row.captions[side][0]


def _agreement(verdict: int | None, given: Verdict) -> str:
    if verdict == given:
        return AGREE
    return ONE_TIE if verdict is None or given is None else DISAGREE


def _label_columns(*, kept: bool) -> list[pa.Field]:
    fields = [(name, pa.float64()) for name in ("label_0", "label_1", *(KEPT_LABELS if kept else ()))]
    fields += [("has_label", pa.bool_()), ("best_image_uid", pa.string())]
    return [pa.field(*field) for field in fields]


def _labels(verdict: int | None, row: Row, *, kept: Verdict) -> dict[str, Any]:
    label_0 = 0.5 if verdict is None else float(verdict == 0)
    uid = "none" if verdict is None else row.values[f"image_{verdict}_uid"]
    before = (
        {} if kept == NO_LABEL else dict(zip(KEPT_LABELS, (row.values["label_0"], row.values["label_1"]), strict=True))
    )
    return {"label_0": label_0, "label_1": 1 - label_0, "has_label": True, "best_image_uid": uid, **before}
