"""Pick-a-Pic v1 and v2 (arXiv 2305.01569), whose columns are those of our schema."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from dpo_core.data.sources.base import Source, Told
from dpo_core.data.sources.table import Table


class PickAPic(Source):
    """Pick-a-Pic v1 or v2, or a copy or subset of it.

    The original repository has been gone from the hub since April 2025, so no hub id is a default. Only the columns of
    images, labels and captions must be there; what a copy lacks beyond them stays null.
    """

    kind: Literal["pickapic"] = "pickapic"
    paths: list[str] = []
    """Parquet files, globs, folders or URLs."""

    expects: ClassVar[str] = "parquet with `jpg_0`, `jpg_1`, `label_0`, `label_1`, `caption`"

    def files(self) -> list[str]:
        return self._table().files()

    def told(self) -> Iterator[Told]:
        return self._table().told()

    def _table(self) -> Table:
        return Table(paths=self.paths)
