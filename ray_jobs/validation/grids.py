"""Sample images of a checkpoint, and the grid that shows them beside those before."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from eval.generate import generate, use_scheduler
from eval.models import load_pipeline
from ray_jobs.validation.section import GridSampler

FOLDER = "samples"
GAP, HEAD, TEXT = 8, 26, 14
INK, PAPER = "#1c2024", "#ffffff"
SHORTEST, LONGEST = 128, 384
"""Least and most pixels of the longer side of a picture in the grid; the single images keep their size."""


def folder_of(step: int) -> str:
    """Where the single images of a step lie, relative to the run folder."""
    return f"{FOLDER}/step-{step:08d}"


def grid_of(step: int) -> str:
    """The grid of a step, relative to the run folder."""
    return f"{FOLDER}/step-{step:08d}.png"


def draw_samples(
    model: Path, base: str, folder: Path, prompts: Sequence[str], seed: int, sampler: GridSampler, device: str
) -> None:
    """One image for each prompt by the exported ``model`` (a LoRA's on ``base``), into ``folder``; each file is whole.

    The noise of an image is a function of seed and prompt: every step draws from the same.
    """
    pipeline = load_pipeline(model, device, sampler.dtype, base=base)
    use_scheduler(pipeline, sampler.scheduler)
    settings = sampler.model_dump(exclude={"scheduler", "batch_size", "dtype"})
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(prompts), sampler.batch_size):
        some = prompts[first : first + sampler.batch_size]
        for i, image in enumerate(generate(pipeline, some, [seed] * len(some), **settings)):
            save(image, folder / f"{first + i:03d}.png")
    del pipeline
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def save(image: Image.Image, path: Path) -> None:
    aside = path.with_suffix(".part")
    image.save(aside, format="PNG")
    aside.replace(path)


def draw_grid(run_dir: Path, step: int, previous: int | None, prompts: Sequence[str]) -> str:
    """The grid start weights | previous | now, a row for each prompt; returns its path relative to the run folder."""
    columns = {0: "start weights", **({previous: f"update {previous:,}"} if previous else {}), step: f"update {step:,}"}
    columns[0] = "start weights"
    pictures = [
        [Image.open(run_dir / folder_of(column) / f"{row:03d}.png").convert("RGB") for column in columns]
        for row in range(len(prompts))
    ]
    width, height = pictures[0][0].size
    scale = min(max(1.0, SHORTEST / max(width, height)), LONGEST / max(width, height))
    side = round(width * scale), round(height * scale)
    cell = max(side[0], 120)
    sheet = Image.new(
        "RGB", (GAP + len(columns) * (cell + GAP), HEAD + len(prompts) * (side[1] + HEAD + GAP) + GAP), PAPER
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for place, title in enumerate(columns.values()):
        pen.text((GAP + place * (cell + GAP), GAP), title, fill=INK, font=font)
    for row, prompt in enumerate(prompts):
        top = HEAD + row * (side[1] + HEAD + GAP) + GAP
        for place, picture in enumerate(pictures[row]):
            sheet.paste(picture.resize(side, Image.Resampling.LANCZOS), (GAP + place * (cell + GAP), top))
        pen.text((GAP, top + side[1] + 4), _fitting(prompt, sheet.width - 2 * GAP, font), fill=INK, font=font)
    save(sheet, run_dir / grid_of(step))
    return grid_of(step)


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of ``text`` as fits into ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
