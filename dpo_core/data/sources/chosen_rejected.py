"""Two folders of images, chosen and rejected, with a caption in a text file beside each pair."""

import os
from collections.abc import Iterator
from typing import ClassVar, Literal

from dpo_core.data import locations, schema
from dpo_core.data.quarantine import Reason
from dpo_core.data.sources.base import Pointer, Record, Source, Told, decided, malformed

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
CAPTION_LIMIT = 1 << 16
"""Bytes of a caption file that are read."""


class ChosenRejected(Source):
    """A folder of chosen and one of rejected images, as SimpleTuner and kohya's scripts lay them out.

    Two images are a pair when their names below their folders are the same but for the ending. The caption is a text
    file of that name beside the chosen image, or else beside the rejected one. An image without a partner goes to
    quarantine.
    """

    kind: Literal["chosen_rejected"] = "chosen_rejected"
    chosen: str = ""
    """Folder of the preferred images, or its URL."""
    rejected: str = ""
    """Folder of the others, or its URL."""
    caption_suffix: str = ".txt"
    """How files with captions end."""
    captions: Literal["shared", "per_image"] = "shared"
    """One caption for both images, or the text beside each for data.captions=per_image."""

    expects: ClassVar[str] = "two folders with images of the same names, and a .txt beside each"

    def files(self) -> list[str]:
        return sorted(
            [*self._images(self.chosen, "chosen").values(), *self._images(self.rejected, "rejected").values()]
        )

    def extra_columns(self) -> tuple[str, ...]:
        return schema.CAPTION_PER_IMAGE if self.captions == "per_image" else ()

    def told(self) -> Iterator[Told]:
        sides = self._images(self.chosen, "chosen"), self._images(self.rejected, "rejected")
        roots = [f"{_root(folder)}/" for folder in self._folders()]
        if roots[0].startswith(roots[1]) or roots[1].startswith(roots[0]):
            raise ValueError(
                f"source.chosen ({self.chosen}) and source.rejected ({self.rejected}) lie inside one another, so "
                "images of the one would count as images of the other; give two folders side by side"
            )
        texts = [_by_stem(locations.find(folder, (self.caption_suffix,)), folder) for folder in self._folders()]
        for row, stem in enumerate(sorted({*sides[0], *sides[1]})):
            files = [side.get(stem) for side in sides]
            if files[0] is None or files[1] is None:
                there, missing = files[0] or files[1] or "", "rejected" if files[1] is None else "chosen"
                yield malformed(there, row, f"there is no {missing} image {stem}.*", Reason.IMAGE_MISSING)
                continue
            captions = [_read(side.get(stem)) for side in texts]
            values = {"caption": captions[0] or captions[1], **decided(0)}
            if self.captions == "per_image":
                values |= {"caption_0": captions[0], "caption_1": captions[1]}
            yield Record(files[0], row, (Pointer(files[0]), Pointer(files[1])), values)

    def _folders(self) -> tuple[str, str]:
        return self.chosen, self.rejected

    def _images(self, folder: str, name: str) -> dict[str, str]:
        if not folder:
            raise ValueError(f"source.{name} is empty; give the folder with the {name} images")
        found = locations.find(folder, IMAGES)
        by_stem = _by_stem(found, folder)
        if not found:
            raise ValueError(f"source.{name}: {folder!r} holds no image")
        if len(by_stem) < len(found):
            twice = next(file for file in found if file not in by_stem.values())
            raise ValueError(f"source.{name}: {twice} has the name of another image but for its ending")
        return by_stem


def _root(folder: str) -> str:
    """A folder without what may be written in several ways."""
    if locations.is_url(folder):
        return folder.rstrip("/").partition("://")[2].strip("/")
    return os.path.normpath(os.path.expanduser(folder))


def _by_stem(files: list[str], folder: str) -> dict[str, str]:
    """Files by their name below ``folder`` without its ending."""
    root = _root(folder)
    stems = {}
    for file in files:
        below = file.partition(root)[2] if locations.is_url(file) else os.path.relpath(file, root)
        stems[os.path.splitext(below.strip("/"))[0]] = file
    return stems


def _read(file: str | None) -> list[str] | None:
    if file is None:
        return None
    return [locations.read_bytes(file, CAPTION_LIMIT).decode("utf-8-sig", errors="replace").strip()]
