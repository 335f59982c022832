"""HPDv2 (arXiv 2306.09341): the images of a prompt, ranked or one of two preferred."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from dpo_core.data.quarantine import Quarantined
from dpo_core.data.sources.base import Record, Source, Told, decided, find_files, malformed
from dpo_core.data.sources.ranked import Pairs, ranked_pairs, read_ranks
from dpo_core.data.sources.tables import Columns, read_table, texts_of


class HPDv2(Source):
    """Human Preference Dataset v2: 798,000 choices in JSON beside folders or archives of images.

    As its card says, train.json has ``file_path`` (two names) and ``human_preference`` (1 for the preferred one), and
    test.json has ``image_path`` (nine names) and ``rank`` (averaged over annotators). That the lowest rank is the best
    is our reading. Which of the two forms a file has is seen from its first row.
    """

    kind: Literal["hpdv2"] = "hpdv2"
    paths: list[str] = []
    """JSON files, globs, folders or URLs."""
    images: str = ""
    """Folder, .zip or .tar that the names belong to; empty for the folder of each file."""
    pairs: Pairs = "all"
    """Every pair of the images of a prompt, or the best against the worst. Equal ranks make a tie."""

    expects: ClassVar[str] = "JSON with `prompt`, `file_path` and `human_preference`, or `image_path` and `rank`"

    def files(self) -> list[str]:
        return find_files(self.paths, (".json", ".jsonl"))

    def told(self) -> Iterator[Told]:
        for file in self.files():
            yield from self._of_file(file)

    def _of_file(self, file: str) -> Iterator[Told]:
        ranked = isinstance(next(read_table(file, Columns(("rank",))), None), Quarantined) is False
        names, ranks, sign = ("image_path", "rank", 1) if ranked else ("file_path", "human_preference", -1)
        for row in read_table(file, Columns(("prompt", ranks), (names,), folder=self.images)):
            if isinstance(row, Quarantined):
                yield row
                continue
            images = row.images[names]
            try:
                if not isinstance(images, list) or len(images) < 2:
                    raise ValueError(f"{names} does not name two images or more")
                numbers = [sign * number for number in read_ranks(row.values[ranks], len(images))]
            except ValueError as error:
                yield malformed(file, row.row, str(error))
                continue
            for better, other, tie in ranked_pairs(numbers, self.pairs):
                values = {"caption": texts_of(row.values["prompt"]), **decided(None if tie else 0)}
                yield Record(file, row.row, (images[better], images[other]), values)
