"""Drawing subjects from reference photos with an IP-Adapter-Plus, as PatchDPO draws DreamBench."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.adapters import attach, given, mean_tokens, projected, trained_encoder, view
from eval.dreambench import SCALES, SettingName, reference_files, subject_prompts
from eval.generate import generate, use_scheduler
from eval.models import ADAPTER_FILE, is_ip_adapter, load_pipeline
from eval.section import Section


class SubjectSection(Section):
    """Model, adapter and settings; the defaults are PatchDPO's."""

    model: str = "SG161222/RealVisXL_V1.0"
    """Diffusers folder or hub id under the adapter; or an IP-Adapter folder that training has exported, which brings
    its base, its adapter and its image encoder."""
    adapter: str = "h94/IP-Adapter/sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors"
    """An IP-Adapter: a file, or a file on the hub as owner/name/path/in/it."""
    image_encoder: str = "h94/IP-Adapter/models/image_encoder"
    """The CLIP vision model it reads: a folder, or a folder on the hub as owner/name/path/in/it."""
    setting: SettingName = "original"
    """original: all photos of a subject, scale 0.78; kosmosg: one photo, scale 0.65."""
    scale: float | None = None
    """Weight of the photos; null takes the setting's."""
    boxes: str | None = None
    """Folder with `<subject>/<photo>.json`, whose second mask's box it is cropped to; null shows it whole."""
    num_inference_steps: int = 30
    """Denoising steps."""
    guidance_scale: float = 5.0
    """Classifier-free guidance."""
    negative_prompt: str = "monochrome, lowres, bad anatomy, worst quality, low quality"
    """What the images should not show."""
    seed: int = 42
    """Seed of every image, together with its prompt."""
    height: int | None = None
    """Pixels; null takes the model's own size."""
    width: int | None = None
    """Pixels; null takes the model's own size."""
    batch_size: int = 2
    """Images drawn at once."""
    dtype: str = "float16"
    """Precision of the model."""


def draw_subjects(
    section: SubjectSection,
    references: str | Path,
    out: str | Path,
    *,
    device: str = "cpu",
    prompts: Mapping[str, Sequence[str]] | None = None,
) -> int:
    """Draw ``<subject>/<prompt>.png`` below ``out``, what is not there yet; returns how many were drawn.

    ``references`` holds ``<subject>/NN.jpg``; ``prompts`` by subject, DreamBench's own by default. PatchDPO draws two
    images from one generator, so its images depend on their neighbours; ours have a generator each.
    Raises ValueError if the model, the adapter or photos are not there.
    """
    prompts = subject_prompts() if prompts is None else prompts
    photos = reference_files(references, section.setting, prompts)
    missing = {
        subject: [text for text in texts if not (Path(out) / subject / f"{text}.png").is_file()]
        for subject, texts in prompts.items()
    }
    if not any(missing.values()):
        return 0
    pipeline = load_subject_pipeline(section, device)
    for subject, texts in missing.items():
        if not texts:
            continue
        views = [view(photo, _box(section.boxes, subject, photo)) for photo in photos[subject]]
        tokens = mean_tokens(pipeline, views)
        for start in range(0, len(texts), section.batch_size):
            batch = texts[start : start + section.batch_size]
            with projected(pipeline):
                images = generate(
                    pipeline,
                    batch,
                    [section.seed] * len(batch),
                    num_inference_steps=section.num_inference_steps,
                    guidance_scale=section.guidance_scale,
                    negative_prompt=section.negative_prompt,
                    height=section.height,
                    width=section.width,
                    ip_adapter_image_embeds=[given([tokens] * len(batch), section.guidance_scale > 1)],
                )
            for text, image in zip(batch, images, strict=True):
                target = Path(out) / subject / f"{text}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                aside = target.with_suffix(".part")
                image.save(aside, format="PNG")
                aside.replace(target)
    return sum(map(len, missing.values()))


def load_subject_pipeline(section: SubjectSection, device: str) -> Any:
    """The pipeline with its adapter at the section's scale. Raises ValueError if a part cannot be loaded."""
    model, adapter, encoder = section.model, section.adapter, section.image_encoder
    if is_ip_adapter(model):
        adapter, encoder = str(Path(model) / ADAPTER_FILE), trained_encoder(model)
    pipeline = load_pipeline(model, device, section.dtype)
    use_scheduler(pipeline, "model")
    attach(pipeline, adapter, encoder, SCALES[section.setting] if section.scale is None else section.scale)
    return pipeline


def _box(boxes: str | None, subject: str, photo: Path) -> list[float] | None:
    if boxes is None:
        return None
    file = Path(boxes) / subject / f"{photo.stem}.json"
    try:
        return [float(side) for side in json.loads(file.read_text())["mask"][1]["box"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"no box of {subject}/{photo.stem} in {str(file)!r}: {error}") from error
