"""Where the images of a compared model come from: its pipeline, a LoRA laid on it, or a folder of finished images."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.adapters import adapter_name, attach, trained_encoder
from eval.generate import seeds_of
from eval.loras import lay_on, lora_name
from eval.models import (
    ADAPTER_FILE,
    base_model,
    check_place,
    is_ip_adapter,
    is_laid_on,
    load_pipeline,
    model_hash,
)
from eval.prompts import Prompt
from eval.prompts.files import SUFFIXES, normalized, read_prompts, read_rows
from eval.scorers.weights import is_place

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FILE_COLUMNS = ("file", "file_name", "image", "path")


@dataclass(frozen=True)
class Adapter:
    """An IP-Adapter, what it reads photos with, and how much they weigh."""

    file: str
    image_encoder: str
    scale: float


@dataclass(frozen=True)
class Source:
    """A model of a comparison, found. ``base`` is what lies under a LoRA or adapter folder, ``lora`` and ``adapter``
    what is laid on top."""

    folder: str
    base: str | None = None
    lora: str | None = None
    scale: float = 1.0
    adapter: Adapter | None = None

    @property
    def is_images(self) -> bool:
        """Is it a folder of images that were made elsewhere?"""
        path = Path(self.folder)
        return (
            path.is_dir() and not (path / "model_index.json").is_file() and not is_laid_on(path) and _has_images(path)
        )

    @property
    def pipeline_folder(self) -> str:
        """The folder or hub id that names the pipeline class."""
        return self.base or self.folder

    @property
    def parts(self) -> list[str]:
        """All that has been trained of it: the model, what lies under it, and what is laid on it."""
        adapter = str(Path(self.adapter.file).parent) if self.adapter else None
        return [part for part in (self.folder, self.base, self.lora, adapter) if part]

    @property
    def weights(self) -> str:
        """Names the exact weights, or the exact images."""
        if self.is_images:
            digest = hashlib.sha256()
            for file in image_files(Path(self.folder)):
                digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
            return f"images-{digest.hexdigest()[:16]}"
        whole = model_hash(self.folder, base=self.base)
        if self.lora is not None:
            laid = f"{whole} {lora_name(self.lora)} {self.scale:g}"
            whole = hashlib.sha256(laid.encode()).hexdigest()[:16]
        if self.adapter is not None:
            laid = f"{whole} {adapter_name(self.adapter.file, self.adapter.image_encoder, self.adapter.scale)}"
            whole = hashlib.sha256(laid.encode()).hexdigest()[:16]
        return whole

    def load(self, device: str = "cpu", dtype: str = "float32") -> Any:
        """The pipeline (:func:`eval.models.load_pipeline`) with its LoRA in the weights and its IP-Adapter."""
        pipeline = load_pipeline(self.folder, device, dtype, base=self.base)
        if self.lora is not None:
            lay_on(pipeline, self.lora, self.scale)
        if self.adapter is not None:
            attach(pipeline, self.adapter.file, self.adapter.image_encoder, self.adapter.scale)
        return pipeline


def find_source(
    model: str,
    *,
    lora: str | None = None,
    scale: float = 1.0,
    adapter: Adapter | None = None,
    photos_scale: float | None = None,
    resolve: Callable[[str], str] = str,
) -> Source:
    """The source that a name in a plan means; ``resolve`` knows names that are no paths. Folders become absolute.

    ``adapter`` is an IP-Adapter that is laid on; a folder of one brings its own, with photos at ``photos_scale``.
    Raises ValueError for such a folder if nothing says its encoder, or there are no photos to show it, for a model or
    LoRA that is not there, and for something laid on finished images.
    """

    def place(name: str) -> str:
        folder = resolve(name)
        return str(Path(folder).resolve()) if Path(folder).exists() else folder

    folder = place(model)
    base = place(base_model(folder)) if is_laid_on(folder) else None
    if is_ip_adapter(folder) and adapter is None:
        if photos_scale is None:
            raise ValueError(f"{model!r} is an IP-Adapter, which is shown photos: set `photos.references`")
        adapter = Adapter(str(Path(folder) / ADAPTER_FILE), trained_encoder(folder), photos_scale)
    source = Source(folder, base, place(lora) if lora else None, scale, adapter)
    if source.is_images and (lora or adapter):
        raise ValueError(f"{model!r} is a folder of finished images; nothing can be laid on it")
    if not source.is_images:
        check_place(source.pipeline_folder)
    if lora and is_place(lora) and not Path(lora).expanduser().exists():
        raise ValueError(f"no LoRA {lora!r}; give a file, a folder with one, or a hub id 'owner/name'")
    return source


def image_rows(name: str, source: Source, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Manifest rows of images made elsewhere, for the prompts of a plan.

    Beside the images lies ``prompts`` or ``metadata`` (.jsonl, .json, .csv, .tsv, .parquet) with the columns ``file``
    and ``prompt``, or ``prompts.txt`` with one line for each image in the order of their names. Images are matched by
    the prompt's text, in file order where a text has several. They stand for ``seeds`` in pairs with other models,
    though nobody knows their noise. Raises ValueError if a prompt has too few images.
    """
    folder = Path(source.folder)
    listed = _listing(folder)
    by_text: dict[str, list[Path]] = {}
    for file, text in listed:
        by_text.setdefault(normalized(text), []).append(file)
    weights, rows, missing, images_per_prompt = source.weights, [], [], len(seeds)
    for prompt, numbers in zip(prompts, seeds_of([prompt.text for prompt in prompts], seeds), strict=True):
        files = by_text.get(normalized(prompt.text), [])
        mine, by_text[normalized(prompt.text)] = files[:images_per_prompt], files[images_per_prompt:]
        if len(mine) < images_per_prompt:
            missing.append(prompt.text)
        rows += [
            {
                "model": name,
                "prompt_set": prompt.set,
                "prompt": prompt.text,
                "prompt_index": prompt.index,
                "seed": seed,
                "file": str(file),
                "weights": weights,
                "scheduler": "made elsewhere",
            }
            for seed, file in zip(numbers, mine, strict=False)
        ]
    if missing:
        raise ValueError(
            f"{name}: {source.folder!r} has fewer than {images_per_prompt} images for {len(missing)} of "
            f"{len(prompts)} prompts, first {missing[0]!r}"
        )
    return rows


def is_picture(file: Path) -> bool:
    """By its name; hidden files are none (macOS leaves a `._name.png` beside an image on other file systems)."""
    return file.suffix.lower() in PICTURES and not file.name.startswith(".")


def image_files(folder: Path) -> list[Path]:
    """The images below ``folder``, in natural order of their names (2 before 10)."""
    files = [file for file in folder.rglob("*") if is_picture(file)]
    return sorted(files, key=lambda file: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", str(file))])


def _has_images(folder: Path) -> bool:
    return any(is_picture(file) for file in folder.rglob("*"))


def _listing(folder: Path) -> list[tuple[Path, str]]:
    candidates = [folder / f"{stem}{suffix}" for stem in ("prompts", "metadata", "manifest") for suffix in SUFFIXES]
    listing = next((file for file in candidates if file.is_file()), None)
    if listing is None:
        raise ValueError(
            f"{str(folder)!r} holds images but no prompts.txt, and no prompts.jsonl that names their files"
        )
    texts = [text for text, _ in read_prompts(listing)]
    names = _column(listing)
    if names is None:
        files = image_files(folder)
        if len(files) != len(texts):
            raise ValueError(f"{listing} has {len(texts)} prompts for {len(files)} images; one line for each image")
    else:
        files = [folder / name for name in names]
        gone = [str(file) for file in files if not file.is_file()]
        if gone:
            raise ValueError(f"{listing} names {len(gone)} images that are not there, first {gone[0]}")
    return list(zip(files, texts, strict=True))


def _column(listing: Path) -> list[str] | None:
    """The file of every row, None if the listing has no such column. Raises ValueError for a row without one."""
    if listing.suffix == ".txt":
        return None
    rows = read_rows(listing)
    column = next((name for name in FILE_COLUMNS if any(row.get(name) for row in rows)), None)
    if column is None:
        return None
    for number, row in enumerate(rows):
        if not row.get(column):
            raise ValueError(f"{listing}: row {number} (counted from 0) names no file under {column!r}, as others do")
    names = [str(row[column]) for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{listing} names {twice} {names.count(twice)} times; an image stands for one prompt")
    return names
