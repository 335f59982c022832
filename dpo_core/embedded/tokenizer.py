"""The embedded model's tokenizer: byte-level CLIP BPE in which every word of the world is one token."""

import json
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from dpo_core.data.sources.shapes import COLOURS, RELATIONS, SHAPES

MAX_LENGTH = 32
"""Tokens per text with both ends: the longest caption of the world takes 10, a longer text is cut."""

END = "</w>"
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """Writes ``vocab.json`` and ``merges.txt`` to ``folder`` and returns the tokenizer that reads them.

    Any text can be tokenised: what is not a word of the world falls back to its bytes.
    """
    vocabulary, merges = _byte_pairs(words())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "bos_token": START_TOKEN,
        "eos_token": END_TOKEN,
        "unk_token": END_TOKEN,
        "pad_token": END_TOKEN,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def words() -> list[str]:
    """The words of the world's captions, in a fixed order."""
    relations = [word for relation in RELATIONS for word in relation.split()]
    return list(dict.fromkeys(["a", *COLOURS, *SHAPES, *relations]))


def _byte_pairs(whole: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token ids and merges under which each of ``whole`` becomes one token.

    A merge added for a later word ranks after all merges of an earlier one, so it never changes how that one is built.
    """
    merges: list[tuple[str, str]] = []
    for word in whole:
        pieces = _merged([*word[:-1], word[-1] + END], merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _merged([*word[:-1], word[-1] + END], merges)
    characters = _byte_characters()
    tokens = [*characters, *(character + END for character in characters), *(one + two for one, two in merges)]
    vocabulary = {token: i for i, token in enumerate([*tokens, START_TOKEN, END_TOKEN])}
    assert len(vocabulary) == len(tokens) + 2
    return vocabulary, merges


def _merged(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    rank = {pair: i for i, pair in enumerate(merges)}
    while True:
        known = [(rank[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in rank]
        if not known:
            return pieces
        _, i = min(known)
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]


def _byte_characters() -> list[str]:
    """The 256 printable characters by which byte-level BPE writes bytes: itself if printable, else one from 256 up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
