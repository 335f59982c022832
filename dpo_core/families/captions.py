"""Captions as text encoders read them, one at a time, and the memory of those that were read."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

States = tuple[Tensor, ...]


class StoredStates(Protocol):
    """What was encoded before the run."""

    def find(self, encoder: str, caption: str) -> States:
        """What ``encoder`` made of ``caption``, on the CPU. Raises ValueError when that is not stored."""
        ...


class CaptionMemory:
    """Encoded captions, the least recently used forgotten first. With ``stored`` they are read, not encoded.

    A caption in T5-XXL's states takes 2 to 4 MiB, so not all of a large data set can be kept, and none of it on the
    accelerator. Forgetting changes no bits: each caption is encoded alone, whenever it is encoded.
    """

    def __init__(self, device: torch.device, max_bytes: int = 4 << 30) -> None:
        self.device = device
        self.max_bytes = max_bytes
        self.bytes = 0
        self.stored: StoredStates | None = None
        self._states: OrderedDict[tuple[str, str], States] = OrderedDict()

    def recall(self, encoder: str, caption: str, encode: Callable[[str], States], *, keep: bool = True) -> States:
        """``encode(caption)`` on the device. With ``keep`` it runs without gradient and at most once while remembered;
        otherwise it runs now, with whatever gradient the caller's context allows."""
        if not keep:
            return encode(caption)
        name = (encoder, caption)
        if name in self._states:
            self._states.move_to_end(name)
        else:
            if self.stored is not None:
                self._states[name] = self.stored.find(encoder, caption)
            else:
                with torch.no_grad():
                    self._states[name] = tuple(state.cpu() for state in encode(caption))
            self.bytes += size(self._states[name])
            while self.bytes > self.max_bytes and len(self._states) > 1:
                self.bytes -= size(self._states.popitem(last=False)[1])
        return tuple(state.to(self.device) for state in self._states[name])

    def take(self) -> list[tuple[str, str, States]]:
        """(encoder, caption, states) of everything that is remembered, which is then forgotten."""
        taken = [(encoder, caption, states) for (encoder, caption), states in self._states.items()]
        self._states.clear()
        self.bytes = 0
        return taken


def size(states: States) -> int:
    """Bytes of all states together."""
    return sum(state.numel() * state.element_size() for state in states)


def clip_states(
    tokenizer: Any, encoder: Any, caption: str, length: int
) -> tuple[Float[Tensor, "1 tokens width"], Float[Tensor, "1 projected"]]:
    """The last but one hidden layer without the final norm, and the pooled state (projected where CLIP has that)."""
    output = encoder(tokens(tokenizer, encoder, caption, length), output_hidden_states=True)
    projected = getattr(output, "text_embeds", None)
    return output.hidden_states[-2], output.pooler_output if projected is None else projected


def t5_states(tokenizer: Any, encoder: Any, caption: str, length: int) -> tuple[Float[Tensor, "1 tokens width"]]:
    """The last hidden layer over ``length`` tokens; padding is attended to, as the pipelines have it."""
    return (encoder(tokens(tokenizer, encoder, caption, length))[0],)


def tokens(tokenizer: Any, encoder: Any, caption: str, length: int) -> Tensor:
    """Token ids of one caption, padded or cut to ``length``, on the encoder's device."""
    read = tokenizer(caption, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return read.input_ids.to(encoder.device)
