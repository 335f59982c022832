"""Rankings of the images of a prompt, as in ImageRewardDB (arXiv 2304.05977)."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from dpo_core.data.quarantine import Quarantined
from dpo_core.data.sources.base import Pointer, Record, Source, Told, decided, find_files, malformed
from dpo_core.data.sources.ranked import Pairs, ranked_pairs, read_ranks
from dpo_core.data.sources.tables import SUFFIXES, Columns, TableRow, number_of, read_table, text_of, texts_of


class Rankings(Source):
    """n images per prompt with ranks: a row per image, or a row per prompt that lists its images and ranks.

    The defaults are the columns of ImageRewardDB, whose card names prompt_id, prompt, rank and an image per row. That
    rank 1 is the best, and the name of the column with file names, are unverified, so they are fields. Rows of one
    prompt need not stand together; a prompt's rows of one file are compared with each other.
    """

    kind: Literal["rankings"] = "rankings"
    paths: list[str] = []
    """Parquet, JSON, JSON lines or CSV files, globs, folders or URLs."""
    images: str = ""
    """Folder, .zip or .tar that names of images belong to; empty for the folder of each file."""
    image: str = "image"
    """Column of the image (bytes, a struct or a file name), or of a list of file names."""
    rank: str = "rank"
    """Column of the rank, or of a list of ranks."""
    best: Literal["lowest", "highest"] = "lowest"
    """Which rank is the best; highest for scores and ratings."""
    prompt: str = "prompt"
    """Column of the prompt."""
    prompt_id: str | None = "prompt_id"
    """Column that says which rows belong together; null takes the prompt itself."""
    model: str | None = None
    """Column with the model that made the image."""
    pairs: Pairs = "all"
    """Every pair of the images of a prompt, or the best against the worst. Equal ranks make a tie."""

    expects: ClassVar[str] = "a row per image (`prompt_id`, `prompt`, `image`, `rank`), or lists of images and ranks"

    def files(self) -> list[str]:
        return find_files(self.paths, SUFFIXES)

    def told(self) -> Iterator[Told]:
        columns = Columns(
            required=(self.prompt, self.rank),
            images=(self.image,),
            optional=tuple(name for name in (self.prompt_id, self.model) if name),
            folder=self.images,
        )
        for file in self.files():
            groups: dict[str, list[TableRow]] = {}
            for row in read_table(file, columns):
                if isinstance(row, Quarantined):
                    yield row
                elif isinstance(row.images[self.image], list):
                    yield from self._of(row, row.images[self.image], row.values[self.rank], [row])
                else:
                    key = row.values.get(self.prompt_id) if self.prompt_id else None
                    groups.setdefault(str(row.values[self.prompt] if key is None else key), []).append(row)
            for rows in groups.values():
                yield from self._of_rows(rows)

    def _of_rows(self, rows: list[TableRow]) -> Iterator[Told]:
        ranked, ranks = list[TableRow](), list[float | None]()
        for row in rows:
            try:
                ranks.append(number_of(row.values[self.rank]))
                ranked.append(row)
            except ValueError as error:
                yield malformed(row.file, row.row, str(error))
        if len(rows) == 1:
            yield malformed(rows[0].file, rows[0].row, "is the only image of its prompt")
        elif ranked:
            yield from self._of(ranked[0], [row.images[self.image] for row in ranked], ranks, ranked)

    def _of(self, row: TableRow, images: list[Pointer], ranks: Any, rows: list[TableRow]) -> Iterator[Told]:
        """Pairs of ``images``; ``rows`` has the row of each image, or one for all."""
        try:
            numbers = read_ranks(ranks, len(images))
        except ValueError as error:
            yield malformed(row.file, row.row, str(error))
            return
        sign = 1 if self.best == "lowest" else -1
        for better, other, tie in ranked_pairs([sign * number for number in numbers], self.pairs):
            values: dict[str, Any] = {"caption": texts_of(row.values[self.prompt]), **decided(None if tie else 0)}
            if self.model:
                values |= {
                    f"model_{side}": text_of(rows[index % len(rows)].values.get(self.model))
                    for side, index in enumerate((better, other))
                }
            yield Record(row.file, row.row, (images[better], images[other]), values)
