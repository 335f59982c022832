"""DreamBench: does a generated image show the very subject of its reference photos, and what the prompt asks?

A folder ``<subject>/<prompt>.png`` is scored by DINO, CLIP-I and CLIP-T (DreamBooth, arXiv 2208.12242, section 4.1) and
averaged as the evaluators of PatchDPO (arXiv 2412.03177) do: CLIP-I and DINO over all pairs of a subject's images and
references, CLIP-T over its images and their prompts, then all three over subjects, each counting once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from eval import stats
from eval.prompts import load_prompt_set
from eval.score import score_images
from eval.scorers.base import Scorer
from eval.sources import image_files, is_picture

SettingName = Literal["original", "kosmosg"]
SCALES: dict[SettingName, float] = {"original": 0.78, "kosmosg": 0.65}
"""IP-Adapter scale that PatchDPO draws with in each setting."""
KOSMOSG = {
    "backpack": "02", "backpack_dog": "02", "bear_plushie": "03", "berry_bowl": "02", "can": "01", "candle": "02",
    "cat": "04", "cat2": "02", "clock": "03", "colorful_sneaker": "01", "dog": "02", "dog2": "02", "dog3": "05",
    "dog5": "00", "dog6": "02", "dog7": "01", "dog8": "04", "duck_toy": "01", "fancy_boot": "02",
    "grey_sloth_plushie": "04", "monster_toy": "04", "pink_sunglasses": "04", "poop_emoji": "00", "rc_car": "03",
    "red_cartoon": "00", "robot_toy": "00", "shiny_sneaker": "01", "teapot": "04", "vase": "02", "wolf_plushie": "04",
}  # fmt: skip
"""The one photo of each subject that the Kosmos-G setting shows and compares with."""
PUBLISHED: dict[SettingName, dict[str, tuple[float, float, float]]] = {
    "original": {
        "real photos": (0.774, 0.885, float("nan")),
        "DreamBooth (SD)": (0.668, 0.803, 0.305),
        "IP-Adapter-Plus": (0.692, 0.826, 0.281),
        "MS-Diffusion": (0.671, 0.792, 0.321),
        "PatchDPO": (0.727, 0.838, 0.292),
    },
    "kosmosg": {
        "Kosmos-G": (0.694, 0.847, 0.287),
        "Emu2": (0.766, 0.850, 0.287),
        "OmniGen": (0.801, 0.847, 0.301),
        "PatchDPO": (0.831, 0.880, 0.288),
    },
}
"""DINO, CLIP-I, CLIP-T as PatchDPO's page lists them."""


@dataclass(frozen=True)
class SubjectScores:
    """Means of one subject by scorer column."""

    subject: str
    images: int
    references: int
    means: dict[str, float]


@dataclass(frozen=True)
class DreamBenchScores:
    """The result of a folder: means over subjects with 95 % intervals over subjects."""

    setting: SettingName
    subjects: list[SubjectScores]
    means: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    published: dict[str, tuple[float, float, float]]


def subject_prompts() -> dict[str, list[str]]:
    """The 25 prompts of each of the 30 subjects, without a subject token."""
    prompts: dict[str, list[str]] = {}
    for prompt in load_prompt_set("dreambench"):
        prompts.setdefault(prompt.tags["subject"], []).append(prompt.text)
    return prompts


def reference_files(references: str | Path, setting: SettingName, subjects: Iterable[str]) -> dict[str, list[Path]]:
    """The photos of each subject below ``references/<subject>/``: all of them, or Kosmos-G's one.

    Raises ValueError that names the subjects without photos, or without the photo of the setting.
    """
    found, missing = {}, []
    for subject in subjects:
        folder = Path(references) / subject
        files = image_files(folder) if folder.is_dir() else []
        if setting == "kosmosg":
            files = [file for file in files if file.stem == KOSMOSG.get(subject)]
        found[subject] = files
        if not files:
            missing.append(f"{subject}/{KOSMOSG.get(subject, '?')}" if setting == "kosmosg" else subject)
    if missing:
        raise ValueError(f"no reference photos in {str(references)!r} for {', '.join(missing)}")
    return found


def check_folder(folder: str | Path, prompts: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Path]]:
    """Subject -> prompt -> image of a folder ``<subject>/<prompt>.png``, complete and readable.

    Raises ValueError that lists every problem: missing and unknown subjects, missing, surplus and broken images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r}")
    here = {place.name for place in folder.iterdir() if place.is_dir() and not place.name.startswith(".")}
    problems = []
    if missing := sorted(prompts.keys() - here):
        problems.append(f"{len(missing)} of {len(prompts)} subjects are missing: {', '.join(missing)}")
    if unknown := sorted(here - prompts.keys()):
        problems.append(f"unknown subjects: {', '.join(unknown)}")
    found: dict[str, dict[str, Path]] = {}
    for subject in sorted(here & prompts.keys()):
        files = [file for file in sorted((folder / subject).iterdir()) if is_picture(file)]
        mine = found[subject] = {file.stem: file for file in files}
        wanted = set(prompts[subject])
        if absent := sorted(wanted - mine.keys()):
            have = len(wanted) - len(absent)
            problems.append(f"{subject}: {have} of {len(wanted)} images, first missing {absent[0]!r}")
        if len(files) > len(mine):
            problems.append(f"{subject}: {len(files)} files for {len(mine)} prompts")
        if surplus := sorted(mine.keys() - wanted):
            problems.append(f"{subject}: {len(surplus)} images of no known prompt, first {surplus[0]!r}")
        problems += [f"{subject}: {file.name} is broken ({why})" for file in files if (why := _broken(file))]
    if problems:
        raise ValueError(f"{str(folder)!r} is no whole DreamBench:\n  " + "\n  ".join(problems))
    return found


def score_dreambench(
    folder: str | Path,
    references: str | Path,
    setting: SettingName,
    scorers: Sequence[Scorer],
    *,
    device: str = "cpu",
    prompts: Mapping[str, Sequence[str]] | None = None,
) -> DreamBenchScores:
    """Score the images of ``folder`` against the photos below ``references``; ``prompts`` by subject, DreamBench's own
    by default. Raises ValueError as :func:`check_folder` and :func:`reference_files`."""
    prompts = subject_prompts() if prompts is None else prompts
    photos = reference_files(references, setting, prompts)
    images = check_folder(folder, prompts)
    rows: list[dict[str, Any]] = [
        {
            "model": Path(folder).name,
            "prompt_set": "dreambench",
            "prompt": prompt,
            "prompt_index": index,
            "seed": 0,
            "file": str(images[subject][prompt].resolve()),
            "subject": subject,
            "references": [str(photo.resolve()) for photo in photos[subject]],
        }
        for subject, texts in prompts.items()
        for index, prompt in enumerate(texts)
    ]
    subject_of = {row["file"]: row["subject"] for row in rows}
    scores: dict[str, dict[str, list[float]]] = {}
    for scorer in scorers:
        for row in score_images(rows, folder, scorer, scorer.load(device)):
            scores.setdefault(subject_of[row["file"]], {}).setdefault(row["column"], []).append(row["score"])
    return average(setting, scores, {subject: len(files) for subject, files in photos.items()})


def average(
    setting: SettingName, scores: Mapping[str, Mapping[str, Sequence[float]]], references: Mapping[str, int]
) -> DreamBenchScores:
    """Per-image scores (subject -> column -> values) to means of subjects, and these to the mean over subjects.

    A per-image score is the mean over the subject's references, of which all its images have the same number, so its
    mean is the mean of the whole matrix of images and references.
    """
    subjects = [
        SubjectScores(
            subject,
            max(len(values) for values in columns.values()),
            references[subject],
            {column: float(np.mean(values)) for column, values in columns.items()},
        )
        for subject, columns in scores.items()
    ]
    columns = list(dict.fromkeys(column for row in subjects for column in row.means))
    by_column = {column: np.array([row.means[column] for row in subjects]) for column in columns}
    return DreamBenchScores(
        setting,
        subjects,
        {column: float(values.mean()) for column, values in by_column.items()},
        {column: stats.mean_interval(values) for column, values in by_column.items()},
        PUBLISHED[setting],
    )


def _broken(file: Path) -> str:
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""
