"""Pick-Double-Caption (arXiv 2502.06023): Pick-a-Pic with a caption for each image."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from dpo_core.data import schema
from dpo_core.data.sources.base import Record, Source, Told
from dpo_core.data.sources.table import Table


class PickDoubleCaption(Source):
    """Pick-Double-Caption: pairs of Pick-a-Pic v2, each image described by itself, for DCPO.

    Its card lists several captions per image (of two models, and three strengths of perturbation) but not the names of
    their columns. We have not seen the files: look the names up and give the two you want. The defaults are the names
    that `palate caption` and the trainer of the paper use.
    """

    kind: Literal["pick_double_caption"] = "pick_double_caption"
    paths: list[str] = []
    """Parquet files, globs, folders or URLs."""
    caption_0: str = "caption_0"
    """Column with the caption of ``jpg_0``, or of the chosen image (see ``follows``)."""
    caption_1: str = "caption_1"
    """Column with the caption of ``jpg_1``, or of the rejected image."""
    follows: Literal["images", "labels"] = "images"
    """Whether the two columns describe jpg_0 and jpg_1, or the chosen and the rejected image."""

    expects: ClassVar[str] = "parquet as Pick-a-Pic, with a caption column for each image (names unverified)"
    extra: ClassVar[tuple[str, ...]] = schema.CAPTION_PER_IMAGE

    def files(self) -> list[str]:
        return self._table().files()

    def told(self) -> Iterator[Told]:
        for told in self._table().told():
            turned = isinstance(told, Record) and self.follows == "labels" and told.values["label_0"] == 0
            yield _with_captions_turned(told) if turned and isinstance(told, Record) else told

    def _table(self) -> Table:
        return Table(paths=self.paths, caption_0=self.caption_0, caption_1=self.caption_1)


def _with_captions_turned(record: Record) -> Record:
    values = record.values | {"caption_0": record.values["caption_1"], "caption_1": record.values["caption_0"]}
    return Record(record.file, record.row, record.images, values, record.user)
