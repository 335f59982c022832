"""What every source is: a section of the config that tells of pairs, but never touches an image."""

import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from dpo_core.data import files, locations
from dpo_core.data.quarantine import Quarantined, Reason
from dpo_core.section import Section


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where an encoded image lies.

    A file; with ``member`` a file in an archive; with ``row`` as well the cell of a parquet file in the column
    ``member``, rows counted within the file.
    """

    location: str
    member: str | None = None
    row: int | None = None

    def encode(self) -> bytes:
        return json.dumps([self.location, self.member, self.row]).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Pointer":
        return cls(*json.loads(data))


@dataclass(frozen=True, slots=True)
class Record:
    """One pair as its source tells it; ``file`` and ``row`` (from 0) are where it is told."""

    file: str
    row: int
    images: tuple[Pointer | None, Pointer | None]
    values: dict[str, Any]
    """Columns of `dpo_core.data.schema` (labels, captions, ids, patch quality maps); text may be a list of texts."""
    user: str | None = None
    """Who judged, as the source names them."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A pair that a setting of the source leaves out, and which one."""

    why: str


Told = Record | Quarantined | LeftOut


class Source(Section):
    """A public data set, or a layout of files, as rows of our schema."""

    expects: ClassVar[str]
    """What must be there, in a line."""
    extra: ClassVar[tuple[str, ...]] = ()
    """Columns it gives beyond those of the schema."""

    @abstractmethod
    def files(self) -> list[str]:
        """The files that tell of the pairs; images that lie in other files are not among them. Raises ValueError."""

    @abstractmethod
    def told(self) -> Iterator[Told]:
        """Every pair, in a fixed order. Raises ValueError when a file cannot be read or is of another form."""

    def extra_columns(self) -> tuple[str, ...]:
        return self.extra


def find_files(paths: list[str], suffixes: tuple[str, ...]) -> list[str]:
    """All files behind ``paths``, each once. Raises ValueError for a path that leads to none."""
    if not paths:
        raise ValueError("source.paths is empty; give files, globs, folders or URLs")
    found: list[str] = []
    for path in paths:
        found_here = [file for file in locations.find(path, suffixes) if files.holds_rows(file, path)]
        if not found_here:
            endings = ", ".join(suffixes)
            raise ValueError(f"source.paths: {path!r} leads to no file; give files, or folders of files in {endings}")
        found += found_here
    if len(set(found)) < len(found):
        twice = next(file for file in found if found.count(file) > 1)
        raise ValueError(f"source.paths reaches {twice} twice; its pairs would be counted twice")
    return found


def malformed(file: str, row: int, detail: str, reason: Reason = Reason.RECORD_MALFORMED) -> Quarantined:
    """A pair that its source tells wrongly."""
    return Quarantined(f"{locations.name_of(file)}#{row}", file, row, reason, detail)


def decided(winner: int | None) -> dict[str, float]:
    """Labels for image 0 or 1 preferred, or neither."""
    label = 0.5 if winner is None else float(winner == 0)
    return {"label_0": label, "label_1": 1.0 - label}
