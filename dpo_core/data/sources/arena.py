"""Votes of our own arena: two images side by side, and which one a visitor preferred."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from dpo_core.data.sources.base import Source, Told
from dpo_core.data.sources.table import Table, Winner


class Arena(Source):
    """Votes of the arena, JSON lines or parquet.

    A vote is prompt; image_left, image_right (names of files beside the votes, or encoded bytes in parquet); vote
    (left, right or tie); voter; model_left, model_right; created_at (ISO 8601). Only the first four must be there.
    """

    kind: Literal["arena"] = "arena"
    paths: list[str] = []
    """JSON lines or parquet files, globs, folders or URLs."""
    images: str = ""
    """Folder, .zip or .tar that names of images belong to; empty for the folder of each file."""

    expects: ClassVar[str] = "`prompt`, `image_left`, `image_right`, `vote`; `voter`, `model_left`, `model_right`"

    def files(self) -> list[str]:
        return self._table().files()

    def told(self) -> Iterator[Told]:
        return self._table().told()

    def _table(self) -> Table:
        return Table(
            paths=self.paths,
            images=self.images,
            image_0="image_left",
            image_1="image_right",
            caption="prompt",
            label=Winner(column="vote", image_0="left", image_1="right", tie="tie"),
            model_0="model_left",
            model_1="model_right",
            user="voter",
        )
