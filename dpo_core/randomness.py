"""What is random for a pair: a function of (seed, epoch, pair id, purpose) and of nothing else.

Rank, worker count, batch size and history never enter, so N workers draw what one worker draws and a resumed run
draws what the uninterrupted run would have drawn.
"""

import hashlib

import torch


def key(seed: int, epoch: int, pair_id: str, purpose: str) -> int:
    """A 63-bit integer that names one random decision."""
    text = f"{seed}\x1f{epoch}\x1f{pair_id}\x1f{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(seed: int, epoch: int, pair_id: str, purpose: str) -> torch.Generator:
    """A fresh CPU generator for one decision of one pair; the same on every machine and device."""
    return torch.Generator().manual_seed(key(seed, epoch, pair_id, purpose))


def uniform(seed: int, epoch: int, pair_id: str, purpose: str) -> float:
    """One number in [0, 1) with 53 random bits."""
    return (key(seed, epoch, pair_id, purpose) >> 10) / float(1 << 53)


def normal(shape: tuple[int, ...], seed: int, epochs: list[int], pair_ids: list[str], purpose: str) -> torch.Tensor:
    """Standard normal draws, float32, ``[pairs, *shape]``, on the CPU; row i belongs to pair i alone."""
    draws = [
        torch.randn(shape, generator=generator(seed, epoch, pair_id, purpose))
        for epoch, pair_id in zip(epochs, pair_ids, strict=True)
    ]
    return torch.stack(draws)
