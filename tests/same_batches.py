"""When two streams of batches are the same: every field, bit for bit."""

from collections.abc import Iterator
from dataclasses import fields
from itertools import islice

import torch

from dpo_core.data.batches import PairBatch


def take(stream: Iterator[list[PairBatch]], steps: int) -> list[list[PairBatch]]:
    return list(islice(stream, steps))


def flat(steps: list[list[PairBatch]]) -> list[PairBatch]:
    return [batch for step in steps for batch in step]


def pixels_of(batch: PairBatch) -> torch.Tensor:
    assert batch.pixels is not None
    return batch.pixels


def assert_same(left: list[list[PairBatch]], right: list[list[PairBatch]]) -> None:
    assert [len(step) for step in left] == [len(step) for step in right]
    for ours, theirs in zip(flat(left), flat(right), strict=True):
        for field in fields(PairBatch):
            one, other = getattr(ours, field.name), getattr(theirs, field.name)
            if isinstance(one, torch.Tensor):
                assert one.dtype == other.dtype, field.name
                assert torch.equal(one, other), field.name
            else:
                assert one == other, field.name
