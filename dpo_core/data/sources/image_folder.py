"""A folder of images with a metadata file that names them."""

from collections import Counter
from collections.abc import Iterator
from typing import ClassVar, Literal

from dpo_core.data import locations
from dpo_core.data.sources.base import Source, Told
from dpo_core.data.sources.table import AnyLabel, Chosen, Table

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


class ImageFolder(Source):
    """A folder of images with metadata.csv, metadata.jsonl or metadata.parquet: a row per pair that names two files.

    The layout that image loaders of the hub read, with a column for each image: names end in ``file_name`` there.
    """

    kind: Literal["image_folder"] = "image_folder"
    folder: str = ""
    """The folder, or its URL; names of images are relative to the metadata file in it."""
    image_0: str = "chosen_file_name"
    """Column with the name of the first image's file."""
    image_1: str = "rejected_file_name"
    """Column with the name of the second image's file."""
    caption: str = "text"
    """Column of the prompt."""
    label: AnyLabel = Chosen()
    """How a row says which image was preferred; by default the first."""
    model_0: str | None = None
    """Column with the model that made image 0."""
    model_1: str | None = None
    """Column with the model that made image 1."""
    user: str | None = None
    """Column with who judged."""

    expects: ClassVar[str] = "metadata.csv, .jsonl or .parquet with two file names and `text`, beside the images"

    def files(self) -> list[str]:
        if not self.folder:
            raise ValueError("source.folder is empty; give the folder with the images")
        found = [file for file in locations.find(self.folder, METADATA) if locations.name_of(file) in METADATA]
        if not found:
            raise ValueError(f"source.folder: {self.folder!r} holds none of {', '.join(METADATA)}")
        twice = [folder for folder, count in Counter(map(locations.folder_of, found)).items() if count > 1]
        if twice:
            names = " and ".join(locations.name_of(file) for file in found if locations.folder_of(file) == twice[0])
            raise ValueError(f"source.folder: {twice[0]} holds {names}, which may tell of the same pairs; keep one")
        return found

    def told(self) -> Iterator[Told]:
        fields = self.model_dump(include={"image_0", "image_1", "caption", "model_0", "model_1", "user"})
        return Table(paths=self.files(), label=self.label, **fields).told()
