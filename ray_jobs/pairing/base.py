"""What every way to make pairs is: a config section that says what is begun with and what is made of it."""

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dpo_core.data import schema
from dpo_core.data.labelled import labelled_by
from dpo_core.data.section import DataSection
from dpo_core.section import Section
from ray_jobs.shards.job import Recipe, Row, Source, read_source

DECISIVE = ("image_0_uid", "image_1_uid", "image_0_url", "image_1_url", "model_0", "model_1")


class PairRecipe(Section):
    """One way to make pairs, told apart by its ``kind``."""

    kind: Any  # a Literal of its name in every recipe

    @abstractmethod
    def source(self, seed: int, shard_pairs: int) -> Source:
        """What the job begins with: rows of a set, or prompts. Raises ValueError for what cannot be read."""

    @abstractmethod
    def work(self, source: Source, seed: int) -> Recipe:
        """How these rows become pairs."""

    def identity(self) -> dict[str, Any]:
        """What decides the pairs beside the config and the source: the weights of the models that draw."""
        return {}

    @abstractmethod
    def plan(self, source: Source) -> list[tuple[str, str]]:
        """The cost, as rows of ``--dry-run``."""

    @property
    def max_quarantined_share(self) -> float:
        """Share of the rows that may fail."""
        return 0.05


class FromSet(PairRecipe):
    """Pairs out of the chosen images of a set. Ties are left out, since nobody chose."""

    data: DataSection = DataSection()
    """The set whose chosen images are taken."""

    def source(self, seed: int, shard_pairs: int) -> Source:
        del seed, shard_pairs
        if needs_images := self.data.needs_images():
            raise ValueError(
                f"recipe.data: {needs_images} is a matter of training and plays no part in making pairs; leave that at "
                "its default"
            )
        return read_source(self.data, takes="decided")

    @property
    def max_quarantined_share(self) -> float:
        return self.data.max_quarantined_share

    @property
    def per_image(self) -> bool:
        return self.data.captions == "per_image"

    def labelled_by(self) -> tuple[str, ...]:
        """The scorers that labelled the set, as far as it says; the chosen images are their choice."""
        return tuple(labelled_by(self.data.paths))


@dataclass(frozen=True)
class Half:
    """One image of a made pair."""

    data: bytes
    uid: str
    url: str | None
    model: str | None


def fingerprint(data: bytes) -> str:
    """The id of an image that has none."""
    return hashlib.sha256(data).hexdigest()[:32]


def stored_half(row: Row, data: bytes) -> Half:
    """The chosen image of a row, as its set names it."""
    assert row.side is not None, "ties are left out"
    uid, url, model = (row.values[f"{name}"] for name in DECISIVE[row.side :: 2])
    return Half(data, uid or fingerprint(data), url, model)


def columns_of(source: Source) -> tuple[pa.Field, ...]:
    """What a made pair has of its own; the other columns of the set are carried over.

    Captions of single images and patch quality are among them where the set has them, since the image is another one.
    """
    names = ["best_image_uid", "are_different", "has_label", *schema.IMAGES, *schema.LABELS, *DECISIVE]
    names += [name for name in (*schema.CAPTION_PER_IMAGE, *schema.QUALITY) if name in source.schema.names]
    return tuple(source.schema.field(name) for name in names)


def reads_of(source: Source) -> tuple[str, ...]:
    """The columns that `made_pair` looks at."""
    return (*DECISIVE, *(name for name in schema.CAPTION_PER_IMAGE if name in source.schema.names))


def made_pair(row: Row, chosen: Half, rejected: Half) -> dict[str, Any]:
    """The row's chosen image in its place, ``rejected`` in the other; both have the chosen caption."""
    assert row.side is not None, "ties are left out"
    made: dict[str, Any] = {"best_image_uid": chosen.uid, "are_different": True, "has_label": True}
    for side, half in ((row.side, chosen), (1 - row.side, rejected)):
        made |= {f"jpg_{side}": half.data, f"label_{side}": float(side == row.side), f"model_{side}": half.model}
        made |= {f"image_{side}_uid": half.uid, f"image_{side}_url": half.url}
        made[f"caption_{side}"] = row.values.get(f"caption_{row.side}")
    return made
