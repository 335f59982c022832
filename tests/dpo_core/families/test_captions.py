import torch

from dpo_core.families.captions import CaptionMemory

CPU = torch.device("cpu")


def test_a_caption_is_encoded_once_for_each_encoder():
    calls: list[str] = []
    memory = CaptionMemory(CPU)

    def encode(caption: str):
        calls.append(caption)
        return (torch.full((1, 2), float(len(caption))),)

    first = memory.recall("clip", "a cat", encode)
    again = memory.recall("clip", "a cat", encode)
    memory.recall("t5", "a cat", encode)
    assert calls == ["a cat", "a cat"]
    assert torch.equal(first[0], again[0])


def test_the_caption_that_was_not_used_for_longest_is_forgotten_first():
    calls: list[str] = []
    memory = CaptionMemory(CPU, max_bytes=2 * 4 * 10)

    def encode(caption: str):
        calls.append(caption)
        return (torch.zeros(1, 10),)

    for caption in ("one", "two", "one", "three", "one", "two"):
        memory.recall("clip", caption, encode)
    assert calls == ["one", "two", "three", "two"]
    assert memory.bytes == 2 * 4 * 10


def test_only_what_is_not_kept_carries_a_gradient():
    weight = torch.ones(1, requires_grad=True)
    memory = CaptionMemory(CPU)
    (kept,) = memory.recall("clip", "a", lambda caption: (weight * 2,))
    (fresh,) = memory.recall("clip", "a", lambda caption: (weight * 3,), keep=False)
    (still,) = memory.recall("clip", "a", lambda caption: (weight * 4,))
    assert not kept.requires_grad
    assert fresh.requires_grad
    assert (kept.item(), fresh.item(), still.item()) == (2, 3, 2)
