"""(model folder, prompts, seeds) -> images and their manifest. Serving, evaluation and demo all draw here."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from eval.manifest import write_manifest
from eval.models import load_pipeline, model_hash
from eval.section import Section

Scheduler = Literal["model", "ddim", "dpmpp", "euler", "pndm"]


class SamplerSection(Section):
    """How images are drawn; the same for all models of a comparison."""

    scheduler: Scheduler = "ddim"
    """The solver: ddim, dpmpp (DPM-Solver++ 2M), euler, pndm, or `model` for the one in the model's folder."""
    num_inference_steps: int = 50
    """Denoising steps of an image."""
    guidance_scale: float = 7.5
    """Classifier-free guidance; 1 switches it off."""
    negative_prompt: str | None = None
    """What the images should not show."""
    height: int | None = None
    """Pixels; null takes the model's own size."""
    width: int | None = None
    """Pixels; null takes the model's own size."""
    batch_size: int = 8
    """Images drawn at once. Changes speed, and the images only by rounding."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the model; float16 or bfloat16 on a GPU."""


def generate(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_inference_steps: int,
    guidance_scale: float,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    **more: Any,
) -> list[Image.Image]:
    """Draw one image per (prompt, seed), all in one batch. ``more`` goes to the pipeline, e.g. ``ip_adapter_image``.

    Image ``i`` depends on (model, ``prompts[i]``, ``seeds[i]``, settings) alone: every image has its own CPU generator,
    seeded by :func:`noise_seed`, so the start noise is bit-equal in any batch, order and device; what the network adds
    is equal up to rounding. Raises ValueError if there are not as many seeds as prompts.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed for each prompt")
    if not prompts:
        return []
    generators = [torch.Generator("cpu").manual_seed(noise_seed(p, s)) for p, s in zip(prompts, seeds, strict=True)]
    settings: dict[str, Any] = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        **more,
    }
    if negative_prompt is not None:
        settings["negative_prompt"] = [negative_prompt] * len(prompts)
    return pipeline(list(prompts), generator=generators, output_type="pil", **settings).images


def noise_seed(prompt: str, seed: int) -> int:
    """The seed of an image's start noise: 63 bits of sha256 over seed and prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()[:8]) >> 1


def use_scheduler(pipeline: Any, scheduler: Scheduler) -> None:
    """Replace the pipeline's solver, keeping the noise schedule the model was trained with.

    Clipping of the predicted image is switched off: it is meant for pixels, and latents are not bounded by one. PNDM
    starts without Runge-Kutta steps, as Stable Diffusion does: they cost 12 model calls, whatever was asked for.
    """
    import diffusers

    classes = {
        "ddim": "DDIMScheduler",
        "dpmpp": "DPMSolverMultistepScheduler",
        "euler": "EulerDiscreteScheduler",
        "pndm": "PNDMScheduler",
    }
    if scheduler == "model":
        return
    if scheduler not in classes:
        raise ValueError(f"unknown scheduler {scheduler!r}; allowed: model, {', '.join(classes)}")
    if "beta_schedule" not in pipeline.scheduler.config:
        raise ValueError(
            f"scheduler {scheduler!r} does not fit a model trained with "
            f"{type(pipeline.scheduler).__name__}; allowed: model"
        )
    extra = {"ddim": {"clip_sample": False}, "pndm": {"skip_prk_steps": True}}.get(scheduler, {})
    pipeline.scheduler = getattr(diffusers, classes[scheduler]).from_config(pipeline.scheduler.config, **extra)


def plan_images(
    model: str,
    weights: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampler: SamplerSection,
    *,
    indices: Sequence[int] | None = None,
    prompt_set: str = "",
    photos: Sequence[Sequence[str]] | None = None,
) -> list[dict[str, Any]]:
    """The manifest of a job before any image exists: one row per prompt and seed.

    ``weights`` is :func:`eval.models.model_hash`; ``indices`` are the prompts' places in their set (default 0, 1, ...);
    ``photos`` are names of what each prompt is shown beside its text, by their content.
    The file name holds a hash of all an image depends on, so changed weights or settings never reuse an old file.
    """
    settings = sampler.model_dump()
    of_image = {name: value for name, value in settings.items() if name != "batch_size"}
    rows = []
    shown = photos or [()] * len(prompts)
    numbers = seeds_of(prompts, seeds)
    for index, prompt, mine, seen in zip(indices or range(len(prompts)), prompts, numbers, shown, strict=True):
        for seed in mine:
            identity = json.dumps([weights, prompt, seed, of_image, *([list(seen)] if seen else [])], sort_keys=True)
            short = hashlib.sha256(identity.encode()).hexdigest()[:10]
            rows.append(
                {
                    "model": model,
                    "prompt_set": prompt_set,
                    "prompt": prompt,
                    "prompt_index": index,
                    "seed": seed,
                    "file": f"images/{model}/{index:05d}-{seed}-{short}.png",
                    "weights": weights,
                    **settings,
                }
            )
    return rows


def seeds_of(prompts: Sequence[str], seeds: Sequence[int]) -> list[list[int]]:
    """The seeds of every prompt: ``seeds``, counted on where a set has the same text again.

    Noise depends on text and seed alone, so equal seeds would give equal texts equal images, and one draw two votes.
    """
    seen: Counter[str] = Counter()
    result = []
    for prompt in prompts:
        result.append([seed + seen[prompt] * len(seeds) for seed in seeds])
        seen[prompt] += 1
    return result


def make_missing(
    pipeline: Any,
    rows: Sequence[dict[str, Any]],
    sampler: SamplerSection,
    out_dir: str | Path,
    more: Callable[[Sequence[dict[str, Any]]], dict[str, Any]] | None = None,
) -> int:
    """Draw the images of ``rows`` that are not in ``out_dir`` yet; returns how many were drawn.

    A file is written aside and renamed, so a present file is a whole one. The pipeline's scheduler is replaced.
    ``more``: rows of a batch -> what else the pipeline is called with (:func:`eval.adapters.shown`).
    """
    use_scheduler(pipeline, sampler.scheduler)
    missing = [row for row in rows if not (Path(out_dir) / row["file"]).is_file()]
    for start in range(0, len(missing), sampler.batch_size):
        batch = missing[start : start + sampler.batch_size]
        images = generate(
            pipeline,
            [row["prompt"] for row in batch],
            [row["seed"] for row in batch],
            num_inference_steps=sampler.num_inference_steps,
            guidance_scale=sampler.guidance_scale,
            negative_prompt=sampler.negative_prompt,
            height=sampler.height,
            width=sampler.width,
            **(more(batch) if more else {}),
        )
        for row, image in zip(batch, images, strict=True):
            target = Path(out_dir) / row["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.with_suffix(f".{os.getpid()}.part")
            image.save(aside, format="PNG")
            aside.replace(target)
    return len(missing)


def generate_to_folder(
    model_folder: str | Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out_dir: str | Path,
    sampler: SamplerSection,
    *,
    model: str | None = None,
    device: str = "cpu",
    base: str | Path | None = None,
    indices: Sequence[int] | None = None,
) -> Path:
    """Draw every prompt with every seed into ``out_dir/images``; returns the path of ``out_dir/manifest.parquet``.

    Images already there are kept; if none is missing the model is not even loaded. ``indices`` as in
    :func:`plan_images`, ``base`` as in :func:`eval.models.load_pipeline`.
    """
    weights = model_hash(model_folder, base=base)
    rows = plan_images(model or Path(model_folder).name, weights, prompts, seeds, sampler, indices=indices)
    if any(not (Path(out_dir) / row["file"]).is_file() for row in rows):
        make_missing(load_pipeline(model_folder, device, sampler.dtype, base=base), rows, sampler, out_dir)
    return write_manifest(rows, out_dir)
