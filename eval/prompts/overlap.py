"""Did the models train on the prompts that they are judged by?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from eval.prompts import Prompt
from eval.prompts.files import is_text_set, normalized, read_prompts
from eval.section import Record

SHORT = 6
"""Words; shorter prompts are common property, so a match says little."""
CAPTIONS = ("caption", "caption_0", "caption_1", "chosen_captions", "rejected_captions", "prompt", "text")


@dataclass(frozen=True)
class Overlap(Record):
    """What a prompt set and training captions have in common, compared without case, punctuation and spacing."""

    prompt_set: str
    source: str
    """File or folder of the training captions."""
    prompts: int
    captions: int | None
    """Distinct captions of the source; None if it could not be read, so nothing is known."""
    shared: int
    """Prompts that are among the captions."""
    shared_long: int
    """Those of at least six words: shorter ones meet by chance."""
    indices: list[int]
    problem: str = ""


def find_overlap(prompts: Sequence[Prompt], sources: Iterable[str]) -> list[Overlap]:
    """The overlap of every prompt set with every source; one that cannot be read says so instead of 'none'."""
    found = []
    for label in dict.fromkeys(prompt.set for prompt in prompts):
        mine = [prompt for prompt in prompts if prompt.set == label]
        for source in dict.fromkeys(sources):
            try:
                captions = training_captions(source)
            except (ValueError, OSError) as error:
                found.append(Overlap(label, source, len(mine), None, 0, 0, [], str(error)))
                continue
            shared = [prompt for prompt in mine if normalized(prompt.text) in captions]
            long = sum(len(prompt.text.split()) >= SHORT for prompt in shared)
            indices = [prompt.index for prompt in shared]
            found.append(Overlap(label, source, len(mine), len(captions), len(shared), long, indices))
    return found


@lru_cache(maxsize=8)
def training_captions(source: str) -> frozenset[str]:
    """The normalised captions of a preference set (folder or file of parquet) or a list of texts.

    Raises ValueError if there are none to be read.
    """
    path = Path(source)
    files = sorted(file for file in path.rglob("*") if is_text_set(file)) if path.is_dir() else [path]
    files = [file for file in files if file.name != "quarantine.parquet" and file.suffix != ".json"]
    captions: set[str] = set()
    for file in files:
        if not file.is_file():
            raise ValueError(f"no file or folder {source!r}")
        captions.update(normalized(text) for text in _texts(file))
    captions.discard("")
    if not captions:
        raise ValueError(f"{source!r} holds no captions")
    return frozenset(captions)


def _texts(file: Path) -> Iterable[str]:
    if file.suffix != ".parquet":
        return [text for text, _ in read_prompts(file)]
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [name for name in pq.read_schema(file).names if name in CAPTIONS]
    texts: list[str] = []
    for column in pq.read_table(file, columns=columns).columns:
        nested = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        values = column.combine_chunks().flatten() if nested else column
        texts += [_decoded(value) for value in values.cast(pa.binary()).unique().to_pylist() if value is not None]
    return texts


def _decoded(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")
