"""HPDv3 (arXiv 2508.03789): pairs of image files, the first preferred."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from dpo_core.data.sources.base import Source, Told
from dpo_core.data.sources.table import Chosen, Table


class HPDv3(Source):
    """Human Preference Dataset v3: 1.17 million comparisons in JSON beside a folder of images.

    ``path1`` is the preferred image. The names of the columns for models and confidence, and what a confidence means,
    are unverified, so they are fields. Unpack images.tar.gz first: a compressed tar cannot be read out of order.
    """

    kind: Literal["hpdv3"] = "hpdv3"
    paths: list[str] = []
    """JSON or JSON lines files, globs, folders or URLs."""
    images: str = ""
    """Folder, .zip or .tar that the names belong to; empty for the folder of each file."""
    chosen: str = "path1"
    """Name of the preferred image's file."""
    rejected: str = "path2"
    """Name of the other image's file."""
    prompt: str = "prompt"
    """The prompt."""
    chosen_model: str | None = "model1"
    """The model of the preferred image, where it is told."""
    rejected_model: str | None = "model2"
    """The model of the other image, where it is told."""
    confidence: str | None = None
    """How sure the judges were; read when it is given, such as ``confidence``."""
    min_confidence: float = 0.0
    """Pairs below are left out."""

    expects: ClassVar[str] = "JSON with `path1` (preferred), `path2`, `prompt`, and the image files"

    def files(self) -> list[str]:
        return self._table().files()

    def told(self) -> Iterator[Told]:
        return self._table().told()

    def _table(self) -> Table:
        return Table(
            paths=self.paths,
            images=self.images,
            image_0=self.chosen,
            image_1=self.rejected,
            caption=self.prompt,
            label=Chosen(confidence=self.confidence, min_confidence=self.min_confidence),
            model_0=self.chosen_model,
            model_1=self.rejected_model,
        )
