"""Open Image Preferences v1, binarized: prompts with a chosen and a rejected image."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from dpo_core.data.sources.base import Source, Told
from dpo_core.data.sources.table import Chosen, Table


class OpenImagePreferences(Source):
    """open-image-preferences-v1-binarized by data-is-better-together, 10,000 pairs, Apache-2.0.

    The columns of images and prompts are those that public training scripts read; columns that name the models are
    unverified, so none is read unless it is given. Sets of the same form (chosen, rejected, prompt) work alike.
    """

    kind: Literal["open_image_preferences"] = "open_image_preferences"
    paths: list[str] = []
    """Parquet files, globs, folders or URLs."""
    chosen: str = "chosen"
    """Column of the preferred image."""
    rejected: str = "rejected"
    """Column of the other image."""
    prompt: str = "prompt"
    """Column of the prompt."""
    chosen_model: str | None = None
    """Column with the model of the preferred image."""
    rejected_model: str | None = None
    """Column with the model of the other image."""

    expects: ClassVar[str] = "parquet with `chosen`, `rejected` (structs of bytes) and `prompt`"

    def files(self) -> list[str]:
        return self._table().files()

    def told(self) -> Iterator[Told]:
        return self._table().told()

    def _table(self) -> Table:
        return Table(
            paths=self.paths,
            image_0=self.chosen,
            image_1=self.rejected,
            caption=self.prompt,
            label=Chosen(),
            model_0=self.chosen_model,
            model_1=self.rejected_model,
        )
