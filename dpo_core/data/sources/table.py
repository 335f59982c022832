"""Any parquet, JSON, JSON lines or CSV file: the config says which column holds what."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dpo_core.data import schema
from dpo_core.data.sources.base import LeftOut, Record, Source, Told, decided, find_files, malformed
from dpo_core.data.sources.tables import SUFFIXES, Columns, TableRow, number_of, read_table, text_of, texts_of
from dpo_core.section import Section


class Labels(Section):
    """Two columns as in Pick-a-Pic: 1 and 0, 0 and 1, or a half each for a tie."""

    kind: Literal["labels"] = "labels"
    label_0: str = "label_0"
    """Column: 1 where image 0 was preferred."""
    label_1: str = "label_1"
    """Column: 1 where image 1 was preferred."""

    def required(self) -> tuple[str, ...]:
        return self.label_0, self.label_1

    def of(self, values: dict[str, Any]) -> dict[str, Any] | str:
        return {"label_0": number_of(values[self.label_0]), "label_1": number_of(values[self.label_1])}


class Winner(Section):
    """One column that names the better image."""

    kind: Literal["winner"] = "winner"
    column: str = "winner"
    """The column; numbers and words alike, capitals play no part."""
    image_0: str = "0"
    """What stands there when image 0 was preferred."""
    image_1: str = "1"
    """What stands there when image 1 was preferred."""
    tie: str = "tie"
    """What stands there when neither was."""

    def required(self) -> tuple[str, ...]:
        return (self.column,)

    def of(self, values: dict[str, Any]) -> dict[str, Any] | str:
        given = text_of(values[self.column])
        if given is None:
            return {"label_0": None, "label_1": None}
        meanings = {self.image_0.casefold(): 0, self.image_1.casefold(): 1, self.tie.casefold(): None}
        if given.strip().casefold() not in meanings:
            raise ValueError(f"{self.column} is {given[:60]!r}, expected are {', '.join(meanings)}")
        return decided(meanings[given.strip().casefold()])


class Scores(Section):
    """Two columns of scores, the higher one wins; equal scores are a tie."""

    kind: Literal["scores"] = "scores"
    score_0: str = "score_0"
    """Column: how good image 0 is."""
    score_1: str = "score_1"
    """Column: how good image 1 is."""

    def required(self) -> tuple[str, ...]:
        return self.score_0, self.score_1

    def of(self, values: dict[str, Any]) -> dict[str, Any] | str:
        first, second = (number_of(values[name]) for name in self.required())
        if first is None or second is None:
            return {"label_0": None, "label_1": None}
        if not (math.isfinite(first) and math.isfinite(second)):
            return {"label_0": math.nan, "label_1": math.nan}
        return decided(None if first == second else int(second > first))


class Chosen(Section):
    """No column: image 0 is the preferred one."""

    kind: Literal["chosen"] = "chosen"
    confidence: str | None = None
    """Column with how sure the judges were, where there is one."""
    min_confidence: float = 0.0
    """Pairs below are left out, and those without a number when this is above 0."""

    def required(self) -> tuple[str, ...]:
        return (self.confidence,) if self.confidence else ()

    def of(self, values: dict[str, Any]) -> dict[str, Any] | str:
        sure = number_of(values[self.confidence]) if self.confidence else math.inf
        if self.min_confidence > 0 and not (sure is not None and sure >= self.min_confidence):
            return "confidence too low"
        return decided(0)


class Unlabelled(Section):
    """No column: nobody has judged these pairs. With filters.unlabelled=keep they are kept for `palate label`."""

    kind: Literal["none"] = "none"

    def required(self) -> tuple[str, ...]:
        return ()

    def of(self, values: dict[str, Any]) -> dict[str, Any] | str:
        del values
        return {"label_0": None, "label_1": None}


AnyLabel = Annotated[Labels | Winner | Scores | Chosen | Unlabelled, Field(discriminator="kind")]


class Table(Source):
    """Any parquet, JSON, JSON lines or CSV files with a pair per row, by a map of their columns.

    A column that the map does not name is carried over when our schema has one of that name; others are not read.
    """

    kind: Literal["table"] = "table"
    paths: list[str] = []
    """Files, globs, folders or URLs."""
    image_0: str = "jpg_0"
    """Column of the first image: encoded bytes, a struct with a field ``bytes``, or a name below ``images``."""
    image_1: str = "jpg_1"
    """Column of the second image."""
    images: str = ""
    """Folder, .zip or .tar that names of images belong to; empty for the folder of each file."""
    caption: str | None = "caption"
    """Column of the prompt, text or a list of texts; null where there are only captions per image."""
    caption_0: str | None = None
    """Column of a caption of its own for image 0; makes a set for data.captions=per_image."""
    caption_1: str | None = None
    """Column of a caption of its own for image 1."""
    label: AnyLabel = Labels()
    """How the file says which image was preferred."""
    model_0: str | None = "model_0"
    """Column with the model that made image 0; null where there is none."""
    model_1: str | None = "model_1"
    """Column with the model that made image 1."""
    user: str | None = "user_id"
    """Column with who judged; null where there is none."""

    expects: ClassVar[str] = "a row per pair: two images (bytes, structs or file names), a caption, a label"

    @model_validator(mode="after")
    def _captions_fit(self) -> "Table":
        if (self.caption_0 is None) != (self.caption_1 is None):
            raise ValueError("caption_0 and caption_1 belong together; give both or neither")
        if self.caption is None and self.caption_0 is None:
            raise ValueError("caption is null; give a column of prompts, or caption_0 and caption_1")
        return self

    def files(self) -> list[str]:
        return find_files(self.paths, SUFFIXES)

    def extra_columns(self) -> tuple[str, ...]:
        return schema.CAPTION_PER_IMAGE if self.caption_0 is not None else ()

    def told(self) -> Iterator[Told]:
        named = [name for name in (self.caption, self.caption_0, self.caption_1) if name]
        optional = [name for name in (self.model_0, self.model_1, self.user) if name]
        columns = Columns(
            required=tuple(dict.fromkeys((*named, *self.label.required()))),
            images=(self.image_0, self.image_1),
            optional=tuple(dict.fromkeys((*optional, *CARRIED))),
            folder=self.images,
        )
        for file in self.files():
            for row in read_table(file, columns):
                yield self._record(row) if isinstance(row, TableRow) else row

    def _record(self, row: TableRow) -> Told:
        images = row.images[self.image_0], row.images[self.image_1]
        if isinstance(images[0], list) or isinstance(images[1], list):
            return malformed(row.file, row.row, "names a list of images; rankings are of source.kind=rankings")
        try:
            label = self.label.of(row.values)
        except ValueError as error:
            return malformed(row.file, row.row, str(error))
        if isinstance(label, str):
            return LeftOut(label)

        def cell(name: str | None) -> Any:
            return row.values.get(name) if name else None

        values = {name: cell(name) for name in CARRIED} | label
        captions = {"caption": self.caption, "caption_0": self.caption_0, "caption_1": self.caption_1}
        values |= {name: texts_of(cell(column)) for name, column in captions.items() if column}
        user = cell(self.user)
        values |= {"model_0": cell(self.model_0), "model_1": cell(self.model_1), "user_id": user}
        return Record(row.file, row.row, images, values, text_of(user))


CARRIED = tuple(
    name
    for name in schema.SCHEMA.names
    if name not in (*schema.IMAGES, *schema.LABELS, "caption", "model_0", "model_1", "user_id")
)
"""Columns of our schema that are taken over under their own names."""
